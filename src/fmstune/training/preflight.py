"""The checks of the runner before it reads a weight: the model's shape, its adapter, the device and the libraries."""

import copy
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend
from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments, get_scheduler

from fmstune.checks.data import sharing_problems
from fmstune.checks.fms import architecture_problems
from fmstune.checks.launcher import device_problems
from fmstune.checks.plan_inputs import Dimensions, Rows
from fmstune.checks.precision import Precision, Situation, precision_problems, resolve_precision
from fmstune.config.choices import BITSANDBYTES, Attention, Auto, Backend, Dtype, Kernels
from fmstune.config.job import Job, is_sharded, sources, tunes_an_adapter
from fmstune.data.chat_template import answer_ends
from fmstune.data.dataset import load_recipes
from fmstune.data.prefix_sharing.saved_positions import ENOUGH
from fmstune.errors import Problem, UserError, collect_problems, did_you_mean, raise_if_any
from fmstune.models import adapters, architecture, liger, load, saved_weights, shapes, varlen
from fmstune.models.experts import count_experts
from fmstune.models.load import Tokenizer
from fmstune.models.sharding import block_problems
from fmstune.models.torch_internals import list_mode_options
from fmstune.runs.run_folder import CHAT
from fmstune.training.named_classes import named_class_problems
from fmstune.training.transformers_internals import holds_state


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
    sharing_refusal: str | None = None
    """Why rows cannot share their beginnings, where `data.prefix_sharing=auto` asks; None where they can."""
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What fields became that were `auto` until the rows were known."""


def check_job(job: Job, *, device_here: bool = True) -> Checked:
    """Check model, adapter and device, or plan for a GPU that is not here; raises UserError with all problems."""
    problems: list[Problem] = []
    notes: list[str] = []
    device = job.launcher.device.value
    try:
        device = load.find_device(job.launcher.device)
    except UserError as err:
        if device_here:
            problems += err.problems
        else:
            how = "" if job.launcher.device_gib else "; launcher.device_gib=80 says what fits into one of 80 GiB"
            notes.append(f"no {device} device here: the plan is for one that computes in bfloat16{how}")
    with collect_problems(problems):
        load_recipes(job.data, None)
    problems += named_class_problems(job)
    with collect_problems(problems):
        empty, shape = _shape(job)
    planned = not torch.cuda.is_available()
    situation = Situation(
        dtype=Dtype(job.model.dtype),
        adapter=tunes_an_adapter(job),
        device=device,
        # a GPU that is only planned for is taken to be of this decade
        bf16_supported=device == "cuda" and (planned or torch.cuda.is_bf16_supported()),
        bf16=job.training.get("bf16"),
        fp16=job.training.get("fp16"),
        tf32_supported=device == "cuda" and (planned or torch.cuda.get_device_capability() >= (8,)),
        tf32=job.training.get("tf32"),
    )
    problems += [*precision_problems(situation), *compile_problems(job.training)]
    problems += _device_problems(job, device, here=device_here)
    resolved = resolve_precision(situation)
    # ibm-fms has no other
    asked = Attention.sdpa if job.model.backend is Backend.fms else job.model.attention
    with collect_problems(problems):
        if job.data.prefix_sharing is True:
            asked = Attention.varlen
        end_to_end = bool(job.training.get("packing") or job.training.get("padding_free"))
        attention = load.find_attention(asked, device, resolved, end_to_end=end_to_end)
        if not problems and job.data.prefix_sharing is True:
            raise_if_any(_shared_model_problems(job, empty))
        elif not problems:
            attention = load.usable_attention(empty, attention, asked=asked is not Attention.auto)
    raise_if_any(problems)
    refusal = _sharing_refusal(job, empty, device, resolved) if job.data.prefix_sharing is Auto.auto else None
    return Checked(*shape, device, resolved, attention, tuple(notes), refusal)


def _sharing_refusal(job: Job, model: PreTrainedModel, device: str, precision: Precision) -> str | None:
    """The first reason why rows cannot share their beginnings; None where they can."""
    problems = list(sharing_problems(job))
    with collect_problems(problems):
        load.find_attention(Attention.varlen, device, precision)
    if not problems:
        problems += _shared_model_problems(job, model)
    if not problems:
        return None
    # what comes after is what a user who wants it must change, and says no
    field, reason = problems[0].field, problems[0].text.partition(";")[0]
    if field == "data.prefix_sharing":
        return reason.removeprefix("=true: ").replace("=true", "it", 1)
    return str(Problem(field, reason))


class Settled(NamedTuple):
    """A job in which nothing is `auto` that its rows decide."""

    job: Job
    checked: Checked
    rows: Rows


def settle_sharing(job: Job, checked: Checked, rows: Rows) -> Settled:
    """Let `data.prefix_sharing=auto` become true where rows may share and save enough, else false, with a note."""
    if job.data.prefix_sharing is not Auto.auto:
        return Settled(job, checked, rows)
    found, why = rows.shared, checked.sharing_refusal
    shares = why is None and found is not None and found.share >= ENOUGH
    if why is None and found is None:
        why = "how much rows share is known once they are tokenised"
    elif why is None and found is not None:
        why = f"rows share {found.share:.1%} of their tokens, and it takes {ENOUGH:.0%}"
        why = f"{found.share:.1%} of the positions are saved" if shares else why
    word = "true" if shares else "false"
    return Settled(
        dataclasses.replace(job, data=dataclasses.replace(job.data, prefix_sharing=shares)),
        dataclasses.replace(
            checked,
            attention=Attention.varlen.value if shares else checked.attention,
            notes=(*checked.notes, f"data.prefix_sharing=auto is {word} here: {why}"),
            chosen={"data.prefix_sharing": {"value": shares, "why": why}},
        ),
        rows if shares else dataclasses.replace(rows, shared=None),
    )


def _shape(job: Job) -> tuple[PreTrainedModel, tuple[PreTrainedConfig, PeftConfig | None, Dimensions]]:
    """The model without numbers, and what it and its adapter are, as far as their configurations tell."""
    peft = adapters.peft_configuration(job.peft, job.model, job.objective)
    configuration = architecture.model_configuration(job.model, job.objective)
    if job.model.backend is Backend.fms:
        raise_if_any(architecture_problems(configuration))
    empty = architecture.build_empty(configuration, job.objective)
    problems = [
        *architecture.forward_problems(empty),
        *_liger_problems(job, configuration),
        *(block_problems(job, empty) if is_sharded(job.launcher) else ()),
        *_router_problems(job, configuration),
    ]
    with collect_problems(problems):
        saved_weights.check_weights(job.model, empty, job.objective.new_modules)
    raise_if_any(problems)
    # the adapter is put into the model, which no one asks for its names or shapes afterwards
    dimensions = shapes.dimensions(empty, peft, job.model.quantization)
    return empty, (configuration, peft, dimensions)


def _liger_problems(job: Job, configuration: PreTrainedConfig) -> Iterator[Problem]:
    """An architecture that Liger names no kernels for, where the package can be asked: it imports on a GPU alone."""
    asked, here = job.model.kernels is Kernels.liger, torch.cuda.is_available()
    if asked and here and importlib.util.find_spec("liger_kernel") is not None:
        yield from liger.kernel_problems(configuration)


def _router_problems(job: Job, configuration: PreTrainedConfig) -> Iterator[Problem]:
    """A weight of the router's loss for a model without a router."""
    weight = job.training.get("router_aux_loss_coef")
    if weight and not count_experts(configuration):
        text = f"={weight}: this {configuration.model_type} has no experts to keep evenly used; leave it out"
        yield Problem("training.router_aux_loss_coef", text)


