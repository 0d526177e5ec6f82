"""What the runner checks before it reads a weight: the model's shape, its adapter, the device; and the plan."""

import copy
import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedConfig, Trainer, TrainingArguments, get_scheduler

from fmstune import ranks
from fmstune.checks import resume
from fmstune.checks.fms import architecture_problems
from fmstune.checks.launcher import device_problems
from fmstune.checks.memory_plan import Plan, plan_work
from fmstune.checks.plan_inputs import Dimensions, Machine, Rows, Sharing, Training, Work
from fmstune.checks.precision import Precision, Situation, precision_problems, resolve_precision
from fmstune.config import conditions
from fmstune.config.job import (
    Attention,
    Backend,
    Dtype,
    Evaluation,
    Job,
    Launcher,
    Quantization,
    Sharding,
    is_sharded,
    stop_rules,
)
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.data.dataset import Prepared, load_recipes
from fmstune.data.scan import CHARACTERS_PER_TOKEN, scan_data
from fmstune.data.tokenized import Part
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any
from fmstune.evaluation import held_out as evaluate
from fmstune.evaluation import metrics
from fmstune.launch import process_counts
from fmstune.models import adapters, architecture, load, shapes
from fmstune.models.load import Tokenizer
from fmstune.tables import GIB
from fmstune.training.named_classes import named_class_problems
from fmstune.training.torch_internals import list_mode_options


@dataclass(frozen=True)
class Checked:
    """A job that can run here, as far as can be told without its weights."""

    configuration: PreTrainedConfig
    peft: PeftConfig | None
    dimensions: Dimensions
    device: str
    precision: Precision
    attention: str
    notes: tuple[str, ...] = ()
    quantization: Quantization | None = None


