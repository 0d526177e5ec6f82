#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Two processes: the time to their first step against bare torchrun, their speed against one; saving and resuming."""

import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pairs
import subjects
from results import Figure, Section, mebibytes, seconds, table
from subjects import Subject

STEPS = 20
"""Of runs that save, or go on from the middle."""
RUNNER = ("-m", "fmstune.runner")
_SHIPPED = Path("package:tiny_llama")


class Run(NamedTuple):
    """A run of fmstune that went well."""

    child: pairs.Child
    summary: dict[str, Any]


def measure(*, quick: bool) -> Section:
    """Ratios of times to the first step and of tokens/s, and the seconds of a checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        # a quick run needs no tokens before, and neither a model in a folder
        subject = Subject(_SHIPPED, place, place / "cache", 8) if quick else subjects.tiny(place, batch=8)
        figures = list(_starts(subject, place, quick=quick))
        if not quick:
            figures += [*_speeds(subject, place), _saving(subject, place), _resuming(subject, place)]
    return Section(
        "Launching",
        "Two processes of `fmstune launcher=ddp` on the CPU against `torchrun --nproc-per-node=2 -m fmstune.runner` "
        "on the same frozen job, and against a minimal SFTTrainer script under torchrun, all with the same tokens "
        "from disk: from the start of the command to the end of the first optimizer step. Tokens/s are those of two "
        "processes with one thread each over one process with two threads and as many rows a step.",
        figures,
    )


def _starts(subject: Subject, place: Path, *, quick: bool) -> Iterator[Figure]:
    """Time from the command to the first step of two processes."""
    words = ["launcher=ddp", "launcher.num_processes=2"]
    folder = place / "run"
    # torchrun first: what its ranks have prepared is known to fmstune
    sides = {"torchrun": partial(_bare, subject, folder, words), "fmstune": partial(_first, subject, folder, words)}
    if not quick:
        sides["script"] = partial(_script, subject, folder)
    made = pairs.rounds(sides, 1 if quick else 5)
    for side, what, bar in (("torchrun", "bare torchrun", 1.15), ("script", "a script under torchrun", None)):
        if side in sides:
            both = [(one["fmstune"], one[side]) for one in made]
            note = f"{seconds([a for a, _ in both])} against {seconds([b for _, b in both])}"
            yield Figure(f"to the first step, over {what}", pairs.spread([a / b for a, b in both]), bar, note)


def _first(subject: Subject, folder: Path, words: Sequence[str]) -> float:
    return _fmstune(subject, folder, *words).child.lines[0]


def _bare(subject: Subject, folder: Path, words: Sequence[str]) -> float:
    """Bare torchrun on the frozen job; composing and freezing it are not counted."""
    _gone(folder)
    job = pairs.run(pairs.fmstune("--cfg", "job", "--resolve", *subjects.words(subject, "full", 1, folder), *words))
    folder.mkdir()
    (folder / "job.yaml").write_text(job.out, encoding="utf-8")
    argv = [*_torchrun(), *RUNNER, str(folder / "job.yaml")]
    return pairs.run(argv, env=_env(subject), watched=folder / "metrics.jsonl").lines[0]


def _script(subject: Subject, folder: Path) -> float:
    _gone(folder)
    argv = [*_torchrun(), *subjects.script("sft", subject, "full", 1, folder)[1:]]
    return pairs.run(argv, env=_env(subject), watched=folder / "steps").lines[0]


def _torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={_free_port()}"]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _speeds(subject: Subject, place: Path) -> Iterator[Figure]:
    """Tokens/s with the same threads in total and the same rows a step."""
    two = ["launcher.num_processes=2", "launcher.threads=1"]
    twice = f"training.per_device_train_batch_size={2 * subject.batch}"
    kinds = {
        "one": ["launcher=local", "launcher.threads=2", twice],
        "DDP": ["launcher=ddp", *two],
        "FSDP rehearsal": ["launcher=fsdp", *two],
    }

    def speed(words: Sequence[str]) -> float:
        return float(_fmstune(subject, place / "run", *words, "training.max_steps=60").summary["tokens_per_second"])

    made = pairs.rounds({name: partial(speed, words) for name, words in kinds.items()}, 5)
    for name in list(kinds)[1:]:
        middle = pairs.spread([one[name] for one in made]).median
        alone = pairs.spread([one["one"] for one in made]).median
        ratio = pairs.spread([one[name] / one["one"] for one in made])
        yield Figure(f"tokens/s of {name}, over one process", ratio, note=f"{middle:,.0f} against {alone:,.0f}")


def _saving(subject: Subject, place: Path) -> Figure:
    """Seconds that a checkpoint adds to a run."""
    folder = place / "run"
    sizes: list[float] = []

    def trained(*words: str) -> float:
        found = _fmstune(subject, folder, *words, f"training.max_steps={STEPS}").summary["train_seconds"]
        sizes.extend(_size(path) for path in folder.glob(f"checkpoint-{STEPS}"))
        return float(found)

    often = ("training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=2")
    made = pairs.interleave(lambda: trained(*often), trained, 5)
    each = pairs.spread([(saving - not_saving) / STEPS for saving, not_saving in made])
    return Figure("seconds of a checkpoint", each, note=f"{mebibytes(sizes)}, on the disk before it has its name")


def _size(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def _resuming(subject: Subject, place: Path) -> Figure:
    """Time from the command to the first step when a run goes on from its middle."""
    folder, kept, middle = place / "run", place / "kept", STEPS // 2
    words = ("training.save_strategy=steps", f"training.save_steps={middle}", f"training.max_steps={STEPS}")
    _fmstune(subject, folder, *words)
    folder.rename(kept)
    # as a run that was killed after its first checkpoint has left it
    shutil.rmtree(kept / "model")
    shutil.rmtree(kept / f"checkpoint-{STEPS}")
    (kept / "summary.json").write_text('{"status": "running"}\n', encoding="utf-8")
    logged = (kept / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:middle]
    (kept / "metrics.jsonl").write_text("".join(logged), encoding="utf-8")

    def resumed() -> float:
        _gone(folder)
        shutil.copytree(kept, folder)
        return _run(subject, folder, *words).child.lines[middle]

    made = pairs.interleave(resumed, lambda: _fmstune(subject, folder, *words).child.lines[0], 5)
    note = f"{seconds([a for a, _ in made])} against {seconds([b for _, b in made])}"
    return Figure(
        "to the first step of a resumed run, over a fresh one", pairs.spread([a / b for a, b in made]), note=note
    )


def _fmstune(subject: Subject, folder: Path, *words: str) -> Run:
    """A fresh run; one step, unless the words say more."""
    _gone(folder)
    return _run(subject, folder, *words)


def _run(subject: Subject, folder: Path, *words: str) -> Run:
    argv = pairs.fmstune(*subjects.words(subject, "full", 1, folder), *words)
    child = pairs.run(argv, env=_env(subject), watched=folder / "metrics.jsonl")
    return Run(child, json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def _env(subject: Subject) -> dict[str, str]:
    """One thread for each process, unless a run is told otherwise."""
    return {"FMSTUNE_CACHE": str(subject.cache), "OMP_NUM_THREADS": "1"}


def _gone(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
