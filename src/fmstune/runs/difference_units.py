"""What differs between two jobs, in units that can be changed one by one, each from its value in A to that in B."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.config.freeze import with_value
from fmstune.config.job import SFT
from fmstune.runs.report.cells import show_value

Tree = Mapping[str, Any]
ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "ABSENT"})()
"""The value of a field that one of two jobs does not have."""
_SEEDS = ("seed", "training.data_seed")
"""Fields that only draw other random numbers."""
_NEVER = re.compile(
    r"name|output_dir|compare_by|direction|(tracking|sweep)(\..*)?|data\.row_losses"
    r"|launcher\.(device_gib|device_tflops|price_per_hour|main_process_(ip|port)|machine_rank|rdzv_timeout|slurm.*)"
    r"|training\.(report_to|disable_tqdm|push_to_hub|hub_\w+|log_\w+|project|trackio_\w+|resume)"
)
"""Fields that neither a weight nor the number that compares runs depends on."""
_SAVING = re.compile(r"training\.(logging_(steps|strategy|first_step|dir)|save_(?!only_model_at_end)\w+)")
"""The same, unless something looks at what was logged or saved."""
_LOADING = re.compile(r"training\.dataloader_(num_workers|pin_memory|prefetch_factor|persistent_workers)")
"""The same, unless rows are streamed, which workers share out: a map-style order is drawn in the main process."""
_ANSWERS = re.compile(r"evaluation\.(base|sample|max_new_tokens)")
"""The same, where runs are compared by a loss and the held-out rows draw no random numbers."""
_MODEL = r"model\.(path|revision|tokenizer|architecture|layer_cls|lora_targets|special_tokens)(\..*)?"
_BATCH = r"training\.(per_device_train_batch_size|gradient_accumulation_steps)"
_COUPLED: tuple[tuple[str, str, str], ...] = (
    ("model", r"model\.path", rf"{_MODEL}|peft\.target_modules|launcher\.transformer_layer_cls_to_wrap"),
    ("model.lora_targets", r"model\.lora_targets", r"model\.lora_targets|peft\.target_modules"),
    ("peft", r"peft\._target_", r"peft\..*"),
    ("objective", r"objective\._target_", r"objective\..*|data\.format(\..*)?"),
    ("data.format", r"data\.format\._target_", r"data\.(format\..*|train|eval)(\..*)?"),
    ("launcher", r"launcher\.(strategy|num_processes|num_machines)", r"launcher\.(?!threads).*"),
    ("rows of an update", _BATCH, _BATCH),
    ("training.max_steps", r"training\.max_steps", r"training\.(max_steps|num_train_epochs)"),
    ("training.optim", r"training\.optim", r"training\.optim(_args)?"),
    ("training.lr_scheduler_type", r"training\.lr_scheduler_type", r"training\.lr_scheduler_(type|kwargs)(\..*)?"),
)
"""Name, the field whose change ties others to it, and all that are then changed together: one without the other is
refused, or has no meaning of its own."""
_FIRST = (
    *("model", "peft", "data.train", "data.format", "objective", "training.learning_rate", "training.max_steps"),
    *("training.optim", "rows of an update", "training.lr_scheduler_type", "peft.r", "data.max_length", "data."),
    *("peft.", "model.", "training.warmup_steps", "evaluation.", "launcher.", "callbacks."),
)
"""Names, or their beginnings, of units that are likely to matter, the likeliest first."""


@dataclass(frozen=True)
class Change:
    """One field with its two values."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Unit:
    """Fields that are changed together; most units are of one."""

    name: str
    changes: tuple[Change, ...]

    def shown(self) -> tuple[str, str, str]:
        """Name and both values; of several fields how many more there are."""
        first = next((one for one in self.changes if one.field.endswith(("_target_", ".path"))), self.changes[0])
        more = f" and {len(self.changes) - 1} more" if len(self.changes) > 1 else ""
        name = f"{first.field}{more}" if self.name == first.field else f"{self.name} ({first.field}{more})"
        return name, _short(first.a), _short(first.b)


@dataclass(frozen=True)
class Differences:
    """What differs between two jobs."""

    units: tuple[Unit, ...]
    """Those that can matter, the likely ones first."""
    harmless: tuple[str, ...]
    """Fields that cannot reach the result."""
    seeds: tuple[str, ...]
    """Fields that draw other random numbers."""
    same_content: tuple[str, ...]
    """Places of data and models that hold the same bytes."""