def check(job: Job, *, device_at_hand: bool = True) -> Checked:
    """Everything about model, adapter and device; raises UserError with all that is wrong.

    Without the device at hand, `launcher.device=cuda` plans for a GPU that this machine does not have.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    device, attention = "cpu", job.model.attention.value
    peft_config: PeftConfig | None = None
    configuration: PreTrainedConfig | None = None
    dimensions: Dimensions | None = None
    try:
        device = load.find_device(job.launcher.device)
    except UserError as err:
        device = job.launcher.device.value
        if device_at_hand:
            problems += err.problems
        else:
            how = "" if job.launcher.device_gib else "; launcher.device_gib=80 says what fits into one of 80 GiB"
            notes.append(f"no {device} device here: the plan is for one that computes in bfloat16{how}")
    try:
        load_recipes(job.data, None)
    except UserError as err:
        problems += err.problems
    problems += named_class_problems(job)
    try:
        peft_config = adapters.configuration(job.peft, job.model)
        configuration = architecture.configuration(job.model)
        if job.model.backend is Backend.fms:
            problems += architecture_problems(configuration)
        dimensions = shapes.dimensions(configuration, peft_config, job.model.quantization)
    except UserError as err:
        problems += err.problems
    situation = _situation(job, device, adapter=peft_config is not None)
    problems += precision_problems(situation)
    problems += compile_problems(job.training)
    if job.training.get("activation_offloading") and device == "cpu":
        problems.append(
            Problem(
                "training.activation_offloading", "needs an accelerator, and the device is the CPU; set it to false"
            )
        )
    if job.model.quantization is not None:
        problems += quantization_problems(device, here=device_at_hand)
    if device_at_hand or job.launcher.slurm is None:
        # a Slurm job runs on nodes that have what this machine need not have
        problems += device_problems(job.launcher, device)
    resolved = resolve_precision(situation)
    try:
        # ibm-fms has no other
        asked = Attention.sdpa if job.model.backend is Backend.fms else job.model.attention
        attention = load.find_attention(asked, device, resolved)
    except UserError as err:
        problems += err.problems
    raise_if_any(problems)
    assert configuration is not None
    assert dimensions is not None
    return Checked(
        configuration, peft_config, dimensions, device, resolved, attention, tuple(notes), job.model.quantization
    )


def quantization_problems(device: str, *, here: bool) -> Iterator[Problem]:
    """What a quantised base needs: a CUDA device to plan for, and `here`, where it is to run, bitsandbytes too."""
    if device != "cuda":
        yield Problem(
            "model.quantization",
            f"needs a CUDA device, and the device is {device}; set it to null, or plan for a GPU "
            "with fmstune check launcher.device=cuda",
        )
    elif here and importlib.util.find_spec("bitsandbytes") is None:
        yield Problem(
            "model.quantization", "needs the package bitsandbytes; pip install 'fmstune[quant]', or set it to null"
        )


def length_problems(job: Job, checked: Checked, rows: Rows) -> Iterator[Problem]:
    """Rows, or packs of rows, with more positions than the model has."""
    positions, virtual = checked.dimensions.max_positions, checked.dimensions.virtual_tokens
    longest = job.data.max_length if job.training.get("packing") else min(rows.longest, job.data.max_length)
    if positions is not None and virtual > positions - 2:
        yield Problem(
            "peft.num_virtual_tokens",
            f"={virtual} leaves no room for a row in the {positions:,} positions of the model; lower it",
        )
    elif positions is not None and longest + virtual > positions:
        prompt = f" and {virtual} virtual tokens" if virtual else ""
        what = "a streamed row may take" if job.data.streaming else "the longest row takes"
        yield Problem(
            "",
            f"{what} {longest:,} tokens{prompt}, and the model has {positions:,} positions; "
            f"set data.max_length={positions - virtual}",
        )


def held_out_problems(job: Job, checked: Checked, prepared: Prepared) -> Iterator[Problem]:
    """Held-out rows, or prompts with the answer to generate, with more positions than the model has."""
    positions, virtual = checked.dimensions.max_positions, checked.dimensions.virtual_tokens
    watched = job.training.get("eval_strategy", "no") != "no"
    if positions is None or not (job.evaluation.enabled or watched):
        return
    if virtual > positions - 2:
        return  # `length_problems` says so
    for part in prepared.held_out:
        yield from _part_problems(job, part, positions, virtual, watched=watched)


def _part_problems(job: Job, part: Part, positions: int, virtual: int, *, watched: bool) -> Iterator[Problem]:
    """The same of one set of held-out rows."""
    ledger, field = part.ledger, f"data.eval.{part.name}" if part.name else "data.eval"
    packing, eval_packing = job.training.get("packing", False), job.training.get("eval_packing")
    packs = watched and (packing if eval_packing is None else eval_packing)
    room, longest = positions - virtual, job.data.max_length if packs else min(ledger.longest, job.data.max_length)
    beside = f" beside {virtual} virtual tokens" if virtual else ""
    if longest > room:
        yield Problem(
            field,
            f": the longest held-out row takes {longest:,} tokens{beside}, and the model has {positions:,} "
            f"positions; set data.max_length={room}",
        )
    elif job.evaluation.enabled and (over := _generation(part.rows, job.evaluation)).end > room:
        yield Problem(
            "evaluation.max_new_tokens",
            f": the longest held-out prompt takes {over.prompt:,} tokens{beside} and its "
            f"answer up to {over.answer:,}, and the model has {positions:,} positions; "
            f"set evaluation.max_new_tokens={room - over.prompt}",
        )


class Generation(NamedTuple):
    """Tokens of the longest prompt, and of the longest answer that is generated after it."""

    prompt: int
    answer: int

    @property
    def end(self) -> int:
        return self.prompt + self.answer


def _generation(held_out: Dataset, evaluation: Evaluation) -> Generation:
    """What `fmstune.evaluation.held_out` asks for at most: no answer is longer than the longest that is expected."""
    rows = held_out.select(range(min(len(held_out), evaluation.max_rows or len(held_out))))
    answer = max(map(len, rows["answer_ids"]))
    return Generation(max(map(len, rows["prompt_ids"])), min(evaluation.max_new_tokens, answer))


def batch_problems(training: Training, rows: Rows) -> Iterator[Problem]:
    """Fewer rows than one batch needs, where an incomplete one is dropped; of packed rows the plan knows the least."""
    batch = training.per_device_train_batch_size
    if training.dataloader_drop_last and not training.packing and rows.rows < batch:
        yield Problem(
            "training.dataloader_drop_last",
            f"=true leaves no batch of {rows.rows:,} rows: "
            f"training.per_device_train_batch_size={batch}; lower it, or set training.dataloader_drop_last=false",
        )


def compile_problems(training: Mapping[str, Any]) -> Iterator[Problem]:
    """Words for torch.compile that accelerate and torch look up only when they compile."""
    for name, list_known in (("torch_compile_backend", _backends), ("torch_compile_mode", _modes)):
        word = training.get(name)
        if word is not None and word.lower() not in (known := list_known()):
            yield Problem(
                f"training.{name}", f"must be one of {', '.join(known)}; got {word!r}{did_you_mean(word, known)}"
            )


def _backends() -> list[str]:
    """Those that accelerate has a name for and this torch has; torch takes a second to list them."""
    here = torch.compiler.list_backends(exclude_tags=())
    return [backend.value.lower() for backend in DynamoBackend if backend.value.lower() in here]


def _modes() -> list[str]:
    return list(list_mode_options())


def optimizer_problems(arguments: TrainingArguments) -> Iterator[Problem]:
    """What the optimizer or its schedule refuses; transformers would find out after the base model's evaluation."""
    # these look at the model, which is not there yet
    if arguments.optim.value.startswith(("galore", "apollo", "lomo", "adalomo")):
        return
    try:
        cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = cls([torch.zeros(1, requires_grad=True)], **settings)
    except (TypeError, ValueError, ImportError) as err:
        yield Problem("training.optim", f"={arguments.optim.value} or its settings are refused: {err}")
        return
    name, settings = arguments.lr_scheduler_type, dict(arguments.lr_scheduler_kwargs or {})
    try:
        get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=1, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as err:
        yield Problem("training.lr_scheduler_type", f"={name.value} or training.lr_scheduler_kwargs are refused: {err}")


