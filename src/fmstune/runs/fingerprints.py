"""`fingerprints.json`: numbers that tell what each module computed in the first steps, and where two runs depart."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.errors import UserError, one_line
from fmstune.files import write_json

FILE = "fingerprints.json"
"""File of a run folder."""
STEPS = 3
"""Steps from the start that are recorded, counted from 0; with a warm-up, the first update may have a rate of 0."""
SAMPLES = 1 << 11
"""Numbers of a tensor that are looked at, at least as far as it has them; more where its last axis is long."""
TOLERANCE = 1e-13
"""Share of the sum of absolute values by which sums of equal numbers may differ, as they may be added in any order."""
_WRAPPERS = ("base_model.model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_layer.", "_orig_mod.")
"""Parts of names that PEFT, FSDP1, a checkpointed block and torch.compile add."""


class Numbers(NamedTuple):
    """What is kept of a tensor, or of several."""

    total: float
    weighted: float
    """The sum weighted by position, which tells numbers that have changed their places."""
    size: float
    """The sum of absolute values, by which the two sums are compared."""
    kind: str
    """Dtype and shape, such as `float32 4x38x64`."""

    def departs(self, other: "Numbers") -> bool:
        """Whether the two are of different tensors."""
        if self.kind != other.kind:
            return True
        scale = TOLERANCE * max(self.size, other.size)
        return not all(_close(one, two, scale) for one, two in zip(self[:3], other[:3], strict=True))


def _close(one: float, other: float, scale: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= scale


@dataclass(frozen=True)
class ModulePrint:
    """One call of a module in a forward pass."""

    module: str
    kind: str
    """Its class."""
    given: Numbers | None
    """The first tensor that it was called with."""
    output: Numbers


@dataclass(frozen=True)
class StepPrint:
    """A step; modules are those of its first batch, in the order in which they ended."""

    step: int
    loss: float | None
    modules: tuple[ModulePrint, ...]
    gradients: Mapping[str, float] = field(default_factory=dict)
    """Norm of the gradients of the weights that belong to a module, as the optimizer takes them."""


class Departure(NamedTuple):
    """The first thing that two runs have computed differently."""

    step: int
    """From 0."""
    module: str
    """Empty where it is not in a module."""
    text: str
    """A sentence about it."""


def write_fingerprints(folder: Path, steps: Sequence[StepPrint], left_out: Sequence[str] = ()) -> None:
    """Write the file; `left_out` says what could not be recorded."""
    found = {"samples": SAMPLES, "steps": [_as_json(step) for step in steps], "left_out": list(left_out)}
    # one line: with line breaks, json writes in Python, which takes longer than all sums of a small model
    write_json(folder / FILE, found, indent=None)


def _as_json(step: StepPrint) -> dict[str, Any]:
    """The fields of the step, with numbers that JSON lacks as text."""
    modules = [
        {"module": one.module, "kind": one.kind, "given": _listed(one.given), "output": _listed(one.output)}
        for one in step.modules
    ]
    gradients = {name: _or_text(norm) for name, norm in step.gradients.items()}
    return {"step": step.step, "loss": _or_text(step.loss), "modules": modules, "gradients": gradients}


def _listed(numbers: Numbers | None) -> list[Any] | None:
    return numbers and [*map(_or_text, numbers[:3]), numbers.kind]


def _or_text(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def read_fingerprints(folder: Path) -> tuple[StepPrint, ...]:
    """Read the file; without one, or with other samples, nothing. Raises UserError for a file that no run writes."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        steps = tuple(_step(one) for one in found["steps"])
        return steps if found.get("samples") == SAMPLES else ()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise UserError(str(path), f": cannot be read ({one_line(err)}); correct or remove the file") from err


