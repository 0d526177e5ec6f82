"""What `fmstune push` sends: the files of a model with its job and lock, and lists of all that stays here."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fmstune.checks.requests import run_model
from fmstune.config import freeze
from fmstune.config.after_training.sharing import Push
from fmstune.errors import UserError
from fmstune.files import PREFIX, is_model_id, read_json, user_path
from fmstune.runs import model_card, run_folder
from fmstune.serving.redaction import Change, Redactor, short

_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")
"""Suffixes of files that make a model, an adapter, a tokenizer or a card."""
_ADAPTER, _BASE, _MERGED = "adapter_config.json", "base.json", "merge.json"
_WITH_PLACES = (_ADAPTER, _BASE, _MERGED, "config.json", "generation_config.json", "tokenizer_config.json")
"""Files in which libraries and fmstune write where something was loaded from."""
_OF_TRAINING = ("complete.json", "figures.json", "trainer_state.json", "training_args.json")
"""Files of a checkpoint that only resuming reads."""


class Shared(NamedTuple):
    """One file as it is sent."""

    name: str
    """In the repository."""
    path: Path
    """Here."""
    content: bytes | None = None
    """In place of the file's own, where something was left out of it."""

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        return self.path.stat().st_size if self.content is None else len(self.content)


class Parcel(NamedTuple):
    """All that is sent, and all that is not."""

    files: tuple[Shared, ...]
    changes: tuple[Change, ...]
    """What was left out of the files."""
    left_out: tuple[str, ...]
    """Files and folders that stay here, by name."""
    base: str | None
    """The hub id of the base, as far as it is known."""
    local_base: str | None
    """The name of a base that was a folder here, which nobody else can load by it."""

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are an adapter's."""
        return any(file.name == _ADAPTER for file in self.files)


def pack_model(asked: Push) -> Parcel:
    """Collect the files; raises UserError for a folder without weights, or a job or lock that cannot be read."""
    given = user_path(asked.run)
    folder = user_path(run_model(asked.run))
    if not any(folder.glob("*.safetensors")):
        raise UserError("push", f": {folder} has no weights (*.safetensors); give a run, an adapter or a merged model")
    run = _run_of(given, folder)
    redactor = Redactor()
    base, local = _base(folder, run, asked.base_model_name_or_path)
    records = dict(_records(run, asked.base_model_name_or_path, redactor)) if run is not None else {}
    names = sorted(path.name for path in folder.iterdir() if _is_of_model(path) and path.name not in records)
    # the card last: it repeats the paths that the others have
    for name in sorted(names, key=lambda name: name == model_card.MODEL_CARD):
        records[name] = Shared(name, folder / name, _content(folder / name, base, local, redactor))
    listed = tuple(records[name] for name in sorted(records))
    return Parcel(listed, tuple(redactor.changes), tuple(_stays(given, folder, records)), base, local)