def _shared_model_problems(job: Job, model: PreTrainedModel) -> Iterator[Problem]:
    """What keeps rows of this model from sharing their beginnings, or makes their loss another one."""
    field, kind = "data.prefix_sharing", type(model).__name__
    if holds_state(model):
        text = f"=true: {kind} reads a row token by token into a state, which two branches cannot share"
        yield Problem(field, f"{text}; set it to false")
        return
    for why in varlen.varlen_refusals(model):
        yield Problem(field, f"=true needs model.attention=varlen, and {why}; set it to false")
    if count_experts(model.config) and job.training.get("router_aux_loss_coef") != 0:
        text = (
            "must be 0 with data.prefix_sharing: the router's own loss would count a shared token once, not in each row"
        )
        yield Problem("training.router_aux_loss_coef", f"{text}; set it to 0, or data.prefix_sharing=false")


def _device_problems(job: Job, device: str, *, here: bool) -> Iterator[Problem]:
    """Needs of the job that the device does not meet, or `here`, where the job will run, this machine."""
    if job.training.get("activation_offloading") and device == "cpu":
        text = "needs an accelerator, and the device is the CPU; set it to false"
        yield Problem("training.activation_offloading", text)
    if job.model.quantization is not None and device != "cuda":
        change = "set it to null, or plan for a GPU with fmstune check launcher.device=cuda"
        yield Problem("model.quantization", f"needs a CUDA device, and the device is {device}; {change}")
    elif job.model.quantization is not None and here and importlib.util.find_spec("bitsandbytes") is None:
        text = "needs the package bitsandbytes; pip install 'fmstune[quant]', or set it to null"
        yield Problem("model.quantization", text)
    yield from _kernel_problems(job, device, here=here)
    optim = job.training.get("optim", "")
    if optim in BITSANDBYTES and device != "cuda":
        change = "set adamw_torch_fused, or plan for a GPU with fmstune check launcher.device=cuda"
        yield Problem("training.optim", f"={optim} needs a CUDA device, and the device is {device}; {change}")
    elif optim in BITSANDBYTES and here and importlib.util.find_spec("bitsandbytes") is None:
        text = f"={optim} needs the package bitsandbytes; pip install 'fmstune[quant]', or set adamw_torch_fused"
        yield Problem("training.optim", text)
    if here or job.launcher.slurm is None:
        # a Slurm job runs on nodes that have what this machine need not have
        yield from device_problems(job.launcher, device)


