"""What `fmstune push` can be asked."""

from dataclasses import dataclass
from typing import Annotated

from fmstune.config.flags import POSITIONAL, As


@dataclass(frozen=True, kw_only=True)
class Push:
    """Share a tuned model on the Hugging Face hub, without secrets and paths of this machine."""

    run: Annotated[str, POSITIONAL]
    repo: Annotated[str, As("USER/NAME")]
    """The repository on the hub; a new one is private."""
    public: bool = False
    """Let everyone see the repository, if it is new."""
    dry_run: Annotated[bool, As(flags=("--dry-run",))] = False
    """List what would be sent, left out, and is on the hub already; send nothing."""
    force: bool = False
    """Overwrite files on the hub that have other content."""
    parity_rows: int = 8
    """Rows of the run that the files are compared on; 0 compares none."""
    base_model_name_or_path: Annotated[str | None, As("USER/NAME")] = None
    """The hub id of the base, if the run took it from a folder."""
