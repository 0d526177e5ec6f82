#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Pairs of runs with eight changed fields, of which one or two matter: whether `fmstune bisect` names exactly these.

`python benchmarks/planted_causes.py FOLDER` keeps its runs in FOLDER and goes on there.
"""

import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import stdev
from typing import NamedTuple

import yaml

import pairs
from results import Figure, Section, table

PAIRS, FIELDS, MAX_RUNS = 20, 8, 10
STEPS = 12
MATTER = {
    "learning_rate": {"training.learning_rate": 2e-2},
    "lora_alpha": {"peft.lora_alpha": 2},
    "target_modules": {"peft.target_modules": ["q_proj"]},
    "gradient_accumulation_steps": {"training.gradient_accumulation_steps": 1},
    "optim": {"training.optim": "adafactor"},
    "lr_scheduler_type": {"training.lr_scheduler_type": "linear"},
    "warmup_steps": {"training.warmup_steps": 0.9},
    "response_template": {"data.format.response_template": None},
    "max_steps": {"training.max_steps": 6},
    "max_rows": {"data.max_rows": 16},
    "method": {"peft": {"_target_": "fmstune.models.adapters.full"}},
}
"""Changes that may matter, with their values in B; which of them do is measured."""
HARMLESS = {
    "training.logging_steps": 5,
    "training.logging_first_step": True,
    "training.save_total_limit": 3,
    "training.dataloader_num_workers": 1,
    "training.adam_epsilon": 1e-7,
    "training.weight_decay": 0.001,
    "training.max_grad_norm": 1.01,
    "training.adam_beta2": 0.9985,
    "training.warmup_steps": 0.05,
    "training.per_device_eval_batch_size": 8,
    "evaluation.batch_size": 40,
    "evaluation.max_new_tokens": 2,
    "peft.lora_dropout": 0.045,
    "data.max_length": 250,
    "data.buffer_size": 500,
    "data.row_losses": False,
    "name": "other",
}
"""Changes that do not matter, or by less than a seed does."""
A = {
    "peft": "lora",
    "training.max_steps": STEPS,
    "training.save_strategy": "no",
    "evaluation.base": False,
    "evaluation.max_new_tokens": 1,
    "evaluation.batch_size": 60,
    "launcher.device": "cpu",
    "launcher.threads": 1,
}
SURE = 4.0
"""Standard deviations between seeds by which a change must matter, without the others and besides them."""
LEAST = 0.2
"""Share of the difference that each of two must make, too."""


class Planted(NamedTuple):
    """One pair."""

    causes: tuple[str, ...]
    """Of `MATTER`."""
    changes: dict[str, object]
    """All changed fields with their values in B."""


class Outcome(NamedTuple):
    """What a bisection of a pair has named, and in how many runs."""

    right: bool
    runs: int


def measure(*, quick: bool, place: Path | None = None) -> Section:
    """Plant the pairs, bisect each, and count."""
    count = 1 if quick else PAIRS
    with tempfile.TemporaryDirectory() as name:
        folder = (place or Path(name)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        planted = _plant(folder, count, quick=quick)
        _train(folder / "pairs", {"a": {}, **{f"pair-{number}": one.changes for number, one in enumerate(planted)}})
        outcomes = [_bisect(folder, number, one) for number, one in enumerate(planted)]
    shown = ", ".join("+".join(one.causes) for one in planted)
    wrong = [
        f"{number} ({'+'.join(one.causes)})"
        for number, (one, made) in enumerate(zip(planted, outcomes, strict=True))
        if not made.right
    ]
    return Section(
        "Planted causes",
        f"{count} pairs of runs with LoRA on the shipped model, {STEPS} steps, {FIELDS} changed fields, of which one "
        f"or two matter, as runs with each of them alone have shown: {shown}. Wrong: {', '.join(wrong) or 'none'}.",
        [
            Figure(
                "pairs of which exactly the planted causes are named", _total(outcomes), 0.95 * count, at_least=True
            ),
            Figure("runs of a bisection", pairs.spread([one.runs for one in outcomes])),
            Figure("most runs of a bisection", pairs.spread([max(one.runs for one in outcomes)]), MAX_RUNS),
        ],
    )


def _total(outcomes: Sequence[Outcome]) -> pairs.Spread:
    number = sum(one.right for one in outcomes)
    return pairs.Spread(number, number, number, len(outcomes))


def _plant(place: Path, count: int, *, quick: bool) -> list[Planted]:
    """Draw the pairs, half of them with two causes, from what is measured to matter."""
    names = ["learning_rate", "max_steps"] if quick else list(MATTER)
    jobs: dict[str, Mapping[str, object]] = {"a": {}, "seed-43": {"seed": 43}, "seed-44": {"seed": 44}}
    jobs |= {name: MATTER[name] for name in names}
    jobs |= {"+".join(two): {**MATTER[two[0]], **MATTER[two[1]]} for two in _compatible(names)}
    losses = _train(place / "alone", jobs)
    noise = stdev([losses["a"], losses["seed-43"], losses["seed-44"]])
    single = [(name,) for name in names if abs(losses[name] - losses["a"]) > SURE * noise]
    double = [two for two in _compatible(names) if _both_matter(losses, two, noise)]
    chance = random.Random(0)
    drawn = [chance.choice(single if number % 2 == 0 else double) for number in range(count)]
    return [Planted(causes, _with_harmless(causes, chance)) for causes in drawn]


def _compatible(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of changes that can be in one job; full tuning has no fields of LoRA."""
    of_lora = {"lora_alpha", "target_modules"}
    return [two for two in combinations(names, 2) if not ("method" in two and of_lora & {*two})]


