"""`lock.json`: what a rerun would need to know to get the same result."""

import dataclasses
import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fmstune import __version__, launch
from fmstune.job import Backend, Job

PACKAGES = (
    "accelerate",
    "datasets",
    "hydra-core",
    "numpy",
    "omegaconf",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
_OF_BACKEND = {Backend.transformers: (), Backend.fms: ("ibm-fms",)}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Versions, code, hashes, seed and devices of one run."""

    fmstune: str
    python: str
    platform: str
    packages: dict[str, str]
    git_commit: str | None
    """Commit of fmstune's own checkout, with `+changes` where files differ; null for an installed wheel."""
    seed: int
    device: str
    device_names: list[str]
    threads: int
    data_hashes: dict[str, str]
    """sha256 of the bytes that were read, by field."""
    model_config_hash: str
    """sha256 of the model's configuration as JSON."""


def collect(job: Job, *, device: str, data_hashes: dict[str, str], model_config: str) -> Provenance:
    """What is true now, in this process."""
    return Provenance(
        fmstune=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: metadata.version(name) for name in (*PACKAGES, *_OF_BACKEND[job.model.backend])},
        git_commit=_git_commit(),
        seed=job.seed,
        device=device,
        device_names=_device_names(device),
        threads=torch.get_num_threads(),
        data_hashes=data_hashes,
        model_config_hash=hashlib.sha256(model_config.encode()).hexdigest(),
    )


def as_json(provenance: Provenance) -> dict[str, Any]:
    """The plain values that `lock.json` holds."""
    return dataclasses.asdict(provenance)


def _git_commit() -> str | None:
    """Only a checkout of fmstune itself counts: a wheel inside somebody's repository is not that repository's code."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists() or not (source / "pyproject.toml").exists():
        return None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        changes = _git(source, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _device_names(device: str) -> list[str]:
    if device == "cuda":
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{platform.processor() or platform.machine()}, {launch.cores()} cores, {sys.platform}"]
