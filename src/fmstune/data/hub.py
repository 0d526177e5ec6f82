"""Files of a data set on the hub by their path, `hf://datasets/OWNER/NAME[@REVISION]/PATH`, and the hub's cache."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from fmstune.errors import UserError, one_line

SCHEME = "hf://"
_FORM = re.compile(
    r"hf://datasets/(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(?P<path>[^@]*?))?/?"
)
"""As `huggingface_hub.HfFileSystem` reads it: a revision has slashes only in `refs/convert/…` and `refs/pr/…`."""


class HubFiles(NamedTuple):
    """Where files of a data set are on the hub; without a path, all of them."""

    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def patterns(self) -> list[str] | None:
        """What to download, as `snapshot_download` takes it."""
        return [self.path, f"{self.path}/*"] if self.path else None


def parse_place(place: str, field: str) -> HubFiles:
    """The parts of a place that begins with `hf://`; raises UserError."""
    found = _FORM.fullmatch(place)
    if found is None or ".." in Path(found["path"] or "").parts:
        raise UserError(field, f"must be like hf://datasets/OWNER/NAME@REVISION/PATH, got {place!r}")
    return HubFiles(found["repo"], found["revision"], found["path"] or "")


def download(files: HubFiles, field: str) -> Path:
    """The file or folder in the hub's cache, downloaded where it is not there yet; raises UserError."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            files.repo, repo_type="dataset", revision=files.revision, allow_patterns=files.patterns
        )
    except (OSError, ValueError) as err:
        raise UserError(field, f": {_url(files)} cannot be downloaded: {one_line(err)}") from err
    path = Path(folder) / files.path
    if not path.exists():
        raise UserError(field, f": the data set has no file or folder {files.path}; see {_page(files)}")
    return path


def cached_snapshot(repo: str, kind: str, revision: str | None) -> Path | None:
    """The folder of this revision of a model or a data set in the hub's cache; None where it is not there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    name = revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def in_datasets_cache(repo: str) -> bool:
    """Whether `datasets` has loaded this data set before, and so may do it again without the hub."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    # `datasets` writes names in snake_case
    wanted = _plain(repo.replace("/", "___"))
    return cache.is_dir() and any(_plain(path.name) == wanted for path in cache.iterdir())


def _plain(name: str) -> str:
    owner, _, own = name.partition("___")
    return f"{owner}/{own.replace('_', '')}".lower()


def _url(files: HubFiles) -> str:
    return f"{SCHEME}datasets/{files.repo}" + (f"@{files.revision}" if files.revision else "") + f"/{files.path}"


def _page(files: HubFiles) -> str:
    return f"https://huggingface.co/datasets/{files.repo}/tree/{(files.revision or 'main').replace('/', '%2F')}"
