"""`lock.json`: what a rerun would need to know to get the same result."""

import dataclasses
import hashlib
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from fmstune import __version__, hardware, ranks
from fmstune import files as package_files
from fmstune.config import secrets
from fmstune.config.choices import Attention, Backend
from fmstune.config.job import Job, Model, sources
from fmstune.data.locate import local_files
from fmstune.errors import UserError
from fmstune.files import write_json
from fmstune.runs import hashes, run_folder

PACKAGES = (
    "accelerate",
    "datasets",
    "huggingface-hub",
    "hydra-core",
    "jinja2",
    "numpy",
    "omegaconf",
    "peft",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
"""What every run uses; `extras` adds what this one does."""

ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_OFFLINE",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that are recorded: no others are, so no secret can be among them."""

_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of files that make a model, an adapter or a tokenizer."""
_NAMES_A_MODEL = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class Lock:
    """Versions, code, hashes, seed and devices of one run."""

    fmstune: str
    python: str
    platform: str
    packages: dict[str, str]
    git_commit: str | None
    """Commit of fmstune's own checkout, with `+changes` where files differ; null for an installed wheel."""
    git_changes: str | None
    """sha256 of what differs from that commit; null where nothing does."""
    command: str | None
    """What was typed, passwords in addresses aside; null where the runner was started by hand."""
    seed: int
    device: str
    device_names: list[str]
    threads: int
    processes: int
    """Processes that train together."""
    cpu: str
    cpu_capability: str
    """Instructions that torch uses, such as `AVX2`: sums come out otherwise with others."""
    cuda: str | None
    """CUDA's version that torch was built with, and cuDNN's; null on another device."""
    environment: dict[str, str]
    """Those of `ENVIRONMENT` that are set."""
    data_hashes: dict[str, str]
    """sha256 of the bytes that were read, by field."""
    data_rows: dict[str, int]
    """Rows that were read, by field; of streamed rows, the first ones."""
    tokens: dict[str, str]
    """The cache's name for the prepared tokens, by field: a hash of all that they depend on."""
    model_config_hash: str
    """sha256 of the model's configuration as JSON."""
    model_commits: dict[str, str]
    """Commit of each model that came from the hub, by field."""
    data_files: dict[str, dict[str, str]] | None = None
    """sha256 of each data file by field and name; null until they are hashed."""
    model_files: dict[str, dict[str, str]] | None = None
    """sha256 of each file of the model, its tokenizer and its former adapter, by field; null until then."""


def collect_lock(job: Job, *, device: str, model_config: str, command: str | None, data: Mapping[str, Any]) -> Lock:
    """What is true now, in this process; `data` has the fields `data_hashes`, `data_rows` and `tokens`."""
    commit, changes = _git_state()
    return Lock(
        fmstune=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version(name) for name in (*PACKAGES, *extras(job))},
        git_commit=commit,
        git_changes=changes,
        command=None if command is None else secrets.left_out(command),
        seed=job.seed,
        device=device,
        device_names=_device_names(device),
        threads=torch.get_num_threads(),
        processes=ranks.here().processes,
        cpu=_cpu(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cuda=_cuda() if device == "cuda" else None,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        model_config_hash=hashlib.sha256(model_config.encode()).hexdigest(),
        model_commits=_commits(job.model),
        **data,
    )


def extras(job: Job) -> Iterator[str]:
    """Installed packages that only some jobs use, and this one does."""
    wanted = {
        "bitsandbytes": job.model.quantization is not None,
        "flash-attn": job.model.attention is Attention.flash_attention_2,
        "ibm-fms": job.model.backend is Backend.fms,
    }
    targets = " ".join(str(one["_target_"]) for one in job.tracking.values())
    for name in ("aim", "mlflow-skinny", "tensorboard", "trackio", "wandb"):
        wanted[name] = f".{name.partition('-')[0]}." in targets
    for name, used in wanted.items():
        if used and any(distributions(name=name)):
            yield name


def as_json(provenance: Lock) -> dict[str, Any]:
    """The plain values that `lock.json` holds."""
    return dataclasses.asdict(provenance)


class LockWriter:
    """`lock.json` of a run folder: written at once, and again when the files of model and data are hashed.

    A thread hashes them, so that no step waits: 540 MB take 2 seconds of a core where they are not remembered.
    """

    def __init__(self, job: Job, folder: Path, provenance: Lock) -> None:
        self._job, self._folder, self._provenance = job, folder, provenance
        write_json(folder / run_folder.PROVENANCE, as_json(provenance))
        self._thread = threading.Thread(target=self._hash, name="file-hashes", daemon=True)
        self._thread.start()

    def whole(self) -> Lock:
        """What the file holds in the end; waits for the hashes."""
        self._thread.join()
        return self._provenance

    def _hash(self) -> None:
        try:
            self._provenance = with_file_hashes(self._provenance, self._job)
            write_json(self._folder / run_folder.PROVENANCE, as_json(self._provenance))
        except (OSError, UserError) as err:
            # such as a file that was taken away meanwhile: the run needs it no more
            print(f"fmstune: note: lock.json lacks hashes of files: {err}", file=sys.stderr, flush=True)


def with_file_hashes(provenance: Lock, job: Job) -> Lock:
    """The same with the hashes of data and model files."""
    return dataclasses.replace(provenance, data_files=data_files(job), model_files=model_files(job.model))


def data_files(job: Job) -> dict[str, dict[str, str]]:
    """The hashes of the data files by field; streamed ones are not read for that, and hub ids have none."""
    found: dict[str, dict[str, str]] = {}
    for part in ("train", "eval"):
        for name, source in sources(job.data, part).items():
            if part == "eval" or not job.data.streaming:
                field = f"data.{part}.{name}" if name else f"data.{part}"
                found[field] = _by_name(local_files(source.path, field))
    return found


def _by_name(files: Sequence[Path]) -> dict[str, str]:
    """The hashes by the files' names alone, as folders differ between machines; in full where two have one name."""
    names = [path.name for path in files]
    alone = len(set(names)) == len(names)
    return {path.name if alone else str(path): hashes.hash_file(path) for path in files}


def model_files(model: Model) -> dict[str, dict[str, str]]:
    """The hashes of the files in each folder of the model, by field; a field whose folder is not here is left out."""
    return {
        field: {
            path.name: hashes.hash_file(path)
            for path in sorted(folder.iterdir())
            if path.suffix in _OF_A_MODEL and path.is_file() and not path.name.startswith(".")
        }
        for field, folder in model_folders(model).items()
    }


def model_folders(model: Model) -> dict[str, Path]:
    """Where the files of each place that the model names lie, by field; of a hub id in the hub's cache."""
    places = {"model.path": model.path, "model.tokenizer": model.tokenizer, "model.adapter": model.adapter}
    found: dict[str, Path] = {}
    for field, place in places.items():
        if place is None:
            continue
        path = Path(package_files.resolve(place)).expanduser()
        snapshot = path if path.is_dir() else _snapshot(place, model.revision if field != "model.adapter" else None)
        if snapshot is not None:
            found[field] = snapshot
    return found


def _snapshot(hub_id: str, revision: str | None) -> Path | None:
    for name in _NAMES_A_MODEL:
        try:
            file = try_to_load_from_cache(hub_id, name, revision=revision)
        except ValueError:  # no hub id
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None


def _commits(model: Model) -> dict[str, str]:
    return {field: folder.name for field, folder in model_folders(model).items() if folder.parent.name == "snapshots"}


def _git_state() -> tuple[str | None, str | None]:
    """Only a checkout of fmstune itself counts: a wheel inside somebody's repository is not that repository's code."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists() or not (source / "pyproject.toml").exists():
        return None, None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        changes = _git(source, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    digest = hashlib.sha256(changes.encode()).hexdigest() if changes else None
    return commit + ("+changes" if changes else ""), digest


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    return done.stdout.strip()


def _device_names(device: str) -> list[str]:
    if device == "cuda":
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{platform.processor() or platform.machine()}, {hardware.cores()} cores, {sys.platform}"]


def _cuda() -> str:
    cudnn: Any = torch.backends.cudnn  # its functions have no types
    return f"{torch.version.cuda}, cuDNN {cudnn.version()}"


def _cpu() -> str:
    """The processor's name as Linux knows it; elsewhere its family."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: (.+)$", text, flags=re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()
