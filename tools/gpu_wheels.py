#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Gathers the wheels of the proof on a GPU into a folder: all but torch and what comes with it."""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("transformers", "trl", "peft", "accelerate", "datasets", "hydra-core", "omegaconf", "antlr4-python3-runtime"),
    *("dill", "multiprocess", "filelock", "jinja2"),
)
"""What the proof needs beside torch, numpy, pyarrow, matplotlib, safetensors and tokenizers, as it is pinned."""
NEWEST = ("bitsandbytes", "liger-kernel")
"""Extras for a GPU, which constraints.txt does not pin."""
MEBIBYTES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "wheels")
    parser.add_argument("--python", default="3.12", help="version of Python that installs them")
    parser.add_argument("--cuda", default="130", help="CUDA of its torch, as bitsandbytes names its libraries")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("*.whl"):
        old.unlink()
    download(options.folder, options.python)
    for wheel in options.folder.glob("bitsandbytes-*.whl"):
        thin(wheel, f"libbitsandbytes_cuda{options.cuda}.so")
    size = sum(wheel.stat().st_size for wheel in options.folder.glob("*.whl")) / 2**20
    print(f"{len(list(options.folder.glob('*.whl')))} wheels, {size:.1f} MiB in {options.folder}")
    if size > MEBIBYTES:
        sys.exit(f"the wheels are larger than {MEBIBYTES} MiB")


def download(folder: Path, python: str) -> None:
    """Download the packages and build fmstune's own wheel; what has no wheel is built from its source."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    wanted = [line for line in pins if line.partition("==")[0].replace("_", "-") in PACKAGES]
    platforms = [f"--platform=manylinux_2_{number}_x86_64" for number in (17, 24, 27, 28)]
    binary = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    source = [line for line in wanted if line.startswith("antlr4")]
    pip("download", "--no-deps", *binary, "-d", folder, *(line for line in wanted if line not in source), *NEWEST)
    pip("wheel", "--no-deps", "-w", folder, *source)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)


def pip(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", *map(str, words), "-q"], check=True)


def thin(wheel: Path, library: str) -> None:
    """Leave out the compiled libraries for every other CUDA, ROCm and XPU."""
    aside = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as thinned:
        kept = [one for one in whole.infolist() if not one.filename.endswith(".so") or library in one.filename]
        if not any(library in one.filename for one in kept):
            sys.exit(f"{wheel.name} has no {library}")
        for one in kept:
            thinned.writestr(one, whole.read(one))
    aside.replace(wheel)


if __name__ == "__main__":
    main()