def with_tokenizer(checked: Checked, tokenizer: Tokenizer) -> Checked:
    """The same with the rows that added tokens need, where the embedding has none to spare.

    Raises UserError where the tokenizer or the adapter names a token that the model does not have.
    """
    raise_if_any(_tokenizer_problems(checked, tokenizer))
    rows = max(checked.dimensions.vocabulary, len(tokenizer.tokenizer))
    # TRL's fused head reads `lm_head.weight`, which PEFT's wrapper of tied rows hides
    trains = not checked.dimensions.tied
    peft = adapters.with_added_tokens(checked.peft, tokenizer.to_train if trains else ())
    notes = (*checked.notes, *_added_token_notes(checked, tokenizer))
    if rows == checked.dimensions.vocabulary and peft is checked.peft:
        return dataclasses.replace(checked, notes=notes)
    configuration = copy.deepcopy(checked.configuration)
    configuration.get_text_config().vocab_size = rows
    dimensions = shapes.dimensions(configuration, peft, checked.quantization)
    return dataclasses.replace(checked, configuration=configuration, peft=peft, dimensions=dimensions, notes=notes)


def _tokenizer_problems(checked: Checked, tokenizer: Tokenizer) -> Iterator[Problem]:
    ids, embeddings = len(tokenizer.tokenizer), checked.dimensions.vocabulary
    if ids - len(tokenizer.added) > embeddings:
        yield Problem(
            "model.tokenizer",
            f": the tokenizer has {ids - len(tokenizer.added):,} ids and the model {embeddings:,} "
            "embeddings; take the model's own tokenizer, and add tokens with model.special_tokens",
        )
    asked = getattr(checked.peft, "trainable_token_indices", None) or []
    unknown = [i for row in (asked.values() if isinstance(asked, dict) else [asked]) for i in row]
    if any(i >= max(ids, embeddings) for i in unknown):
        yield Problem(
            "peft.trainable_token_indices",
            f": there is no token {max(unknown)}; the ids end at {max(ids, embeddings) - 1:,}",
        )


def _added_token_notes(checked: Checked, tokenizer: Tokenizer) -> Iterator[str]:
    if tokenizer.to_train and checked.peft is not None:
        where = "" if checked.dimensions.tied else " of the output layer"
        count, row = len(tokenizer.to_train), "embedding" if checked.dimensions.tied else "row"
        one, several = f"1 added token: its {row}{where} keeps", f"{count} added tokens: their {row}s{where} keep"
        yield f"{one if count == 1 else several} the mean of the old ones under an adapter"


def _situation(job: Job, device: str, *, adapter: bool) -> Situation:
    return Situation(
        dtype=Dtype(job.model.dtype),
        adapter=adapter,
        device=device,
        # a GPU that is only planned for is taken to be of this decade
        bf16_supported=device == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported()),
        bf16=job.training.get("bf16"),
        fp16=job.training.get("fp16"),
    )


def tokenizer_at_hand(job: Job) -> Tokenizer | None:
    """The tokenizer, if it can be had without the network where the job can be checked without it too."""
    if job.model.architecture is None:
        return load.load_tokenizer(job.model)
    try:
        return load.load_tokenizer(job.model, local_files_only=True)
    except UserError:
        return None


def label_problems(job: Job, prepared: Prepared, tokenizer: Tokenizer) -> Iterator[Problem]:
    """Settings that look at a measure of labels, where the held-out rows have none."""
    early, of_labels = job.callbacks.early_stopping, names_at(metrics_of(job), Place.labels)
    asked = [
        ("training.metric_for_best_model", job.training.get("metric_for_best_model")),
        ("callbacks.early_stopping.metric", early.metric if early is not None else None),
        *(("callbacks.stop_when", name) for rule in stop_rules(job.callbacks) for name in conditions.read(rule).names),
        ("compare_by", job.compare_by),
    ]
    for field, metric in asked:
        if metric is None or not metric.endswith(of_labels):
            continue
        # of one set, or of all
        named = [
            part for part in prepared.held_out if part.name and re.search(rf"[_.]{re.escape(part.name)}[_.]", metric)
        ]
        if not all(evaluate.labels_of(part.rows, tokenizer.tokenizer) for part in named or prepared.held_out):
            yield Problem(
                field,
                f"={metric} needs held-out rows whose answers are labels, up to {metrics.LABELS_AT_MOST} "
                "different ones; most of these have an answer of their own: take exact_match",
            )


