"""What a job or a request needs of the hub, and whether it can be had: said at once, before a heavy import.

Importing transformers takes longer than this whole check, and its client tells of one missing part at a time.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from fmstune import files
from fmstune.config.after_training.sharing import Push
from fmstune.config.choices import Backend
from fmstune.config.job import Job, sources
from fmstune.config.requests import Verb
from fmstune.data import locate
from fmstune.errors import Problem, UserError
from fmstune.files import read_json

SECONDS = 3.0
"""To wait for an answer of the hub; what it does not know by then is left to the runner, if it can be reached."""
_TOKENIZER = ("tokenizer_config.json", "tokenizer*", "vocab*")
_EITHER_CONFIG = ("config.json", "adapter_config.json")
"""The folder of a whole model has the first, that of an adapter the second."""

_WITH_WEIGHTS = ("*.safetensors", "adapter_config.json")
"""Patterns of a model that is loaded, and not only looked at."""
_WITHOUT_WEIGHTS = (".json", ".jinja", ".model", ".txt")
"""Suffixes of configurations, tokenizers and chat templates."""


class HubModel(NamedTuple):
    """A model that may be on the hub."""

    place: str
    revision: str | None = None


class Wanted(NamedTuple):
    """A part of the job that is on the hub."""

    field: str
    kind: str
    """`model` or `dataset`."""
    repo: str
    revision: str | None = None
    patterns: tuple[tuple[str, ...], ...] = ()
    """What must be in the cache: of each, one file that matches; the first of all is asked for."""
    path: str = ""
    """The folder of a data set's files."""

    @property
    def is_cached(self) -> bool:
        """Whether the job can do without the hub."""
        folder = cached_snapshot(self.repo, self.revision, self.kind)
        if self.kind == "dataset":
            return (folder / self.path).exists() if folder and self.path else _in_datasets_cache(self.repo)
        return folder is not None and all(any(any(folder.glob(one)) for one in group) for group in self.patterns)


def hub_problems(job: Job, verb: Verb) -> Iterator[Problem]:
    """Yield a problem for each part of the job that is neither here nor to be had from the hub."""
    if verb is Verb.train and job.launcher.slurm is not None:
        return  # the nodes may reach what this machine does not
    parts = ("train", "eval") if verb in (Verb.train, Verb.check, Verb.show_data) else ()
    yield from _absent([*_models(job, verb), *_data(job, parts)])


def request_problems(models: Iterable[tuple[str, HubModel]], job: Job | None = None) -> Iterator[Problem]:
    """Yield a problem for each (flag, model) that is neither here nor to be had, and for rows that `job` holds out."""
    needed = (_EITHER_CONFIG, ("*.safetensors",))
    wanted = [Wanted(flag, "model", *model, needed) for flag, model in models if _is_on_hub(model.place)]
    parts = ("train",) if job is not None and job.data.eval is None else ("eval",)
    yield from _absent([*dict.fromkeys(wanted), *(_data(job, parts) if job is not None else ())])


def hub_file_problems(flag: str, model: HubModel, name: str) -> Iterator[Problem]:
    """Yield a problem where this file of a repository can neither be had nor asked for."""
    yield from _absent([Wanted(flag, "model", *model, ((name,),))])


