"""`fmstune push`: say what stays here and what goes, compare with what is on the hub, and send what it lacks."""

import hashlib
import io
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from fmstune.checks.requests import run_model
from fmstune.config.after_training.sharing import Push
from fmstune.errors import Problem, UserError, one_line, os_problem, raise_if_any, without_secrets
from fmstune.files import PREFIX, user_path
from fmstune.serving.parcel import Parcel, Shared, pack_model
from fmstune.serving.redaction import change_lines
from fmstune.tables import count_of, show_bytes

_OF_THE_CLIENT: Any = (*HfHubHTTPError.__bases__, RuntimeError, ValueError)
"""What the hub's client raises: the errors of the HTTP library that it uses, of the system, and its own."""

_LOADED = (".safetensors", ".safetensors.index.json", "adapter_config.json")
"""Ends of the names of files by which a library decides what it loads."""


class State(StrEnum):
    """How a file stands to the one of its name on the hub."""

    new = "new"
    same = "the same on the hub"
    differs = "differs from the hub's"


class Remote(NamedTuple):
    """The repository as it is."""

    commit: str | None
    private: bool
    files: Mapping[str, RepoFile]


def push_model(asked: Push) -> int:
    """Push the model; raises UserError, before anything is sent, for what the hub or the user has to settle."""
    parcel = pack_model(asked)
    print("\n".join(_parcel_lines(parcel)), flush=True)
    if asked.dry_run and constants.HF_HUB_OFFLINE:
        print("\n".join(["", "the hub was not asked (HF_HUB_OFFLINE is set)", *_file_lines(parcel.files, {})]))
        return 0
    api = HfApi(endpoint=constants.ENDPOINT)
    with _explained(asked.repo, sending=False):
        there = _look(api, asked.repo)
    states = {file.name: _state(file, there.files.get(file.name)) for file in parcel.files} if there else {}
    print("\n".join(["", _repository_line(asked, there), *_file_lines(parcel.files, states)]), flush=True)
    if asked.dry_run:
        print("\nnothing was sent (--dry-run)")
        return 0
    _raise_if_refused(asked, there, states)
    wanted = [file for file in parcel.files if states.get(file.name) is not State.same]
    stale = _stale(there, states)
    if wanted or stale:
        if asked.parity_rows:
            print(_parity(asked), flush=True)
        _send(api, asked, there, wanted, stale)
    print("\n".join(["", *_end_lines(asked, there, parcel, wanted, stale)]), flush=True)
    return 0


def _parity(asked: Push) -> str:
    """What was compared with training before anything is sent; raises UserError with what differs."""
    # they import what loads models, which a dry run does without
    from transformers.utils import logging

    from fmstune.serving.parity import prove

    saved = run_model(asked.run)
    run = prove.run_of_weights(saved)
    if run is None:
        return f"note: parity was not compared: {asked.run} belongs to no run"
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return prove.prove_artifacts(run, user_path(saved), asked.parity_rows)


def _look(api: HfApi, repo: str) -> Remote | None:
    """The repository on the hub; None where there is none that the token may see."""
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError as err:
        # a hub that has nothing of this name says so also to a token that it does not accept
        if err.response.status_code == 401 and err.response.headers.get("X-Error-Code") != "RepoNotFound":
            raise
        return None
    entries = api.list_repo_tree(repo, recursive=True, revision=info.sha)
    return Remote(info.sha, bool(info.private), {entry.path: entry for entry in entries if isinstance(entry, RepoFile)})


def _state(file: Shared, there: RepoFile | None) -> State:
    """By the hash that the hub keeps: SHA-256 of a large file, and of any other that of git."""
    if there is None:
        return State.new
    if there.size != file.size:
        return State.differs
    with io.BytesIO(file.content) if file.content is not None else file.path.open("rb") as content:
        if there.lfs is not None:
            same = hashlib.file_digest(content, "sha256").hexdigest() == there.lfs.sha256
        else:
            git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
            same = hashlib.file_digest(content, lambda: git).hexdigest() == there.blob_id
    return State.same if same else State.differs


def _raise_if_refused(asked: Push, there: Remote | None, states: Mapping[str, State]) -> None:
    """Raise UserError where pushing would show or overwrite what the user may want to keep."""
    if there is not None and not there.private and not asked.public:
        text = f": {asked.repo} is public; add --public to send the model there, or choose another repository"
        raise UserError("--repo", text)
    different = [name for name, state in states.items() if state is State.differs]
    problems = []
    if different:
        what = f"{count_of(len(different), 'file')} with other content ({', '.join(different)})"
        problems.append(
            Problem("--repo", f": {asked.repo} has {what}; nothing was sent: add --force to overwrite them")
        )
    if stale := _stale(there, states):
        what = f"files of another model ({', '.join(stale)})"
        problems.append(Problem("--repo", f": {asked.repo} has {what}; nothing was sent: add --force to remove them"))
    raise_if_any(problems if not asked.force else [])


def _stale(there: Remote | None, sent: Collection[str]) -> list[str]:
    """Files that would be loaded in place of those that are sent, such as the shards of a former model."""
    names = sorted(there.files) if there is not None else []
    return [name for name in names if name not in sent and name.endswith(_LOADED)]