def _is_of_model(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.is_file() and path.suffix in _OF_A_MODEL and not hidden and path.name not in _OF_TRAINING


def _run_of(given: Path, folder: Path) -> Path | None:
    """The folder of the run that made the model; None where it is not known."""
    merged = read_json(folder / _MERGED).get("adapters")
    if merged is None:
        places = [given, folder, folder.parent]
    elif len(merged) == 1:
        adapter = user_path(str(merged[0].get("model")))
        places = [adapter, adapter.parent]
    else:
        places = []
    return next((place for place in places if (place / run_folder.JOB).is_file()), None)


def _base(folder: Path, run: Path | None, given: str | None) -> tuple[str | None, str | None]:
    """The base as a hub id, and else the name of its folder; raises UserError where `given` contradicts the record."""
    recorded = read_json(folder / _BASE) or read_json(folder / _MERGED).get("base") or {}
    place, local = recorded.get("id"), recorded.get("local")
    if place is None and (folder / _ADAPTER).is_file():
        place = read_json(folder / _ADAPTER).get("base_model_name_or_path")
    if place is None and run is not None:
        model = freeze.load_file(run / run_folder.JOB).get("model")
        place = model.get("path") if isinstance(model, Mapping) else None
    if local is None and place is not None:
        local = not is_model_id(str(place)) or user_path(str(place)).exists()
    if given is not None and place is not None and not local and place != given:
        text = f"is {given}, and the model was tuned on {place} of the hub; leave it out"
        raise UserError("--base_model_name_or_path", text)
    if given is not None or place is None:
        return given, None
    return (None, str(place)) if local else (str(place), None)


def _records(run: Path, base: str | None, redactor: Redactor) -> Iterator[tuple[str, Shared]]:
    """Yield the job and the lock of the run."""
    file = run / run_folder.JOB
    tree = freeze.load_file(file)
    shared = redactor.job(tree, file.name, base)
    text = yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, width=110)
    yield file.name, Shared(file.name, file, None if shared == tree else text.encode())
    file = run / run_folder.PROVENANCE
    if file.is_file():
        lock = run_folder.read_own(file)
        typed = {"command": redactor.command(lock["command"], file.name, "command")} if lock.get("command") else {}
        shared = redactor.tree({**lock, **typed}, file.name)
        yield file.name, Shared(file.name, file, None if shared == lock else _json(shared))


def _content(file: Path, base: str | None, local: str | None, redactor: Redactor) -> bytes | None:
    """What is sent in place of a file of the model; None for the file itself."""
    if file.name == model_card.MODEL_CARD:
        text = file.read_text(encoding="utf-8")
        shared = _card(redactor.text(text, file.name), base, local, redactor)
        return None if shared == text else shared.encode()
    if file.name not in _WITH_PLACES:
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(str(file), f": cannot be read as JSON ({err}); correct it, or save the model again") from err
    named = _with_base(tree, file.name, base, local, redactor)
    shared = redactor.tree(named, file.name)
    return None if shared == tree else _json(shared)


def _with_base(tree: Any, file: str, base: str | None, local: str | None, redactor: Redactor) -> Any:
    """What PEFT and fmstune read about an adapter's base, with its hub id, or with the name of its folder alone."""
    if file == _ADAPTER:
        field, was = "base_model_name_or_path", tree.get("base_model_name_or_path")
        now = base if base is not None else short(local.removeprefix(PREFIX)) if local is not None else was
        todays = {**tree, field: now}
    elif file == _BASE and base is not None and tree.get("local"):
        field, was, now = "id", tree.get("id"), base
        todays = {**tree, "id": base, "local": False, "revision": None}
    else:
        return tree
    if now != was:
        redactor.changes.append(Change(file, field, f"{was} → {now}"))
    return todays


def _card(text: str, base: str | None, local: str | None, redactor: Redactor) -> str:
    """The card with the base's hub id at its head, and without a name that is none: the hub refuses or mislinks it."""
    head = re.match(r"---\n.*?\n---\n", text, flags=re.DOTALL)
    if head is None or (base is None and local is None):
        return text
    line = f"base_model: {base}\n" if base is not None else ""
    shared = re.sub(r"^base_model: .*\n", lambda _: line, head[0], flags=re.MULTILINE)
    if shared != head[0]:
        what = f"names {base}" if base is not None else "left out: a folder of this machine"
        redactor.changes.append(Change(model_card.MODEL_CARD, "base_model", what))
    return shared + text[head.end() :]


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _stays(given: Path, folder: Path, sent: Mapping[str, Shared]) -> Iterator[str]:
    """Yield the names of what is in the folder of the model, or of its run, and is not sent."""
    for place in dict.fromkeys((folder, given)):
        for path in sorted(place.iterdir()):
            is_sent = path.name in sent and sent[path.name].path == path
            if not is_sent and path not in (folder, given):
                yield f"{path.name}/" if path.is_dir() else path.name
