"""What a verb after training is asked to do, as plain typed data: made from flags, and a JSON file for the runner."""

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fmstune.config.job import Attention, Device, Dtype
from fmstune.errors import Problem

NOTHING_TO_ASK = Problem(
    "", "nothing to ask: give --text, --text_file (one prompt a line; - reads standard input) or --rows_file"
)

PROMPTS = ("text", "text_file", "rows_file")
"""Fields of `Generation` of which one says what to ask."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """`fmstune generate`: which model continues which texts, and how; the fields are its flags."""

    model: str
    """Run folder, adapter folder, model folder, hub id, or `package:NAME`."""
    base_model_name_or_path: str | None = None
    """The base of an adapter, in place of the one that it names."""
    force: bool = False
    """Load an adapter also on a base that is not the one it was tuned on."""
    text: str | None = None
    """One prompt."""
    text_file: str | None = None
    """File with one prompt a line; `-` is standard input."""
    rows_file: str | None = None
    """Data file whose rows `format` makes prompts of."""
    format: dict[str, Any] | None = None
    """`_target_` and settings of a data format, whose prompt is put around each text or made of each row."""
    out_file: str = "inference_result.json"
    """Where the answers go: a JSON list, or JSON lines where the name ends in `.jsonl`."""
    resume: bool = False
    """Go on after the answers that `out_file` (JSON lines) holds."""
    only_new_text: bool = False
    """Leave the input out of the output."""
    stream: bool = False
    """Print each answer while it is made; one prompt at a time."""
    batch_size: int = 8
    """Prompts that are continued together."""
    max_new_tokens: int = 20
    """Tokens of an answer at most."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, `\\n` as in a shell; they are cut off."""
    do_sample: bool = False
    """Draw tokens at random; otherwise the likeliest is taken."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 42
    """Seed of what is drawn."""
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.auto
    device: Device = Device.auto


class Export(Enum):
    """What `fmstune merge` writes in place of a merged model."""

    vllm_lora = "vllm_lora"


@dataclass(frozen=True, kw_only=True)
class Merge:
    """`fmstune merge`: which adapters go into which base, and where the model is written; the fields are its flags."""

    model: tuple[str, ...]
    """Run folders, adapter folders or hub ids, one flag each."""
    weight: tuple[float, ...] = ()
    """By how much each adapter counts, in the order of `model`; none is given where each counts as it is."""
    base_model_name_or_path: str | None = None
    """The base, in place of the one that the adapters name."""
    force: bool = False
    """Merge also into a base that is not the one that was tuned on."""
    out: str
    """Folder for the model: there must be none yet, or an empty one."""
    export: Export | None = None
    """`vllm_lora` writes the adapter as vLLM reads it, and merges nothing."""
    dtype: Dtype = Dtype.auto
    """Dtype of the merged weights; `auto` is the one that the base was saved in."""
    max_shard_size: str = "5GB"
    """Bytes of a file of weights at most."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """`fmstune report`: which run, or folder of runs, is reported on; the fields are its flags but the first."""

    folder: str
    """A run folder, or a folder of runs such as a sweep's."""
    metric: str | None = None
    """Figure of `summary.json` that runs are compared by; null takes the loss on held-out rows, else the train loss."""
    direction: str | None = None
    """`minimize` or `maximize`; null tells by the figure's name."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`fmstune compare`: which two runs."""

    a: str
    b: str
    html: str | None = None
    """Where to write the comparison as a page."""