def _kernel_problems(job: Job, device: str, *, here: bool) -> Iterator[Problem]:
    """Yield a problem where Liger's kernels cannot run: they need CUDA, the package, and an architecture it names."""
    if job.model.kernels is Kernels.none:
        return
    if device != "cuda":
        change = "set it to none, or plan for a GPU with fmstune check launcher.device=cuda"
        text = f"=liger needs a CUDA device, as Triton compiles its kernels, and the device is {device}; {change}"
        yield Problem("model.kernels", text)
    elif here and importlib.util.find_spec("liger_kernel") is None:
        text = "=liger needs the package liger-kernel; pip install 'fmstune[liger]', or set it to none"
        yield Problem("model.kernels", text)


def compile_problems(training: Mapping[str, Any]) -> Iterator[Problem]:
    """Words for torch.compile that accelerate and torch look up only when they compile."""
    for name, list_known in (("torch_compile_backend", _backends), ("torch_compile_mode", list_mode_options)):
        word = training.get(name)
        if word is not None and word.lower() not in (known := list(list_known())):
            hint = did_you_mean(word, known)
            yield Problem(f"training.{name}", f"must be one of {', '.join(known)}; got {word!r}{hint}")


def _backends() -> list[str]:
    """Backends that both accelerate and this torch have; torch takes a second to list its own."""
    here = torch.compiler.list_backends(exclude_tags=())
    return [backend.value.lower() for backend in DynamoBackend if backend.value.lower() in here]


def optimizer_problems(arguments: TrainingArguments) -> Iterator[Problem]:
    """Values that the optimizer or its schedule refuses, which transformers would do after the base's evaluation."""
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