def rows_of(job: Job, prepared: Prepared) -> Rows:
    """The training rows of an epoch in numbers, counted; those that are streamed are like the first ones."""
    ledger = prepared.ledger
    share = ledger.tokens_trained / max(ledger.tokens_total, 1)
    if prepared.streamed is not None:
        return _streamed_rows(job, ledger.tokens_total / ledger.rows_trained, share)
    return Rows(
        rows=len(prepared.train),
        tokens=prepared.epoch_tokens,
        longest=max(ledger.lengths, default=0),
        supervised_share=share,
    )


def _streamed_rows(job: Job, mean_length: float, supervised_share: float) -> Rows:
    """What `max_steps` takes of a stream; any of its rows may be as long as `max_length`."""
    training = job.training
    batch = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    rows = training["max_steps"] * batch
    return Rows(
        rows=rows,
        tokens=round(rows * mean_length),
        longest=job.data.max_length,
        estimated=True,
        supervised_share=supervised_share,
        streamed=True,
    )


def estimated_rows(job: Job) -> Rows:
    """The training rows in numbers, estimated from characters; the rows are read and formatted all the same."""
    scan = scan_data(job.data, job.seed)
    if job.data.streaming:
        mean = scan.characters_total / CHARACTERS_PER_TOKEN / max(scan.rows, 1) + 2
        return _streamed_rows(job, mean, scan.characters_trained / max(scan.characters_total, 1))
    return Rows(
        rows=scan.rows,
        tokens=round(scan.characters_total / CHARACTERS_PER_TOKEN) + 2 * scan.rows,
        longest=min(round(scan.characters_longest / CHARACTERS_PER_TOKEN) + 2, job.data.max_length),
        estimated=True,
        supervised_share=scan.characters_trained / max(scan.characters_total, 1),
    )


def resumed_steps_problems(job: Job, made: Plan) -> Iterator[Problem]:
    """A checkpoint with nothing left to train after it."""
    if job.training.get("resume") not in (None, resume.AUTO):
        done = resume.steps_done(Path(job.training["resume"]))
        if done >= made.total_steps:
            yield Problem(
                "training.resume",
                f": the checkpoint is at step {done:,} of {made.total_steps:,}, so "
                "nothing is left to train; raise training.num_train_epochs or training.max_steps",
            )


def make_plan(job: Job, checked: Checked, rows: Rows, prepared: Prepared | None) -> Plan:
    """What the run will take; raises UserError when a row, held out or not, does not fit the model.

    `prepared` is None where the rows are only estimated.
    """
    names = Training.__dataclass_fields__.keys() & job.training.keys()
    training = Training(max_length=job.data.max_length, **{name: job.training[name] for name in names - {"max_length"}})
    problems = [*length_problems(job, checked, rows), *batch_problems(training, rows)]
    if prepared is not None:
        problems += held_out_problems(job, checked, prepared)
    raise_if_any(problems)
    machine = Machine(checked.device, checked.attention, checked.precision)
    made = plan_work(Work(checked.dimensions, rows, training, machine, sharing_of(job.launcher)))
    raise_if_any(resumed_steps_problems(job, made))
    return made


def sharing_of(launcher: Launcher) -> Sharing:
    """How the job's processes share the work, as many as were started or will be."""
    rank = ranks.here()
    processes = rank.processes if rank.started else max(process_counts.total_processes(launcher), 1)
    if not is_sharded(launcher):
        return Sharing(processes)
    hybrid = launcher.sharding_strategy is Sharding.hybrid_shard
    return Sharing(
        processes,
        sharded_over=max(processes // launcher.num_machines, 1) if hybrid else processes,
        reshard=launcher.sharding_strategy is not Sharding.shard_grad_op,
        cpu_offload=launcher.cpu_offload,
    )


def device_bytes(launcher: Launcher, device: str) -> int | None:
    """Memory of a device; a process's share of the machine's on a CPU, None where the device is not here."""
    if launcher.device_gib is not None:
        return round(launcher.device_gib * GIB)
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return int(psutil.virtual_memory().total) // max(process_counts.local_processes(launcher), 1)