class Method(Enum):
    """How `fmstune evaluate` lets a model answer."""

    generate = "generate"
    rank = "rank"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """`fmstune evaluate`: which model answers which held-out rows, and how; the fields are its flags."""

    model: str
    """Run folder, adapter folder, model folder, hub id, or `package:NAME`."""
    base_model_name_or_path: str | None = None
    """The model to compare with; null takes the adapter's base, and of a whole model the one that its run tuned."""
    run_base: str | None = None
    """What the run of a whole model tuned; not a flag, nor is its revision."""
    run_base_revision: str | None = None
    force: bool = False
    """Load an adapter also on a base that is not the one it was tuned on."""
    no_base: bool = False
    """Leave the base out."""
    job: dict[str, Any] | None = None
    """A frozen job, whose `data` says which rows are held out, in which format; made of the words beside the flags."""
    trusted: tuple[str, ...] = ()
    """Packages that the format may come from."""
    method: Method = Method.generate
    """`generate` continues the prompt greedily; `rank` takes the likeliest of the labels."""
    label: tuple[str, ...] = ()
    """Answers that are allowed; none given are those that the rows have."""
    max_rows: int | None = None
    """Evaluate at most this many rows."""
    max_new_tokens: int = 64
    """Tokens of an answer at most."""
    batch_size: int = 8
    """Sequences that go through the model together."""
    seed: int = 42
    """Seed of the bootstrap."""
    out_file: str = "evaluation.json"
    """Where the results go; a table in Markdown is written beside it."""
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.auto
    device: Device = Device.auto


@dataclass(frozen=True, kw_only=True)
class Harness:
    """`fmstune evaluate harness`: which model does which tasks of lm-evaluation-harness; the fields are its flags."""

    model: str
    base_model_name_or_path: str | None = None
    run_base: str | None = None
    run_base_revision: str | None = None
    force: bool = False
    no_base: bool = False
    tasks: tuple[str, ...]
    """Names of tasks or groups of tasks."""
    include_path: str | None = None
    """Folder with YAML files of further tasks."""
    num_fewshot: int | None = None
    """Solved examples before each question; null takes the task's own number."""
    limit: int | None = None
    """Questions of each task at most; null takes all."""
    batch_size: int = 8
    seed: int = 42
    out_file: str = "harness.json"
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.auto
    device: Device = Device.auto


SAMPLING = ("temperature", "top_k", "top_p")
"""Fields that only drawing uses; the names are those of `transformers.GenerationConfig`."""


Request = Generation | Merge | Scoring | Harness | Report | Comparison
"""What a verb asks of a runner where it composes no job."""


def write(request: Request, path: Path) -> None:
    """Write the request so that the function that reads its kind gives an equal one."""
    values = {name: getattr(value, "value", value) for name, value in asdict(request).items()}
    path.write_text(json.dumps(values), encoding="utf-8")


def read_merge(path: Path) -> Merge:
    """The request that `write` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {name: tuple(values[name]) for name in ("model", "weight")}
    export = None if values["export"] is None else Export(values["export"])
    return Merge(**{**values, "export": export, "dtype": Dtype(values["dtype"])})


def read_report(path: Path) -> Report:
    """The request that `write` wrote."""
    return Report(**json.loads(path.read_text(encoding="utf-8")))


def read_comparison(path: Path) -> Comparison:
    """The request that `write` wrote."""
    return Comparison(**json.loads(path.read_text(encoding="utf-8")))


def read_generation(path: Path) -> Generation:
    """The request that `write` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {
        "stop": tuple(values["stop"]),
        "dtype": Dtype(values["dtype"]),
        "attention": Attention(values["attention"]),
    }
    return Generation(**{**values, "device": Device(values["device"])})


def read_scoring(path: Path) -> Scoring:
    """The request that `write` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {name: tuple(values[name]) for name in ("label", "trusted")}
    return Scoring(**{**values, "method": Method(values["method"]), **_kinds(values)})


def read_harness(path: Path) -> Harness:
    """The request that `write` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Harness(**{**values, "tasks": tuple(values["tasks"]), **_kinds(values)})


def _kinds(values: dict[str, Any]) -> dict[str, Enum]:
    kinds: dict[str, type[Enum]] = {"dtype": Dtype, "attention": Attention, "device": Device}
    return {name: kind(values[name]) for name, kind in kinds.items()}