def _send(api: HfApi, asked: Push, there: Remote | None, wanted: Sequence[Shared], stale: Sequence[str]) -> None:
    """Send the files in one commit: until all are there, the repository stays as it is."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _explained(asked.repo, sending=True):
        if there is None:
            api.create_repo(asked.repo, private=not asked.public, exist_ok=True)
        added = [
            CommitOperationAdd(file.name, str(file.path) if file.content is None else file.content) for file in wanted
        ]
        removed = [CommitOperationDelete(name) for name in stale]
        parent = there.commit if there is not None else None
        api.create_commit(asked.repo, [*added, *removed], commit_message="fmstune push", parent_commit=parent)


@contextmanager
def _explained(repo: str, *, sending: bool) -> Iterator[None]:
    """Turn what the hub's client raises into one message that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as err:
        raise UserError("push", "needs the hub, and HF_HUB_OFFLINE is set; unset it, or add --dry-run") from err
    except _OF_THE_CLIENT as err:
        if isinstance(err, OSError) and err.filename and not isinstance(err, HfHubHTTPError):  # a file of the model
            raise UserError.of([os_problem(err)]) from err
        raise UserError("--repo", f": {_reason(err, repo, sending=sending)}") from err


def _reason(err: BaseException, repo: str, *, sending: bool) -> str:
    answered = next((one for one in _chain(err) if isinstance(one, HfHubHTTPError)), None)
    if answered is None:
        if isinstance(err, ValueError):
            return f"{repo}: {without_secrets(one_line(err))}"
        cause = without_secrets(one_line([*_chain(err)][-1]) or type(err).__name__)
        left = "the files that were sent whole are kept there: give the same command again to send the rest"
        return f"{constants.ENDPOINT} broke off ({cause}); {left if sending else 'try again'}"
    status, user = answered.response.status_code, repo.partition("/")[0]
    said = without_secrets(one_line(answered.server_message or ""))
    match status:
        case 401:
            hint = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
            return f"{constants.ENDPOINT} does not accept the token; {hint}"
        case 403:
            may = f"the token may not write to {repo}"
            return f"{may}{f' ({said})' if said else ''}; take one with write access for {user}, or another USER"
        case 404:
            return f"{repo} is not there, or the token may not see it; check its name and the token"
        case 409 | 412:
            return f"{repo} was changed meanwhile{f' ({said})' if said else ''}; give the same command again"
        case _:
            return f"{constants.ENDPOINT} answers {status}{f' ({said})' if said else ''}; try again later"


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _parcel_lines(parcel: Parcel) -> Iterator[str]:
    """What stays here comes first."""
    yield "left out of the files" if parcel.changes else "left out of the files: nothing"
    yield from (f"  {line}" for line in change_lines(parcel.changes))
    yield f"not sent: {', '.join(parcel.left_out) or 'nothing'}"
    if parcel.is_adapter and parcel.local_base is not None and not parcel.local_base.startswith(PREFIX):
        flag = "name its copy on the hub with --base_model_name_or_path USER/NAME"
        yield f"note: the base is a folder here ({parcel.local_base}), which others do not have; {flag}"


def _repository_line(asked: Push, there: Remote | None) -> str:
    if there is None and get_token() is None:
        return f"{asked.repo}: no repository that can be seen without a token"
    if there is None:
        return f"{asked.repo}: a new repository, {'public' if asked.public else 'private'}"
    seen = "private" if there.private else "public"
    note = "; it stays private, and its settings on the hub make it public" if there.private and asked.public else ""
    return f"{asked.repo}: is there, {seen}, with {count_of(len(there.files), 'file')}{note}"


def _file_lines(files: Sequence[Shared], states: Mapping[str, State]) -> Iterator[str]:
    width = max(len(file.name) for file in files)
    for file in files:
        size = f"{file.size:,} B" if file.size < 100_000 else show_bytes(file.size)
        mark = "*" if file.content is not None else " "
        yield f"  {file.name:<{width}} {mark} {size:>10}  {states.get(file.name, State.new).value}"
    if any(file.content is not None for file in files):
        yield "  * without what is listed above"


def _end_lines(
    asked: Push, there: Remote | None, parcel: Parcel, sent: Sequence[Shared], removed: Sequence[str]
) -> Iterator[str]:
    repo, skipped = asked.repo, len(parcel.files) - len(sent)
    private = there.private if there is not None else not asked.public
    same = f"; {count_of(skipped, 'file')} the same already" if skipped else ""
    size = show_bytes(sum(file.size for file in sent))
    what = f"sent {count_of(len(sent), 'file')} ({size})" if sent else "sent nothing"
    yield f"{what} to {constants.ENDPOINT}/{repo} ({'private' if private else 'public'}){same}"
    if removed:
        yield f"  removed   {', '.join(removed)}"
    yield f"  ask       fmstune generate --model {repo} --text TEXT"
    if parcel.is_adapter:
        yield f"  train on  fmstune model.adapter={repo} …"
    if any(file.name == "job.yaml" for file in parcel.files):
        yield f"  again     fmstune train --from hf:{repo}"