def _short(value: Any) -> str:
    if value is ABSENT:
        return "(not set)"
    if isinstance(value, str) and value.startswith(("peft.", "fmstune.")):
        value = value.rpartition(".")[2]
    text = show_value(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def changed_fields(a: Tree, b: Tree, above: str = "") -> Iterator[Change]:
    """Yield each field that differs; a group that one of the two does not have is one field."""
    for key in dict.fromkeys([*a, *b]):
        one, other, field = a.get(key, ABSENT), b.get(key, ABSENT), f"{above}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from changed_fields(one, other, f"{field}.")
        elif one is ABSENT or other is ABSENT or one != other or isinstance(one, bool) != isinstance(other, bool):
            yield Change(field, one, other)


def find_differences(a: Tree, b: Tree, locks: tuple[Tree, Tree], figure: str) -> Differences:
    """Sort what differs between two jobs, as `freeze.as_tree` gives them, with the `lock.json` of each.

    `figure` is the path of the number that compares them. Nothing is left out that could change it.
    """
    never = tuple(_harmless_fields(a, b, figure))
    kept: list[Change] = []
    harmless: list[str] = []
    seeds: list[str] = []
    same: list[str] = []
    for change in changed_fields(a, b):
        if change.field in _SEEDS:
            seeds.append(change.field)
        elif any(pattern.fullmatch(change.field) for pattern in never):
            harmless.append(change.field)
        elif _holds_the_same(change, locks):
            same.append(change.field)
        else:
            kept.append(change)
    units = sorted(_couple(kept), key=lambda unit: (_likelihood(unit), unit.name))
    return Differences(tuple(units), tuple(harmless), tuple(seeds), tuple(same))


def _harmless_fields(a: Tree, b: Tree, figure: str) -> Iterator[re.Pattern[str]]:
    jobs = (a, b)
    yield _NEVER
    if not any(_looks_at_logs(job) for job in jobs):
        yield _SAVING
    if not any(job["data"].get("streaming") for job in jobs):
        yield _LOADING
    if figure.endswith("loss") and all(job["objective"]["_target_"] == SFT for job in jobs):
        yield _ANSWERS


def _looks_at_logs(job: Tree) -> bool:
    training = job["training"]
    looks = training.get("load_best_model_at_end") or training.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    return bool(looks) or any(value for value in job["callbacks"].values())


def _holds_the_same(change: Change, locks: tuple[Tree, Tree]) -> bool:
    """Whether the two places hold the same bytes, as both runs have recorded them."""
    field = change.field.removesuffix(".path")
    kind = "data_hashes" if field.startswith(("data.train", "data.eval")) else "model_files"
    if ABSENT in (change.a, change.b) or isinstance(change.a, Mapping) or isinstance(change.b, Mapping):
        return False
    if kind == "model_files":
        if change.field not in ("model.path", "model.tokenizer", "model.adapter"):
            return False
        field = change.field
    one, other = (
        {name: found for name, found in (lock.get(kind) or {}).items() if name == field or name.startswith(f"{field}.")}
        for lock in locks
    )
    # of streamed files, names, sizes and times are hashed
    return bool(one) and one == other and not any("listing:" in str(found) for found in one.values())


def _couple(changes: Sequence[Change]) -> Iterator[Unit]:
    """Put the changes that go together into one unit each; the first rule that takes a field has it."""
    left = list(changes)
    for name, head, pattern in _COUPLED:
        if not any(re.fullmatch(head, one.field) for one in left):
            continue
        taken = [one for one in left if re.fullmatch(pattern, one.field)]
        left = [one for one in left if one not in taken]
        yield Unit(name if len(taken) > 1 else taken[0].field, tuple(taken))
    yield from (Unit(one.field, (one,)) for one in left)


def _likelihood(unit: Unit) -> int:
    names = [unit.name, *(one.field for one in unit.changes)]
    for place, begin in enumerate(_FIRST):
        if any(name == begin or (begin.endswith(".") and name.startswith(begin)) for name in names):
            return place
    return len(_FIRST)


def with_units(tree: Tree, units: Iterable[Unit]) -> dict[str, Any]:
    """Return the tree of A with these units as in B."""
    changed: Any = tree
    for unit in units:
        for change in unit.changes:
            if change.b is ABSENT:
                changed = _without(changed, change.field.split("."))
            else:
                # a mapping in place of another one is not merged into it
                changed = with_value(_without(changed, change.field.split(".")), change.field, change.b)
    return dict(changed)


def _without(tree: Any, keys: Sequence[str]) -> Any:
    key, *rest = keys
    if not isinstance(tree, Mapping) or key not in tree:
        return tree
    if rest:
        return {**tree, key: _without(tree[key], rest)}
    return {name: value for name, value in tree.items() if name != key}


def environment_facts(differing: Iterable[str], units: Iterable[Unit], seeds: Iterable[str]) -> list[str]:
    """Return the facts of two `lock.json` that differ and follow from no field that differs."""
    fields = [change.field for unit in units for change in unit.changes] + list(seeds)
    follows = {
        "seed": ("seed",),
        "tokens": ("data.", "model.", "seed", "objective."),
        "data_hashes": ("data.", "seed"),
        "model_files": ("model.", "peft."),
        "model_commits": ("model.",),
        "model_config_hash": ("model.", "objective.", "training.", "peft."),
        "threads": ("launcher.",),
        "processes": ("launcher.",),
        "device": ("launcher.",),
        "device_names": ("launcher.",),
        "packages": ("tracking.", "model.kernels", "model.quantization", "model.attention", "model.backend"),
    }
    return [
        fact
        for fact in differing
        if not any(field.startswith(begin) for begin in follows.get(fact.partition(".")[0], ()) for field in fields)
    ]