def _both_matter(losses: Mapping[str, float], two: tuple[str, str], noise: float) -> bool:
    """Whether the pair differs from A, and from each of the two alone, which is then no whole cause."""
    both, whole = losses["+".join(two)], abs(losses["+".join(two)] - losses["a"])
    least = max(SURE * noise, LEAST * whole)
    return whole > SURE * noise and all(abs(losses[one] - both) > least for one in two)


def _with_harmless(causes: Sequence[str], chance: random.Random) -> dict[str, object]:
    changes = {field: value for cause in causes for field, value in MATTER[cause].items()}
    others = [field for field in HARMLESS if field not in changes and not ("peft" in changes and "peft." in field)]
    return changes | {field: HARMLESS[field] for field in chance.sample(others, FIELDS - len(causes))}


def _train(place: Path, jobs: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    """Train each job as a point of one sweep, unless that was done; the held-out losses by name, as the folders."""
    missing = {name: changes for name, changes in jobs.items() if not (place / name / "summary.json").is_file()}
    if missing:
        group = place / "conf" / "experiment"
        group.mkdir(parents=True, exist_ok=True)
        for name, changes in missing.items():
            (group / f"{_slug(name)}.yaml").write_text(_experiment(changes), encoding="utf-8")
        points = ",".join(map(_slug, missing))
        flags = ("-m",) if len(missing) > 1 else ()
        sweep = place / f"sweep-{len(list(place.glob('sweep-*')))}"
        words = (*flags, f"--config-dir={place / 'conf'}", f"experiment={points}", f"output_dir={sweep}")
        pairs.run(pairs.fmstune(*words), env={"FMSTUNE_CACHE": str(place.parent / "cache")})
        for name in missing:
            run = sweep if len(missing) == 1 else next(sweep.glob(f"*-experiment={_slug(name)}"))
            run.rename(place / name)
    return {name: _loss(place / name) for name in jobs}


def _slug(name: str) -> str:
    return name.replace("+", "__")


def _experiment(changes: Mapping[str, object]) -> str:
    """A file of the group `experiment` with A and these changes."""
    fields, choices = {**A, **changes}, list[dict[str, object]]()
    method = fields.pop("peft")
    if isinstance(method, dict):
        fields = {name: value for name, value in fields.items() if not name.startswith("peft.")}
        fields["training.learning_rate"] = fields.get("training.learning_rate", 5e-3)
    choices.append({"override /peft": "full" if isinstance(method, dict) else method})
    tree: dict[str, object] = {"defaults": choices}
    for name, value in fields.items():
        inner = tree
        *above, last = name.split(".")
        for key in above:
            inner = inner.setdefault(key, {})  # type: ignore[assignment]
        inner[last] = value
    return "# @package _global_\n" + yaml.safe_dump(tree, sort_keys=False)


def _loss(run: Path) -> float:
    found: float = json.loads((run / "summary.json").read_text())["tuned"]["eval_loss"]
    return found


def _bisect(place: Path, number: int, planted: Planted) -> Outcome:
    runs = (str(place / "pairs" / "a"), str(place / "pairs" / f"pair-{number}"))
    words = ("bisect", *runs, "--json", f"--max_runs={MAX_RUNS}", f"--out={place / f'bisect-{number}'}")
    done = pairs.run(pairs.fmstune(*words), env={"FMSTUNE_CACHE": str(place / "cache")})
    found = json.loads(done.out)
    named = {field for name in found.get("causes", ()) for field in found["differences"][name]}
    wanted = {field for cause in planted.causes for field in MATTER[cause]}
    # another method is one unit of all its fields
    named = {"peft" if "peft" in wanted and field.startswith("peft.") else field for field in named}
    outcome = Outcome(named == wanted, found["runs"])
    print(number, *planted.causes, "->", *sorted(named), *outcome, file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:] if not word.startswith("--")]
    print(table(measure(quick="--quick" in sys.argv, place=given[0] if given else None)))