def fetch_file(model: HubModel, name: str) -> Path | None:
    """A small file of a model on the hub, or of its cache where the hub cannot be asked; None where there is none."""
    wanted = Wanted("", "model", *model, ((name,),))
    if not _is_on_hub(model.place):
        return None
    # its client tries for half a minute to reach a hub that cannot be reached
    if _ask([wanted])[0] is not None:
        folder = cached_snapshot(*model)
        return folder / name if folder is not None and (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download

    with suppress(OSError, ValueError):  # all errors of the client are one of them
        return Path(hf_hub_download(model.place, name, revision=model.revision))
    return None


def push_token_problems(asked: Push) -> Iterator[Problem]:
    """Yield a problem where a model cannot be pushed, as the hub may not be asked, or is not told who asks."""
    from huggingface_hub import constants

    if asked.dry_run:
        return
    if constants.HF_HUB_OFFLINE:
        yield Problem("push", "needs the hub, and HF_HUB_OFFLINE is set; unset it, or add --dry-run")
    if _token(Path(constants.HF_TOKEN_PATH)) is None:
        text = ": to push needs a token with write access; log in with `hf auth login`, or set HF_TOKEN"
        yield Problem("--repo", text)


def base_of(adapter: str) -> HubModel | None:
    """The base on the hub that an adapter's folder names; None where it names none, and for any other place."""
    try:
        folder = files.user_path(files.resolve(adapter))
        recorded, named = (read_json(folder / name) for name in ("base.json", _EITHER_CONFIG[1]))
    except (OSError, ValueError, TypeError, UserError):
        return None
    place = recorded.get("id", named.get("base_model_name_or_path"))
    revision = recorded.get("revision", named.get("revision"))
    return None if recorded.get("local") or not isinstance(place, str) else HubModel(place, revision)


def unreachable(place: str) -> str:
    """The words for a model or data set that is nowhere."""
    return f"no folder is named {place}, and it is neither in the hub's cache nor can the hub be reached"


def _absent(wanted: Iterable[Wanted]) -> Iterator[Problem]:
    absent = [one for one in wanted if not one.is_cached]
    for one, why in zip(absent, _ask(absent), strict=True):
        if why is not None:
            yield Problem(one.field, f": {why}")


def _models(job: Job, verb: Verb) -> Iterator[Wanted]:
    """The model, its tokenizer and its adapter, as far as the verb needs them and they are not local folders."""
    model, described = job.model, job.model.architecture is not None
    weights, tokenizer = (("config.json",), ("*.safetensors",)), (_TOKENIZER,)
    needed: tuple[tuple[str, ...], ...] = ()
    if verb is Verb.train or model.backend is Backend.fms:
        needed = weights
    elif not described and verb is not Verb.show_data:
        needed = weights[:1]
    asks_tokenizer = verb in (Verb.train, Verb.show_data) or (verb is Verb.check and not described)
    if model.tokenizer is None and asks_tokenizer:
        needed += tokenizer
    if needed and _is_on_hub(model.path):
        yield Wanted("model.path", "model", model.path, model.revision, needed)
    if model.tokenizer is not None and asks_tokenizer and _is_on_hub(model.tokenizer):
        yield Wanted("model.tokenizer", "model", model.tokenizer, model.revision, tokenizer)
    if model.adapter is not None and verb is Verb.train and _is_on_hub(model.adapter):
        yield Wanted("model.adapter", "model", model.adapter, None, (("adapter_config.json",),))


def _data(job: Job, parts: Sequence[str]) -> Iterator[Wanted]:
    for part in parts:
        for name, source in sources(job.data, part).items():
            field = f"data.{part}.{name}" if name else f"data.{part}"
            for entry in source.path if isinstance(source.path, list | tuple) else [source.path]:
                if str(entry).startswith(locate.HUB):
                    with suppress(UserError):  # the rules on data say it
                        found = locate.parse_place(entry, field)
                        yield Wanted(field, "dataset", found.repo, found.revision, path=found.path)
                elif isinstance(entry, str) and locate.is_hub_id(entry) and not Path(entry).exists():
                    yield Wanted(field, "dataset", entry)


def _is_on_hub(place: str) -> bool:
    """Whether this is a hub id: no folder here, and nothing that ships with fmstune."""
    return files.is_model_id(place) and not place.startswith(files.PREFIX) and not files.user_path(place).exists()


def _ask(wanted: Sequence[Wanted]) -> list[str | None]:
    """What is wrong with each, side by side: a network that answers nothing must not cost the time of each."""
    found: dict[Wanted, str | None] = dict.fromkeys(wanted, f"no answer in {SECONDS:g} seconds")
    asking = [threading.Thread(target=lambda one=one: found.update({one: _reason(one)}), daemon=True) for one in found]
    for thread in asking:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in asking:
        thread.join(max(0.0, end - time.monotonic()))
    return [_explained(one, found[one]) for one in wanted]


@cache
def _reason(one: Wanted) -> str | None:
    """Why it cannot be had, in the hub's own word where that answers; None where nothing speaks against it."""
    # here and not above: most jobs need no hub, and would wait for these
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    revision = quote(one.revision or "main", safe="")
    # as the hub's client asks, since a mirror may not know more
    method, url = "HEAD", f"{constants.ENDPOINT}/{one.repo}/resolve/{revision}/{(one.patterns or (('',),))[0][0]}"
    if one.kind == "dataset":
        method, url = "GET", f"{constants.ENDPOINT}/api/datasets/{one.repo}/revision/{revision}"
    token = _token(Path(constants.HF_TOKEN_PATH))
    headers = {"user-agent": "fmstune"} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=SECONDS):
            return None
    except urllib.error.HTTPError as err:
        return _answer(constants.ENDPOINT, err.code, err.headers.get("X-Error-Code"))
    except urllib.error.URLError as err:
        # a certificate that only the hub's client knows how to check
        return None if "SSL" in type(err.reason).__name__ else f"{constants.ENDPOINT}: {err.reason}"
    except OSError as err:
        return f"{constants.ENDPOINT}: {err}"


