"""What each verb can be asked, as typed data: the help prints a class's first line, and the line under each field."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from fmstune.config.after_training.places import Asking, File, Folder, OnBase, Trusting
from fmstune.config.after_training.serving import Serving, Talk
from fmstune.config.after_training.sharing import Push
from fmstune.config.choices import Dtype
from fmstune.config.first_aid import verbs
from fmstune.config.flags import NOT_TYPED, POSITIONAL, As, Request, make_request
from fmstune.errors import Problem

FromJob = Annotated[Path | None, As("RUN/job.yaml", ("--from",))]
Export = StrEnum("Export", ["vllm_lora", "gguf", "ollama"])
"""What `fmstune merge` writes in place of a merged model."""
GgufType = StrEnum("GgufType", ["f16", "q8_0"])
"""How a GGUF file stores the numbers of a matrix."""
Method = StrEnum("Method", ["generate", "rank"])
"""How `fmstune evaluate` lets a model answer."""


@dataclass(frozen=True, kw_only=True)
class Composing(Trusting):
    """Options of a verb that takes a job's groups and fields, and all of Hydra's flags."""


@dataclass(frozen=True, kw_only=True)
class Train(Composing):
    """Compose, check, tune, compare with the base (the default)."""

    from_job: FromJob = None
    """Repeat a run, or one that was pushed (hf:USER/NAME); fields can be overridden, groups cannot."""
    resume: Annotated[Path | None, As("SWEEP_DIR")] = None
    """Resume a sweep: finished points are skipped."""
    sources: bool = False
    """With --cfg job: show which file or override set each field."""


@dataclass(frozen=True, kw_only=True)
class Reproduce(Trusting):
    """Check what a run has recorded, run it again, and compare the results."""

    run: Annotated[str, POSITIONAL]
    strict: bool = False
    """Run only if nothing that can change the result differs; exit with 2 if the result differs."""


@dataclass(frozen=True, kw_only=True)
class Check(Composing):
    """Validate everything and print the plan; reads no weight."""

    sources: bool = False
    """Show which file or override set each field."""
    from_job: FromJob = None
    """Check a frozen job."""


@dataclass(frozen=True, kw_only=True)
class ShowData(Composing):
    """Show rows with trained and masked tokens marked."""

    rows: int = 3
    """How many rows to print."""
    json: Annotated[Path | None, As("FILE")] = None
    """Write every training row: input_ids, labels, trained_text."""
    html: Annotated[Path | None, As("FILE")] = None
    """Write the printed rows and sums as one page."""


@dataclass(frozen=True, kw_only=True)
class Modules(Composing):
    """List what an adapter can target in the model."""


@dataclass(frozen=True, kw_only=True)
class Generation(Asking):
    """Let a tuned model continue texts, or answer rows."""

    text: str | None = None
    """One prompt."""
    text_file: File | None = None
    """File with one prompt a line (.jsonl: a JSON text); - is standard input."""
    rows_file: File | None = None
    """Data file whose rows --format makes prompts of."""
    data_format: Annotated[str | None, As("CHOICE", ("--format",))] = None
    """Data format whose prompt goes around texts or rows, such as alpaca."""
    format: Annotated[dict[str, Any] | None, NOT_TYPED] = None
    """`_target_` and settings of that format."""
    out_file: File = "inference_result.json"
    """Where the answers go (.json or .jsonl)."""
    resume: bool = False
    """Add to the answers that --out_file (JSON lines) already holds."""
    only_new_text: bool = False
    """Leave the input out of the output."""
    stream: bool = False
    """Print each answer while it is made; one prompt at a time."""
    max_new_tokens: int = 20
    """Most tokens of an answer."""
    stop: Annotated[tuple[str, ...], As("TEXT")] = ()
    """End an answer at this text, which is cut off; repeatable."""
    do_sample: bool = False
    """Draw tokens at random instead of taking the likeliest."""
    temperature: float | None = None
    """With --do_sample: above 1 draws more evenly."""
    top_k: int | None = None
    """With --do_sample: draw from this many of the likeliest tokens."""
    top_p: float | None = None
    """With --do_sample: draw from tokens of this total probability."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens that were used less likely."""


@dataclass(frozen=True, kw_only=True)
class Merge(OnBase):
    """Put adapters into the weights of their base."""

    model: Annotated[tuple[str, ...], As("PLACE")]
    """Run folders, adapter folders or hub ids, one flag each."""
    weight: tuple[float, ...] = ()
    """How much each adapter counts, one flag for each --model in their order."""
    out: Folder
    """An empty or new folder for the merged model."""
    export: Export | None = None
    """Write an adapter for vLLM, or a GGUF file (with a Modelfile)."""
    gguf_type: GgufType = GgufType.f16
    """With --export gguf or ollama: 16 bits for each number, or about 8."""
    format: Annotated[dict[str, Any] | None, NOT_TYPED] = None
    """`_target_` and settings of the data format that the run was trained on, for a Modelfile."""
    dtype: Dtype = Dtype.auto
    """Dtype of the merged weights; auto is that of the base."""
    max_shard_size: Annotated[str, As("SIZE")] = "5GB"
    """Most bytes of a file of weights."""
    parity_rows: int = 8
    """Rows of the run that the result is compared on; 0 compares none."""


