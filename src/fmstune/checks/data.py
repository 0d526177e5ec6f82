"""Rules on the data group: sources, streaming, and the settings of its format."""

import re
from collections.abc import Iterator

from fmstune import files
from fmstune.checks.limits import ABOVE_0_AND_FINITE, AT_LEAST_1, limit_problems
from fmstune.checks.peft import learns_a_prompt
from fmstune.config.choices import Attention, Backend, Overlap
from fmstune.config.job import SFT, Data, Job, sources
from fmstune.data.locate import local_files
from fmstune.errors import Problem, UserError


def data_problems(job: Job) -> Iterator[Problem]:
    """Yield the problems of the data group; files are looked for, and no row is read."""
    data = job.data
    for part in ("train", "eval"):
        yield from _source_problems(data, part)
    if data.eval is not None and 0 < data.eval_fraction < 1:
        yield Problem("data.eval", "and data.eval_fraction both say which rows are held out; set one of them")
    if data.quarantine is not None:
        yield from files.absent("data.quarantine", data.quarantine)
    if "text_field" in data.format and not data.format["text_field"]:
        yield Problem("data.text_field", "must name the column that holds the text")
    if data.format["_target_"] == "fmstune.data.formats.template":
        yield from files.absent("data.format.template_file", str(data.format.get("template_file")))
    if data.streaming:
        yield from _streaming_problems(job)
    if data.prefix_sharing is True:
        yield from sharing_problems(job)


def _source_problems(data: Data, part: str) -> Iterator[Problem]:
    found = sources(data, part)
    for name, source in found.items():
        field = f"data.{part}.{name}" if name else f"data.{part}"
        if name and not re.fullmatch(r"\w[\w-]*", name):
            yield Problem(field, ": a source's name is made of letters, digits, _ and -; change it")
        try:
            local_files(source.path, field)
        except UserError as err:
            yield from err.problems
        if source.max_rows != data.max_rows:
            yield from limit_problems(f"{field}.max_rows", source.max_rows, AT_LEAST_1)
        yield from limit_problems(f"{field}.weight", source.weight, ABOVE_0_AND_FINITE)
    weighted = [name for name, source in found.items() if source.weight is not None]
    if weighted and part == "eval":
        yield Problem(f"data.eval.{weighted[0]}.weight", ": held-out rows are not mixed; leave it out")
    elif weighted and len(weighted) < len(found):
        without = ", ".join(name for name in found if name not in weighted)
        text = f": {', '.join(weighted)} has a weight and {without} has none; give all of them one, or none"
        yield Problem("data.train", text)
    if getattr(data, part) == {}:
        yield Problem(f"data.{part}", "names no source; give some, such as {a: a.jsonl, b: b.jsonl}")


def _streaming_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each setting that needs the number of rows, or all of them."""
    training = job.training
    if training.get("max_steps", -1) < 1:
        yield Problem("data.streaming", "=true does not know the number of rows; set training.max_steps")
    if job.data.eval is None and job.data.eval_fraction > 0:
        yield Problem("data.streaming", "=true cannot draw the rows of data.eval_fraction; set data.eval")
    if workers := training.get("dataloader_num_workers"):
        text = f"=true counts rows in the training process; set training.dataloader_num_workers=0, got {workers}"
        yield Problem("data.streaming", text)
    if (order := training.get("train_sampling_strategy")) not in (None, "random"):
        text = f"={order} needs all rows before training; set data.streaming=false"
        hint = "(data.buffer_size says how streamed rows are shuffled)"
        yield Problem("training.train_sampling_strategy", f"{text} {hint}")
    if job.data.overlap is Overlap.drop:
        yield Problem("data.overlap", "=drop needs all rows before training; set keep, or data.streaming=false")


_OWN_LOSS = {
    "label_smoothing_factor": "TRL smooths labels by position, and a shared position stands for several rows",
    "neftune_noise_alpha": "its noise depends on the length of a row, and the rows are one line",
    "pad_to_multiple_of": "the rows are one line, which is not padded",
    "eval_packing": "held-out rows are packed as those of training are",
    "padding_free": "it lays the rows on one line already",
}
"""Fields of `training` that do not go with shared beginnings, and why."""


def sharing_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each setting under which rows that share would not be trained as they are alone."""
    training, field, attention = job.training, "data.prefix_sharing", job.model.attention
    if job.objective._target_ != SFT:
        yield Problem(field, "=true is for objective=sft, whose loss it computes; set it to false")
    if learns_a_prompt(job.peft):
        method = job.peft["_target_"].removeprefix("peft.").removesuffix("Config")
        text = f"=true: each row begins with the virtual tokens of {method}, and PEFT drops the positions"
        yield Problem(field, f"{text}; set it to false, or choose peft=lora")
    if job.model.backend is Backend.fms:
        yield Problem(
            field, "=true needs model.backend=transformers: ibm-fms has no attention along a path of segments"
        )
    if attention in (Attention.sdpa, Attention.eager, Attention.flash_attention_2):
        text = f"={attention.value} cannot attend to a beginning that stands elsewhere, which data.prefix_sharing needs"
        yield Problem("model.attention", f"{text}; leave it at auto")
    if job.data.streaming:
        text = "=true reads rows one after the other, and data.prefix_sharing brings together those that begin alike"
        yield Problem("data.streaming", f"{text}; set one of them to false")
    elif (order := training.get("train_sampling_strategy")) in ("group_by_length", "batch_rebalance"):
        text = f"={order} chooses the rows of a batch by their lengths, and data.prefix_sharing by their beginnings"
        yield Problem("training.train_sampling_strategy", f"{text}; leave it out")
    for name, why in _OWN_LOSS.items():
        # transformers' own word for its default
        if training.get(name) not in (None, False, 0, "auto"):
            yield Problem(f"training.{name}", f"does not go with data.prefix_sharing: {why}; leave it out")