def _token(file: Path) -> str | None:
    """As `huggingface_hub.get_token`, whose import takes most of a second; on Colab it asks the notebook too."""
    if (given := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")) is None and file.is_file():
        given = file.read_text(encoding="utf-8")
    return given.strip() if given and given.strip() else None


def _answer(endpoint: str, status: int, code: str | None) -> str | None:
    """The hub's own word for what is wrong; a refusal without one is not the hub's, but of something before it."""
    if code is None:
        return f"{endpoint} answers {status}"
    return code if code in ("GatedRepo", "RepoNotFound", "RevisionNotFound") else None


def _explained(one: Wanted, reason: str | None) -> str | None:
    """The reason as the end of a sentence about the field, with what to do."""
    page = f"{'' if one.kind == 'model' else 'datasets/'}{one.repo}"
    if reason is None:
        return None
    if reason == "GatedRepo":
        return f"{one.repo} is gated; accept its terms at https://huggingface.co/{page} and log in with `hf auth login`"
    if reason == "RevisionNotFound":
        return f"{one.repo} has no revision {one.revision!r}; see https://huggingface.co/{page}/tree/main"
    if reason == "RepoNotFound":
        return f"neither a folder nor a hub {one.kind} is named {one.repo}; if private, `hf auth login` first"
    near = files.did_you_mean_beside(Path(one.repo))
    return f"{unreachable(one.repo)} ({reason}); {_how_to_get(one)}{near}"


def _how_to_get(one: Wanted) -> str:
    folder = one.repo.rpartition("/")[2]
    flags = ["--repo-type", "dataset"] if one.kind == "dataset" else []
    flags += ["--revision", one.revision] if one.revision else []
    flags += ["--include", f"'{one.path}/*'"] if one.path else []
    names: list[str] = []
    if one.kind == "model" and not any({*_WITH_WEIGHTS} & {*group} for group in one.patterns):
        if all(len(group) == 1 for group in one.patterns):
            names = [group[0] for group in one.patterns]
        else:
            flags += [word for suffix in _WITHOUT_WEIGHTS for word in ("--include", f"'*{suffix}'")]
    fetch = " ".join(["hf download", one.repo, *names, *flags, "--local-dir", folder])
    local = f"{folder}/{one.path}" if one.path else folder
    given = f"{one.field}{' ' if one.field.startswith('--') else '='}"
    there = f"{given}{'FILE' if one.kind == 'dataset' else 'DIR'}"
    return f"give {there}, set HF_ENDPOINT to a mirror, or fetch it elsewhere: {fetch} (then {given}{local})"


def cached_snapshot(repo: str, revision: str | None = None, kind: str = "model") -> Path | None:
    """The folder of this revision of a model or a data set in the hub's cache; None where it is not there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    name = revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def _in_datasets_cache(repo: str) -> bool:
    """Whether `datasets` has loaded this data set before, and so may do it again without the hub."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    # `datasets` writes names in snake_case
    wanted = _plain(repo.replace("/", "___"))
    return cache.is_dir() and any(_plain(path.name) == wanted for path in cache.iterdir())


def _plain(name: str) -> str:
    owner, _, own = name.partition("___")
    return f"{owner}/{own.replace('_', '')}".lower()
