"""`fmstune doctor`: what is installed, what can compute, which extras work and why others do not."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from fmstune import __version__, cache
from fmstune.hardware import cores
from fmstune.tables import show_plain_characters

CORE = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "hydra-core", "omegaconf", "safetensors")
EXTRAS = {
    "flash-attn": ("flash_attn",),
    "fms": ("fms.models",),
    "liger": ("liger_kernel",),
    "quant": ("bitsandbytes",),
    "eval": ("lm_eval.evaluator",),
    **{name: (name,) for name in ("aim", "tensorboard", "mlflow", "wandb", "trackio")},
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "chat": ("prompt_toolkit",),
    "gguf": ("gguf",),
    "sweep": ("optuna", "hydra_plugins.hydra_joblib_launcher"),
}
"""Each extra, and the modules whose import shows that it works."""


def doctor_lines() -> Iterator[str]:
    """The lines that `fmstune doctor` prints."""
    yield f"fmstune {__version__}, Python {platform.python_version()}, {platform.platform()}"
    for part in (_versions(), _devices(), _extras()):
        yield from ("", *part)
    yield f"\ncache     {cache.place()}, {cache.size() / 2**20:,.1f} MiB (fmstune doctor --clear-cache deletes it)"


def _versions() -> Iterator[str]:
    for name in CORE:
        try:
            yield f"{name:<14}{metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name:<14}missing: pip install {name}"


def _devices() -> Iterator[str]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield f"cpu       {cores()} cores, {memory:,.1f} GiB, OMP_NUM_THREADS {threads}"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield f"cuda      none found (torch is built {f'for CUDA {built}' if built else 'without CUDA'})"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield f"cuda:{index}    {properties.name}, {properties.total_memory / 2**30:,.1f} GiB, {bf16}"
    yield f"disk      {shutil.disk_usage('.').free / 2**30:,.1f} GiB free here"


def _extras() -> Iterator[str]:
    for extra, modules in EXTRAS.items():
        try:
            for module in modules:
                importlib.import_module(module)
        except Exception as err:  # an installed extra can fail in any way on import; say how
            missing = isinstance(err, ModuleNotFoundError)
            hint = f"pip install 'fmstune[{extra}]'" if missing else "installed, but broken"
            yield f"{extra:<12}does not work: {str(err) or type(err).__name__} ({hint})"
        else:
            yield f"{extra:<12}works"


def main() -> None:
    show_plain_characters()
    if "--clear-cache" in sys.argv:
        print(f"deleted {cache.clear() / 2**20:,.1f} MiB of tokenised data in {cache.place()}")
    else:
        print("\n".join(doctor_lines()))


if __name__ == "__main__":
    main()
