"""`lock.json`: the facts that a rerun needs to get the same result."""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from fmstune import __version__, cache, hardware, ranks
from fmstune.config.choices import BITSANDBYTES, Attention, Backend, Kernels
from fmstune.config.job import Job, Model, sources
from fmstune.data.locate import local_files
from fmstune.errors import UserError, without_secrets
from fmstune.files import resolve, sha256_of, user_path, write_aside, write_json
from fmstune.runs import learning_rate, run_folder

PACKAGES = (
    *("accelerate", "datasets", "huggingface-hub", "hydra-core", "jinja2", "numpy", "omegaconf", "peft", "pyarrow"),
    *("safetensors", "tokenizers", "torch", "transformers", "trl"),
)
"""Packages that every run uses; `extras` adds those of one job."""

ENVIRONMENT = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES"),
    *("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "MKL_CBWR", "MKL_NUM_THREADS", "NCCL_ALGO", "NCCL_PROTO"),
    *("NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONHASHSEED", "PYTORCH_ALLOC_CONF"),
    *("PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
"""Variables that are recorded: no others are, so no secret can be among them."""

_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of files that make a model, an adapter or a tokenizer."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SMALL = 1_000_000
"""Bytes of a file that is hashed faster than looked up."""


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
    """sha256 of the changes since that commit; null where there are none."""
    command: str | None
    """The typed command without passwords in addresses; null where the runner was started by hand."""
    seed: int
    device: str
    device_names: list[str]
    threads: int
    processes: int
    """Processes that train together."""
    cpu: str
    cpu_capability: str
    """Instructions that torch uses, such as `AVX2`, which change how sums are rounded."""
    cuda: str | None
    """CUDA's version that torch was built with, and cuDNN's; null on another device."""
    environment: dict[str, str]
    """The variables of `ENVIRONMENT` that are set."""
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
    learning_rate: dict[str, Any] | None = None
    """The choice of `training.learning_rate=auto`: the rate, its interval and its probes; null where it was given."""
    data_files: dict[str, dict[str, str]] | None = None
    """sha256 of each data file by field and name; null until they are hashed."""
    model_files: dict[str, dict[str, str]] | None = None
    """sha256 of each file of the model, its tokenizer and its former adapter, by field; null until then."""


@functools.cache
def _installed_version(name: str) -> str:
    """Of a distribution; to read one takes a millisecond, and a process of a sweep records them for each point."""
    return version(name)


def collect_lock(job: Job, *, device: str, model_config: str, command: str | None, data: Mapping[str, Any]) -> Lock:
    """The facts of this process; `data` has the fields `data_hashes`, `data_rows` and `tokens`."""
    commit, changes = _git_state()
    cudnn: Any = torch.backends.cudnn  # its functions have no types
    return Lock(
        fmstune=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _installed_version(name) for name in (*PACKAGES, *extras(job))},
        git_commit=commit,
        git_changes=changes,
        command=None if command is None else without_secrets(command),
        seed=job.seed,
        device=device,
        device_names=_device_names(device),
        threads=torch.get_num_threads(),
        processes=ranks.here().processes,
        cpu=_cpu(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cuda=f"{torch.version.cuda}, cuDNN {cudnn.version()}" if device == "cuda" else None,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        model_config_hash=hashlib.sha256(model_config.encode()).hexdigest(),
        model_commits=_commits(job.model),
        learning_rate=dict(learning_rate.read_choice(Path(str(job.output_dir)))) or None,
        **data,
    )


def extras(job: Job) -> list[str]:
    """Installed packages that only some jobs use, and this one does."""
    targets = " ".join(str(one["_target_"]) for one in job.tracking.values())
    trackers = ("aim", "mlflow-skinny", "tensorboard", "trackio", "wandb")
    used = {
        "bitsandbytes": job.model.quantization is not None or job.training.get("optim") in BITSANDBYTES,
        "liger-kernel": job.model.kernels is Kernels.liger,
        "flash-attn": job.model.attention is Attention.flash_attention_2,
        "ibm-fms": job.model.backend is Backend.fms,
        **{name: f".{name.partition('-')[0]}." in targets for name in trackers},
    }
    return [name for name, is_used in used.items() if is_used and any(distributions(name=name))]


class LockWriter:
    """`lock.json` of a run folder: written at once, and again when the files of model and data are hashed.

    A thread hashes them, so that no step waits: 540 MB take 2 seconds of a core if the cache has no hashes of them.
    """

    def __init__(self, job: Job, folder: Path, lock: Lock) -> None:
        self._job, self._file, self._content = job, folder / run_folder.PROVENANCE, dataclasses.asdict(lock)
        write_json(self._file, self._content)
        self._thread = threading.Thread(target=self._hash_files, name="file-hashes", daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, Any]:
        """Wait for the hashes; returns the content of the file."""
        self._thread.join()
        return self._content

    def _hash_files(self) -> None:
        try:
            self._content |= {"data_files": data_files(self._job), "model_files": model_files(self._job.model)}
            write_json(self._file, self._content)
        except (OSError, UserError) as err:
            # such as a file that was removed meanwhile: the run does not need it any more
            print(f"fmstune: note: lock.json lacks hashes of files: {err}", file=sys.stderr, flush=True)


def data_files(job: Job) -> dict[str, dict[str, str]]:
    """The hashes of the data files by field; streamed ones are not read for that, and hub ids have none."""
    found: dict[str, dict[str, str]] = {}
    for part in ("train", "eval"):
        for name, source in sources(job.data, part).items():
            if part == "eval" or not job.data.streaming:
                field = f"data.{part}.{name}" if name else f"data.{part}"
                files = local_files(source.path, field)
                # names alone, as folders differ between machines; whole paths where two files have one name
                are_distinct = len({path.name for path in files}) == len(files)
                found[field] = {path.name if are_distinct else str(path): hash_file(path) for path in files}
    if job.data.quarantine is not None:
        path = user_path(job.data.quarantine)
        found["data.quarantine"] = {path.name: hash_file(path)}
    return found


def model_files(model: Model) -> dict[str, dict[str, str]]:
    """The hashes of the files in each folder of the model, by field; a field whose folder is not here is left out."""
    return {
        field: {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.suffix in _OF_A_MODEL and path.is_file() and not path.name.startswith(".")
        }
        for field, folder in model_folders(model).items()
    }


def hash_file(path: Path) -> str:
    """Return the SHA-256, from the cache if path, size and time are known; raises OSError for an unreadable file."""
    found = path.stat()
    if _DIGEST.fullmatch(path.resolve().name):
        # a large file in the hub's cache is named by its digest (huggingface_hub: an LFS blob's etag)
        return path.resolve().name
    if found.st_size < _SMALL:
        return sha256_of(path)
    facts = [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    # in the folder of the tokens, so that both are cleared together
    known = cache.place() / "tokenized" / f".hash-{name}"
    with suppress(OSError):
        if _DIGEST.fullmatch(digest := known.read_text(encoding="ascii")):
            return digest
    digest = sha256_of(path)
    with suppress(OSError):  # a read-only cache
        known.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(known) as aside:
            aside.write_text(digest, encoding="ascii")
    return digest


def hash_weights(folder: Path) -> dict[str, str]:
    """Return the digests of a model's or an adapter's weight files by name."""
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.safetensors"))}


def model_folders(model: Model) -> dict[str, Path]:
    """Where the files of each place that the model names lie, by field; of a hub id in the hub's cache."""
    places = {"model.path": model.path, "model.tokenizer": model.tokenizer, "model.adapter": model.adapter}
    found: dict[str, Path] = {}
    for field, place in places.items():
        if place is None:
            continue
        path = user_path(resolve(place))
        if path.is_dir():
            found[field] = path
            continue
        revision = model.revision if field != "model.adapter" else None
        with suppress(OSError, ValueError):  # not in the cache, or not a hub id
            found[field] = Path(snapshot_download(place, revision=revision, local_files_only=True))
    return found


def _commits(model: Model) -> dict[str, str]:
    return {field: folder.name for field, folder in model_folders(model).items() if folder.parent.name == "snapshots"}


def _git_state() -> tuple[str | None, str | None]:
    """Only a checkout of fmstune itself counts: a wheel inside somebody's repository is not that repository's code."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists() or not (source / "pyproject.toml").exists():
        return None, None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(source), *words], check=True, capture_output=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("diff", "HEAD"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    digest = hashlib.sha256(changes).hexdigest() if changes else None
    return commit.decode() + ("+changes" if changes else ""), digest


def _device_names(device: str) -> list[str]:
    if device == "cuda":
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{platform.processor() or platform.machine()}, {hardware.cores()} cores, {sys.platform}"]


def _cpu() -> str:
    """The processor's name as Linux knows it; elsewhere its family."""
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    named = re.search(r"^model name\s*: (.+)$", text, flags=re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()