@dataclass(frozen=True, kw_only=True)
class Parity(OnBase, Trusting):
    """Prove that the model of a run is served as it was trained."""

    run: Annotated[str, POSITIONAL]
    endpoint: Annotated[str | None, As("URL")] = None
    """An OpenAI-compatible server; without it, transformers and PEFT load the files."""
    gguf: File | None = None
    """A GGUF file of the run, as llama.cpp serves it."""
    served_model: Annotated[str | None, As("NAME")] = None
    """The name of the tuned model at the server, if it serves several."""
    rows: int = 50
    """Most held-out rows to compare."""
    dtype: Dtype = Dtype.auto
    """Precision that is meant to be served; auto is that of the saved weights."""


@dataclass(frozen=True, kw_only=True)
class FromFms:
    """Translate a command or job file of the early tool, fms-hf-tuning."""

    old_command: Annotated[tuple[str, ...], POSITIONAL] = ()
    run_it: Annotated[bool, As(flags=("--run",))] = False
    """Run the translation, too."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a page, a text and a table about a run or a sweep."""

    folder: Annotated[str, POSITIONAL]
    metric: Annotated[str | None, As("NAME")] = None
    """Figure of summary.json to compare runs by, such as tuned.exact_match."""
    direction: Literal["minimize", "maximize"] | None = None
    """Which way is better, if the name of the figure does not tell."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Show how two runs differ: settings, data, versions, results."""

    a: Annotated[str, POSITIONAL]
    b: Annotated[str, POSITIONAL]
    html: File | None = None
    """Write the comparison as one page, with the curves."""


@dataclass(frozen=True, kw_only=True)
class SuspectRows(Trusting):
    """Show the training rows of a run that it learnt late, never learnt, or forgot."""

    run: Annotated[str, POSITIONAL]
    rows: int = 24
    """How many rows to show and to write, the most suspect first."""
    html: File | None = None
    """Write them as one page, with their texts."""
    json: File | None = None
    """Write them as JSON: place, reasons, losses and text."""
    quarantine: File | None = None
    """Write their sources and numbers, as data.quarantine reads them."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, devices, extras and the cache."""

    clear_cache: Annotated[bool, As(flags=("--clear-cache",))] = False
    """Delete the tokenised data."""


@dataclass(frozen=True, kw_only=True)
class _Comparing(Asking):
    no_base: bool = False
    """Leave the base out."""
    run_base: Annotated[str | None, NOT_TYPED] = None
    """The model that the run of a whole model tuned."""
    run_base_revision: Annotated[str | None, NOT_TYPED] = None


@dataclass(frozen=True, kw_only=True)
class Scoring(_Comparing):
    """Compare a tuned model with its base on labelled rows, or on tasks of a harness."""

    job: Annotated[dict[str, Any] | None, NOT_TYPED] = None
    """A frozen job, whose `data` says which rows are held out, in which format."""
    method: Method = Method.generate
    """Continue the prompt, or rank the labels."""
    label: Annotated[tuple[str, ...], As("TEXT")] = ()
    """Allowed answer; repeatable (all that the rows have)."""
    max_rows: int | None = None
    """Evaluate at most this many rows."""
    max_new_tokens: int = 64
    """Most tokens of an answer."""
    out_file: File = "evaluation.json"
    """Where the results go, with a .md table."""


@dataclass(frozen=True, kw_only=True)
class Harness(_Comparing):
    """Compare a tuned model with its base on tasks of lm-evaluation-harness (extra eval)."""

    tasks: Annotated[tuple[str, ...], As("A,B", commas=True)]
    """Names of tasks, with commas."""
    include_path: Folder | None = None
    """Folder with YAML files of further tasks."""
    num_fewshot: int | None = None
    """Solved examples before each question (the task's own number)."""
    limit: int | None = None
    """Most questions of each task."""
    out_file: File = "harness.json"
    """Where the results go."""


