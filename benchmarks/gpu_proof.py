#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The proof on a GPU: what runs, how far the plan is off, and how fast it is; goes on after a part that fails.

Writes GPU.json and GPU.md after each item. `--device cpu` runs all of it small, to try the proof itself.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.requirements import Requirement

import gpu_checks
import gpu_speed
from gpu_jobs import Failed, OutOfTime, Place, Skipped

SECONDS = 480
AT_ONCE = {"cuda": 8, "cpu": 2}
"""Jobs of the parts that measure no speed that run at the same time."""
PACKAGES = (
    *("fmstune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "hydra-core"),
    *("triton", "bitsandbytes", "liger-kernel", "flash-attn"),
)
ONLY = "items with one of these words in `PART: NAME`; the others of GPU.json stay if the machine is the same"
TITLES = {"checks": "What runs", "plan": "The plan against the memory allocated", "speed": "Tokens a second"}
Item = tuple[str, str, Callable[[], dict[str, Any]]]


class Batch(NamedTuple):
    """Items that run at the same time, after those of the batch before."""

    at_once: int
    items: Sequence[Item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=None, help=f"limit of the whole; {SECONDS} on a GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of GPU.json and GPU.md")
    parser.add_argument("--only", nargs="*", metavar="WORD", help=ONLY)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tries the proof without one")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_proof_") as folder:
        limit = options.seconds or (SECONDS if options.device == "cuda" else 3600)
        at = Place(options.device, Path(folder), time.monotonic() + limit)
        prove(at, options.out, options.only)
    print(f"wrote GPU.md and GPU.json in {options.out}")


def prove(at: Place, out: Path, only: Sequence[str] | None) -> None:
    """Run the items, those that measure speed alone, and write the result after each."""
    begun, facts = time.monotonic(), machine(at)
    items = earlier(out / "GPU.json", facts) if only else []
    chosen = [Batch(many, [one for one in some if is_chosen(one, only)]) for many, some in batches(at)]
    parts = {part for batch in chosen for part, _, _ in batch.items}
    for number, batch in enumerate(chosen):
        with ThreadPoolExecutor(batch.at_once) as pool:
            if number == 0:
                # an item whose model could not be made says so itself
                _ = [
                    pool.submit(gpu_speed.model, at, shape) for part, shape in gpu_speed.MODELS.items() if part in parts
                ]
            for done in as_completed([pool.submit(attempt, at, item) for item in batch.items]):
                made = done.result()
                items = [*(one for one in items if key(one) != key(made)), made]
                write({**facts, "items": items, "seconds": round(time.monotonic() - begun, 1)}, out)
                print(line(made), flush=True)


def is_chosen(item: Item, only: Sequence[str] | None) -> bool:
    """Whether an item is to run."""
    return not only or any(word in f"{item[0]}: {item[1]}" for word in only)


def key(item: Mapping[str, Any]) -> tuple[str, str]:
    """The part and the name of an item, which no other has."""
    return item["part"], item["name"]


def earlier(file: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items of an earlier call on the same machine with the same versions."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return list(found["items"]) if facts == {key: found.get(key) for key in facts} else []


def write(result: dict[str, Any], out: Path) -> None:
    """Write GPU.json and GPU.md."""
    (out / "GPU.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "GPU.md").write_text(page(result), encoding="utf-8")


def batches(at: Place) -> Iterator[Batch]:
    """The items in order of worth."""
    speeds = [("speed", name, partial(gpu_speed.speed, at, name)) for name in gpu_speed.SPEEDS]
    plans = [("plan", name, partial(gpu_speed.planned, at, name)) for name in gpu_speed.PLANNED]
    # on a CPU there is no bar, so a few show that they run
    plans = plans[:: 1 if at.on_gpu else 4]
    yield Batch(AT_ONCE[at.device], [("checks", one.__name__, partial(one, at)) for one in gpu_checks.CHECKS])
    yield Batch(1, speeds[:1])
    yield Batch(AT_ONCE[at.device], plans)
    yield Batch(1, speeds[1:])


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
        said = "not run" if isinstance(err, OutOfTime) else "failed"
        outcome = {"outcome": said, "why": str(err), **({"figures": err.figures} if err.figures else {})}
    except Exception as err:  # the proof goes on, and this is named
        outcome = {"outcome": "failed", "why": f"{type(err).__name__}: {err}"}
    return {"part": part, "name": name, **outcome, "seconds": round(time.monotonic() - begun, 1)}


def machine(at: Place) -> dict[str, Any]:
    """What it ran on and with, and which versions are below those that fmstune asks for."""
    found = {name: there for name in PACKAGES if (there := _version(name)) is not None}
    asked = [Requirement(text) for text in requires("fmstune") or () if "extra ==" not in text]
    outside = [text for one in asked if (text := _outside(one))]
    card = torch.cuda.get_device_name() if at.on_gpu else platform.processor() or platform.machine()
    facts = {"device": at.device, "card": card, "cuda": torch.version.cuda, "python": platform.python_version()}
    return {**facts, "versions": found, "outside_the_ranges": outside}


def _outside(one: Requirement) -> str | None:
    """A package with its version and the range that this is outside of; None where it is within it."""
    there = _version(one.name)
    if there is None:
        return f"{one.name} is not installed"
    within = one.specifier.contains(there.partition("+")[0], prereleases=True)
    return None if within else f"{one.name} {there} ({one.specifier})"


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
    said = ": ".join(text for text in (item.get("why"), shown) if text)
    return said.replace("|", "/").replace("\n", " ")


def page(result: dict[str, Any]) -> str:
    """GPU.md."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    about = [
        "# Proof on a GPU" if result["device"] == "cuda" else "# A trial on a CPU: it proves nothing of a GPU",
        "",
        f"Written by `make gpu-proof` in {result.get('seconds', 0)} s.",
        "",
        f"- card: {result['card']}; CUDA {result['cuda']}",
        *(["- small shapes, and without Liger, whose kernels need CUDA"] if result["device"] == "cpu" else []),
        f"- Python {result['python']}; {versions}",
        f"- outside the ranges of pyproject.toml: {', '.join(result['outside_the_ranges']) or 'nothing'}",
    ]
    return "\n".join([*about, *(text for part, title in TITLES.items() for text in table(result, part, title))]) + "\n"


def table(result: dict[str, Any], part: str, title: str) -> Iterator[str]:
    """The items of one part as Markdown, in the order in which they ended."""
    items = [item for item in result["items"] if item["part"] == part]
    outcomes = Counter(item["outcome"] for item in items)
    passed, others = outcomes.pop("passed", 0), ", ".join(f"{count} {name}" for name, count in outcomes.items())
    yield from ("", f"## {title}", "", f"{passed} of {len(items)} passed{f' ({others})' if others else ''}.", "")
    yield from ("| what | outcome | figures | seconds |", "| --- | --- | --- | ---: |")
    yield from (f"| {one['name']} | {one['outcome']} | {_said(one)} | {one['seconds']} |" for one in items)


if __name__ == "__main__":
    main()