def with_tokenizer(job: Job, checked: Checked, tokenizer: Tokenizer) -> Checked:
    """The same with rows for added tokens; raises UserError for a token that the model does not have."""
    raise_if_any(_tokenizer_problems(checked, tokenizer))
    rows = max(checked.dimensions.vocabulary, len(tokenizer.tokenizer))
    # TRL's fused head reads `lm_head.weight`, which PEFT's wrapper of tied rows hides
    peft = adapters.with_added_tokens(checked.peft, () if checked.dimensions.tied else tokenizer.to_train)
    notes = (*checked.notes, *_turn_end_notes(job, tokenizer), *_mean_notes(checked, tokenizer))
    if rows == checked.dimensions.vocabulary and peft is checked.peft:
        return dataclasses.replace(checked, notes=notes)
    configuration = copy.deepcopy(checked.configuration)
    configuration.get_text_config().vocab_size = rows
    empty = architecture.build_empty(configuration, job.objective)
    dimensions = shapes.dimensions(empty, peft, job.model.quantization)
    return dataclasses.replace(checked, configuration=configuration, peft=peft, dimensions=dimensions, notes=notes)


def _mean_notes(checked: Checked, tokenizer: Tokenizer) -> Iterator[str]:
    """Added tokens that keep the mean embedding under an adapter, and the field that trains them."""
    indices, tied = getattr(checked.peft, "trainable_token_indices", ()), checked.dimensions.tied
    named = {number for row in (indices.values() if isinstance(indices, dict) else [indices or ()]) for number in row}
    left = [number for number in tokenizer.to_train if not (tied and number in named)]
    if not left or checked.peft is None:
        return
    row, where = ("embedding", "") if tied else ("row", " of the output layer")
    one, several = f"1 added token: its {row}{where} keeps", f"{len(left)} added tokens: their {row}s{where} keep"
    text = f"{one if len(left) == 1 else several} the mean of the old ones under an adapter"
    # of untied ones PEFT trains the embedding, and a list of ids is for both of a tied pair
    takes = tied and indices != ()
    ids, them = ",".join(map(str, sorted({*named, *left}))), "it" if len(left) == 1 else "them"
    yield f"{text}; peft.trainable_token_indices=[{ids}] trains {them}" if takes else text


def _turn_end_notes(job: Job, tokenizer: Tokenizer) -> Iterator[str]:
    """The end of an answer in chat rows, where the tokenizer has no token for it: a server stops at tokens alone."""
    targets = {(source.format or {}).get("_target_") for source in sources(job.data, "train").values()}
    if CHAT in targets:
        for end in answer_ends(tokenizer.tokenizer):
            if end.token is None:
                named = f"model.special_tokens.extra_special_tokens=['{end.text}'] adds one"
                yield f"the chat template ends an answer with {end.text}, which the tokenizer has no token for; {named}"


def _tokenizer_problems(checked: Checked, tokenizer: Tokenizer) -> Iterator[Problem]:
    ids, embeddings = len(tokenizer.tokenizer), checked.dimensions.vocabulary
    if (own := ids - len(tokenizer.added)) > embeddings:
        change = "take the model's own tokenizer, and add tokens with model.special_tokens"
        text = f": the tokenizer has {own:,} ids and the model {embeddings:,} embeddings; {change}"
        yield Problem("model.tokenizer", text)
    asked = getattr(checked.peft, "trainable_token_indices", None) or []
    unknown = [i for row in (asked.values() if isinstance(asked, dict) else [asked]) for i in row]
    if any(i >= max(ids, embeddings) for i in unknown):
        text = f": no token {max(unknown)}; the ids end at {max(ids, embeddings) - 1:,}"
        yield Problem("peft.trainable_token_indices", text)


def available_tokenizer(job: Job) -> Tokenizer | None:
    """The tokenizer, if it can be had without the network where the job can be checked without it too."""
    try:
        return load.load_tokenizer(job.model, local_files_only=job.model.architecture is not None)
    except UserError:
        if job.model.architecture is None:
            raise
        return None