_Info = Literal["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


@dataclass(frozen=True, kw_only=True)
class HydraFlags:
    """Hydra's own flags, under their names there."""

    multirun: Annotated[bool, As(flags=("--multirun", "-m"))] = False
    """One run for each combination of comma-separated values."""
    cfg: Annotated[Literal["job", "hydra", "all"] | None, As("job", ("--cfg", "-c"))] = None
    """Print the composed job and stop; with --sources, where each field comes from."""
    package: Annotated[str | None, As("PART", ("--package", "-p"))] = None
    """With --cfg: print one part, such as training or peft.r."""
    resolve: bool = False
    """With --cfg: print values in place of references."""
    config_dir: Annotated[str | None, As("DIR", ("--config-dir", "-cd"))] = None
    """Your own groups, next to the shipped ones."""
    config_path: Annotated[str | None, As("DIR", ("--config-path", "-cp"))] = None
    config_name: Annotated[str | None, As("NAME", ("--config-name", "-cn"))] = None
    info: Annotated[_Info | None, As("WHAT", ("--info", "-i"), alone="all")] = None
    """Hydra's own: plugins, search path, defaults list."""
    run: Annotated[bool, As(flags=("--run", "-r"))] = False
    hydra_help: Annotated[bool, As(flags=("--hydra-help",))] = False
    shell_completion: Annotated[bool, As(flags=("--shell-completion", "-sc"))] = False


NO_HYDRA_FLAGS = HydraFlags()
NOTHING_TO_ASK = Problem(
    "", "nothing to ask: give --text, --text_file (one prompt a line; - reads standard input) or --rows_file"
)
PROMPTS = ("text", "text_file", "rows_file")
"""Fields of `Generation` of which one says what to ask."""
SAMPLING = ("temperature", "top_k", "top_p")
"""Fields that only drawing uses; the names are those of `transformers.GenerationConfig`."""
RunnerRequest = (
    Generation | Merge | Parity | Scoring | Harness | Report | Comparison | SuspectRows | Push | Serving | Talk
)
"""Options of a verb that composes no job, for a runner."""
Options = Composing | RunnerRequest | Reproduce | FromFms | Doctor | verbs.Bisect | verbs.RunCare | verbs.AboutFiles
JOB_USAGE = "[GROUP=CHOICE ...] [FIELD=VALUE ...]"
_ROWS_OR_TASKS = "--model PLACE [data=CHOICE] [data.FIELD=VALUE ...] | harness --model PLACE --tasks A,B"


class Verb(StrEnum):
    """What the command is to do: its word, its options, and the words that follow it if these are not a job's."""

    options: type[Options]
    usage: str

    train = "train", Train
    reproduce = "reproduce", Reproduce, "RUN [FIELD=VALUE ...]"
    check = "check", Check
    show_data = "show-data", ShowData
    modules = "modules", Modules
    generate = "generate", Generation, "--model PLACE --text TEXT [--format CHOICE data.FIELD=VALUE ...]"
    chat = "chat", Talk, "RUN [--compare] [--format CHOICE data.FIELD=VALUE ...]"
    serve = "serve", Serving, "RUN [--format CHOICE data.FIELD=VALUE ...]"
    evaluate = "evaluate", Scoring, _ROWS_OR_TASKS
    merge = "merge", Merge, "--model PLACE --out DIR"
    parity = "parity", Parity, "RUN [--endpoint URL | --gguf FILE]"
    from_fms = "from-fms", FromFms, "[--run] 'COMMAND' | -- COMMAND | FILE (a script, JSON, or JSON in base64) | -"
    report = "report", Report, "RUN_OR_SWEEP"
    compare = "compare", Comparison, "RUN_A RUN_B"
    bisect = "bisect", verbs.Bisect, "RUN_A RUN_B"
    rows = "rows", SuspectRows, "RUN"
    push = "push", Push, "RUN --repo USER/NAME"
    runs = "runs", verbs.Runs, "[FOLDER]"
    logs = "logs", verbs.Logs, "RUN_OR_SWEEP"
    stop = "stop", verbs.Stop, "RUN_OR_SWEEP"
    clean = "clean", verbs.Clean, "FOLDER --keep best|last|N"
    recipes = "recipes", verbs.Recipes, "[GROUP] [--config-dir DIR]"
    copy = "copy", verbs.Copy, "GROUP=CHOICE FOLDER [--config-dir DIR]"
    schema = "schema", verbs.WriteSchema, "[GROUP]"
    doctor = "doctor", Doctor, ""

    def __new__(cls, word: str, options: Any = None, usage: str = JOB_USAGE) -> "Verb":
        verb = str.__new__(cls, word)
        verb._value_, verb.options, verb.usage = word, options, usage
        return verb


def summary(verb: Verb) -> str:
    """The first line of a verb's help."""
    text = str(verb.options.__doc__).removesuffix(".")
    return text[0].lower() + text[1:]


def write_request(request: RunnerRequest, path: Path) -> None:
    """Write the request so that `read_request` gives an equal one."""
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")


def read_request(kind: type[Request], path: Path) -> Request:
    """The request that `write_request` wrote."""
    return make_request(kind, json.loads(path.read_text(encoding="utf-8")))