def _step(found: Mapping[str, Any]) -> StepPrint:
    modules = tuple(
        ModulePrint(one["module"], one["kind"], one["given"] and _numbers(one["given"]), _numbers(one["output"]))
        for one in found["modules"]
    )
    loss = None if found["loss"] is None else float(found["loss"])
    return StepPrint(found["step"], loss, modules, {name: float(one) for name, one in found["gradients"].items()})


def _numbers(found: Sequence[Any]) -> Numbers:
    total, weighted, size, kind = found
    return Numbers(float(total), float(weighted), float(size), str(kind))


def first_departure(a: Sequence[StepPrint], b: Sequence[StepPrint]) -> Departure | None:
    """Return the first thing in which two runs differ; None where nothing that both have recorded does.

    A module is named where its output differs and its input does not: what it computed by itself departs.
    """
    for one, other in zip(a, b, strict=False):
        found = next(_departures(one, other), None)
        if found is not None:
            return found
    return None


def _departures(a: StepPrint, b: StepPrint) -> Iterator[Departure]:
    """Yield what departs in a step, the first thing first."""
    pairs = _paired(a.modules, b.modules)
    first = next((pair for pair in pairs if pair[0].given is not None), None)
    if first is not None and _differ(first[0].given, first[1].given):
        what = f"its first batch holds other tokens ({_kinds(first[0].given, first[1].given)})"
        yield Departure(a.step, "", f"step {a.step}: {what}")
    for one, other in pairs:
        if one.output.departs(other.output) and not _differ(one.given, other.given):
            name = f"{one.module} ({one.kind}{'' if one.kind == other.kind else f', in B {other.kind}'})"
            why = _cause(a.step, one, other)
            yield Departure(a.step, one.module, f"step {a.step}: the output of {name} departs; {why}")
    if a.loss is not None and b.loss is not None and not _close(a.loss, b.loss, TOLERANCE * abs(a.loss)):
        yield Departure(a.step, "", f"step {a.step}: the loss departs ({a.loss:.9g} and {b.loss:.9g}), no module does")
    names = {_plain(name): norm for name, norm in b.gradients.items()}
    # the backward pass comes from the end
    for name, norm in reversed(list(a.gradients.items())):
        if (other_norm := names.get(_plain(name))) is not None and not _close(norm, other_norm, TOLERANCE * norm):
            norms = f"norm {norm:.9g} and {other_norm:.9g}"
            yield Departure(a.step, name, f"step {a.step}: the gradient of {name} departs ({norms}), no output does")


def _cause(step: int, one: ModulePrint, other: ModulePrint) -> str:
    if one.output.kind != other.output.kind:
        return _kinds(one.output, other.output)
    change = abs(one.output.weighted - other.output.weighted) / max(one.output.size, other.output.size, 1e-300)
    by = f"its input does not, and {'its weights or its code differ' if step == 0 else 'its weights differ by now'}"
    return f"{by} (by {change:.1e} of its size)"


def _kinds(one: Numbers | None, other: Numbers | None) -> str:
    kinds = [numbers.kind if numbers else "none" for numbers in (one, other)]
    return f"{kinds[0]} in A and {kinds[1]} in B" if kinds[0] != kinds[1] else kinds[0]


def _differ(one: Numbers | None, other: Numbers | None) -> bool:
    return one.departs(other) if one is not None and other is not None else one is not other


def _paired(a: Sequence[ModulePrint], b: Sequence[ModulePrint]) -> list[tuple[ModulePrint, ModulePrint]]:
    """The calls that both have, in the order of the first; the second call of a module pairs with the second."""
    known = dict(_named(b))
    return [(one, known[name]) for name, one in _named(a) if name in known]


def _named(calls: Sequence[ModulePrint]) -> Iterator[tuple[tuple[str, int], ModulePrint]]:
    seen: dict[str, int] = {}
    for call in calls:
        name = _plain(call.module)
        seen[name] = seen.get(name, -1) + 1
        yield (name, seen[name]), call


def _plain(module: str) -> str:
    """The name of a module without what wraps it."""
    name = f"{module}."
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name.removesuffix(".")
