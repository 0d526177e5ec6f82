#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The proof on a GPU: what runs, how far the plan is off, and how fast it is; goes on after a part that fails.

Writes GPU.json after each item, and GPU.md from it. `--device cpu` runs all of it small, to try the proof itself.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

import gpu_checks
import gpu_speed
from gpu_jobs import Failed, Place, Skipped

SECONDS = 480
AT_ONCE = {"cuda": 5, "cpu": 2}
"""Jobs of the parts that measure no speed that run at the same time."""
PACKAGES = (
    *("fmstune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "hydra-core"),
    *("triton", "bitsandbytes", "liger-kernel", "flash-attn"),
)
TITLES = {"checks": "What runs", "plan": "The plan against the memory allocated", "speed": "Tokens a second"}
Item = tuple[str, str, Callable[[], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=None, help=f"limit of the whole; {SECONDS} on a GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of GPU.json and GPU.md")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="items whose name has one of these words")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tries the proof without one")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_proof_") as folder:
        limit = options.seconds or (SECONDS if options.device == "cuda" else 3600)
        at = Place(options.device, Path(folder), time.monotonic() + limit)
        result = prove(at, options.out / "GPU.json", options.only)
    (options.out / "GPU.md").write_text(page(result), encoding="utf-8")
    print(f"wrote GPU.md and GPU.json in {options.out}")


def prove(at: Place, file: Path, only: list[str] | None) -> dict[str, Any]:
    """Run every item, those that measure speed alone, and write the result after each."""
    begun = time.monotonic()
    result: dict[str, Any] = {**machine(at), "items": []}
    for at_once, items in batches(at):
        chosen = [one for one in items if not only or any(word in one[1] for word in only)]
        with ThreadPoolExecutor(at_once) as pool:
            for done in as_completed([pool.submit(attempt, at, item) for item in chosen]):
                result["items"].append(done.result())
                result["seconds"] = round(time.monotonic() - begun, 1)
                file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
                print(line(result["items"][-1]), flush=True)
    return result


def batches(at: Place) -> Iterator[tuple[int, list[Item]]]:
    """The items in order of worth, and how many of them run at the same time."""
    speeds = [("speed", name, partial(gpu_speed.speed, at, name)) for name in gpu_speed.SPEEDS]
    plans = [("plan", name, partial(gpu_speed.planned, at, name)) for name in gpu_speed.PLANNED]
    # on a CPU there is no bar, so a few show that they run
    plans = plans[:: 1 if at.on_gpu else 4]
    # the model that they share is made once
    gpu_speed.model(at, "llama_1b")
    gpu_speed.model(at, "llama2_7b")
    yield AT_ONCE[at.device], [("checks", one.__name__, partial(one, at)) for one in gpu_checks.CHECKS]
    yield 1, speeds[:1]
    yield AT_ONCE[at.device], plans
    yield 1, speeds[1:]


def attempt(at: Place, item: Item) -> dict[str, Any]:
    """Run one item; what fails is recorded under its name, and the next one runs."""
    part, name, run = item
    begun = time.monotonic()
    if at.left() <= 0:
        return {"part": part, "name": name, "outcome": "not run", "why": "no time was left", "seconds": 0.0}
    try:
        outcome: dict[str, Any] = {"outcome": "passed", "figures": run()}
    except Skipped as err:
        outcome = {"outcome": "skipped", "why": str(err)}
    except Failed as err:
        outcome = {"outcome": "failed", "why": str(err)}
    except Exception as err:  # the proof goes on, and this is named
        outcome = {"outcome": "failed", "why": f"{type(err).__name__}: {err}"}
    return {"part": part, "name": name, **outcome, "seconds": round(time.monotonic() - begun, 1)}


def machine(at: Place) -> dict[str, Any]:
    """What it ran on and with, and which versions are below those that fmstune asks for."""
    found = {name: there for name in PACKAGES if (there := _version(name)) is not None}
    asked = [Requirement(text) for text in requires("fmstune") or () if "extra ==" not in text]
    outside = [f"{one.name} {found[one.name]} ({one.specifier})" for one in asked if _is_outside(one, found)]
    card = torch.cuda.get_device_name() if at.on_gpu else platform.processor() or platform.machine()
    facts = {"device": at.device, "card": card, "cuda": torch.version.cuda, "python": platform.python_version()}
    return {**facts, "versions": found, "outside_the_ranges": outside}


def _is_outside(one: Requirement, found: dict[str, str]) -> bool:
    return one.name in found and not one.specifier.contains(found[one.name].partition("+")[0], prereleases=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def line(item: dict[str, Any]) -> str:
    """One line for the terminal."""
    return f"{item['outcome']:<8} {item['part']}: {item['name']} ({item['seconds']} s) {_said(item)}"


def _said(item: dict[str, Any]) -> str:
    figures = item.get("figures", {})
    shown = ", ".join(
        f"{key} {value:,}"
        if isinstance(value, int)
        else f"{key} {value:.4g}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in figures.items()
    )
    return str(item.get("why", shown)).replace("|", "/").replace("\n", " ")


def page(result: dict[str, Any]) -> str:
    """GPU.md."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    about = [
        "# Proof on a GPU" if result["device"] == "cuda" else "# A trial on a CPU: it proves nothing of a GPU",
        "",
        f"Written by `make gpu-proof` in {result.get('seconds', 0)} s.",
        "",
        f"- card: {result['card']}; CUDA {result['cuda']}",
        f"- Python {result['python']}; {versions}",
        f"- outside the ranges of pyproject.toml: {', '.join(result['outside_the_ranges']) or 'nothing'}",
    ]
    return "\n".join([*about, *(text for part, title in TITLES.items() for text in table(result, part, title))]) + "\n"


def table(result: dict[str, Any], part: str, title: str) -> Iterator[str]:
    """The items of one part as Markdown, in the order in which they ended."""
    items = [item for item in result["items"] if item["part"] == part]
    passed = sum(item["outcome"] == "passed" for item in items)
    yield from ("", f"## {title}", "", f"{passed} of {len(items)} passed.", "")
    yield from ("| what | outcome | figures | seconds |", "| --- | --- | --- | ---: |")
    yield from (f"| {one['name']} | {one['outcome']} | {_said(one)} | {one['seconds']} |" for one in items)


if __name__ == "__main__":
    main()
