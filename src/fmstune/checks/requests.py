"""A request after training → its problems, as far as they show without torch; all of them at once."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fmstune import files
from fmstune.config.requests import NOTHING_TO_ASK, PROMPTS, SAMPLING, Generation, Harness, Merge, Scoring
from fmstune.errors import Problem, UserError
from fmstune.runs import checkpoints, run_folder


def model_place(given: str) -> str:
    """The folder of the weights, where the folder of a run was given; anything else comes back as it is."""
    inside = Path(given).expanduser() / run_folder.MODEL
    return str(inside) if inside.is_dir() and not _holds_a_model(inside.parent) else given


def generation(request: Generation, data_format: str | None) -> Iterator[Problem]:
    """What is wrong with `fmstune generate`'s flags; `request.model` has gone through `model_place`.

    `data_format` is the choice from which `request.format` is to be made.
    """
    yield from _place("--model", request.model)
    if request.base_model_name_or_path is not None:
        yield from _place("--base_model_name_or_path", request.base_model_name_or_path)
    yield from _asked(request)
    if request.rows_file is not None and data_format is None:
        yield Problem("--rows_file", "needs --format, which makes prompts of rows, such as --format alpaca")
    yield from out_file(request.out_file, lines_to_go_on=request.resume)
    for name in ("batch_size", "max_new_tokens"):
        if getattr(request, name) < 1:
            yield Problem(f"--{name}", f"must be at least 1, got {getattr(request, name)}")
    if request.stream and request.resume:
        yield Problem("--stream", "shows answers as they come, and --resume goes on in a file; leave one of them out")
    if any(not text for text in request.stop):
        yield Problem("--stop", "is empty text, which ends nothing; leave it out")
    yield from _sampling(request)


def _asked(request: Generation) -> Iterator[Problem]:
    """Exactly one kind of prompts, and it is there."""
    given = {name: getattr(request, name) for name in PROMPTS}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if not named:
        yield NOTHING_TO_ASK
    elif len(named) > 1:
        yield Problem("", f"{' and '.join(named)} exclude each other; give one of them")
    if request.text_file not in (None, "-"):
        yield from files.absent("--text_file", str(request.text_file))
    if request.rows_file is not None:
        yield from files.absent("--rows_file", request.rows_file)


def _sampling(request: Generation) -> Iterator[Problem]:
    """Values that transformers would refuse late, or take and not use."""
    unused = [f"--{name}" for name in SAMPLING if getattr(request, name) is not None]
    if unused and not request.do_sample:
        yield Problem(
            "", f"{', '.join(unused)} without --do_sample: the likeliest token is taken in any case; add --do_sample"
        )
    if request.temperature is not None and not 0 < request.temperature < math.inf:
        yield Problem(
            "--temperature", f"must be above 0, got {request.temperature:g}; leave --do_sample out for the likeliest"
        )
    if request.top_p is not None and not 0 < request.top_p <= 1:
        yield Problem("--top_p", f"must be above 0 and at most 1, got {request.top_p:g}")
    if request.top_k is not None and request.top_k < 1:
        yield Problem("--top_k", f"must be at least 1, got {request.top_k}")
    if request.repetition_penalty is not None and not 0 < request.repetition_penalty < math.inf:
        yield Problem("--repetition_penalty", f"must be above 0, got {request.repetition_penalty:g}")
    if not 0 <= request.seed < 2**32:
        yield Problem("--seed", f"must be at least 0 and below 2**32, got {request.seed}")


def out_file(given: str, *, lines_to_go_on: bool) -> Iterator[Problem]:
    """Where the answers go. A JSON list is written anew, as the early tool did; lines are only ever added to."""
    path = Path(given)
    if path.suffix not in (".json", ".jsonl"):
        yield Problem("--out_file", f"must end in .json (a list) or .jsonl (a line an answer), got {given}")
    elif path.is_dir():
        yield Problem("--out_file", f": {path} is a folder; name a file")
    elif not path.parent.is_dir():
        yield Problem("--out_file", f": there is no folder {path.parent}; make it, or choose another")
    else:
        yield from _not_writable("--out_file", path.parent)
    if lines_to_go_on and path.suffix != ".jsonl":
        yield Problem("--resume", f"needs an --out_file of JSON lines (.jsonl), got {given}")
    elif path.suffix == ".jsonl" and path.is_file() and not lines_to_go_on:
        yield Problem("--out_file", f": {path} is there; add --resume to go on with it, or choose another")


def merge(request: Merge) -> Iterator[Problem]:
    """What is wrong with `fmstune merge`'s flags; each of `request.model` has gone through `model_place`."""
    for model in request.model:
        yield from _place("--model", model)
        if request.model.count(model) > 1:
            yield Problem(
                "--model", f": {model} is given {request.model.count(model)} times; give it once, with --weight"
            )
            break
    if request.base_model_name_or_path is not None:
        yield from _place("--base_model_name_or_path", request.base_model_name_or_path)
    if request.weight and len(request.weight) != len(request.model):
        yield Problem(
            "--weight", f"is given {len(request.weight)} times for {len(request.model)} --model; give one for each"
        )
    for weight in request.weight:
        if not math.isfinite(weight) or weight == 0:
            yield Problem("--weight", f"must be a number other than 0, got {weight:g}")
    yield from _folder_to_write(request.out)
    size = re.fullmatch(r"(\d+)[KMGT]B", request.max_shard_size)
    if size is None or int(size[1]) == 0:
        yield Problem("--max_shard_size", f"must be a size such as 500MB or 5GB, got {request.max_shard_size}")
    if request.export is not None and (len(request.model) > 1 or set(request.weight) - {1.0}):
        yield Problem(
            "--export", f"{request.export.value} takes one adapter as it is; leave --weight and further --model out"
        )
    if request.export is not None and (request.dtype, request.max_shard_size) != (Merge.dtype, Merge.max_shard_size):
        yield Problem("--dtype", "and --max_shard_size are of a merged model; leave them out beside --export")


def evaluation(request: Scoring | Harness) -> Iterator[Problem]:
    """What is wrong with `fmstune evaluate`'s flags; `request.model` has gone through `model_place`."""
    yield from _place("--model", request.model)
    if request.base_model_name_or_path is not None:
        yield from _place("--base_model_name_or_path", request.base_model_name_or_path)
        if request.no_base:
            yield Problem(
                "--no_base", "compares with no model, and --base_model_name_or_path names one; leave one of them out"
            )
    path = Path(request.out_file)
    if path.suffix != ".json":
        yield Problem(
            "--out_file", f"must end in .json, got {request.out_file}; a table in Markdown is written beside it"
        )
    elif path.is_dir() or not path.parent.is_dir():
        yield Problem("--out_file", f": {path} is a folder, or there is no folder {path.parent}; choose another")
    else:
        yield from _not_writable("--out_file", path.parent)
    numbers = ("batch_size", "max_rows", "max_new_tokens", "limit")
    for name in (name for name in numbers if getattr(request, name, None) is not None):
        if getattr(request, name) < 1:
            yield Problem(f"--{name}", f"must be at least 1, got {getattr(request, name)}")
    if not 0 <= request.seed < 2**32:
        yield Problem("--seed", f"must be at least 0 and below 2**32, got {request.seed}")
    if isinstance(request, Harness):
        yield from _harness(request)
    elif len({" ".join(label.casefold().split()) for label in request.label}) < len(request.label):
        yield Problem("--label", ": two labels are the same but for case and spaces; give each once")
    elif len(request.label) == 1 or not all(label.strip() for label in request.label):
        yield Problem("--label", ": give at least two labels that are not blank, or none for those that the rows have")


def _harness(request: Harness) -> Iterator[Problem]:
    if not all(request.tasks):
        yield Problem("--tasks", f": an empty name in {','.join(request.tasks)!r}; give names with commas between them")
    if request.num_fewshot is not None and request.num_fewshot < 0:
        yield Problem("--num_fewshot", f"must be at least 0, got {request.num_fewshot}")
    if request.include_path is not None and not Path(request.include_path).expanduser().is_dir():
        yield Problem(
            "--include_path", f": there is no folder {request.include_path}; name the one that holds the tasks' YAML"
        )
    if importlib.util.find_spec("lm_eval") is None:
        yield Problem("evaluate", "harness needs lm-evaluation-harness; pip install 'fmstune[eval]'")


def _folder_to_write(given: str) -> Iterator[Problem]:
    path = Path(given).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        yield Problem("--out", f": {path} is there; choose another folder")
    elif not path.parent.is_dir():
        yield Problem("--out", f": there is no folder {path.parent}; make it, or choose another")
    else:
        yield from _not_writable("--out", path.parent)


def _not_writable(flag: str, folder: Path) -> Iterator[Problem]:
    """Said before the model answers, and not after."""
    if not os.access(folder, os.W_OK):
        yield Problem(flag, f": the folder {folder} is not yours to write into; choose another")


def _place(flag: str, place: str) -> Iterator[Problem]:
    """A folder must hold a model or an adapter; what is no folder must look like a hub id."""
    try:
        folder = Path(files.resolve(place)).expanduser()
    except UserError as err:
        yield Problem(flag, f": {err}")
        return
    if folder.is_dir():
        if _holds_a_model(folder):
            return
        if (folder / run_folder.JOB).is_file():
            status = run_folder.read_summary(folder).get("status", "not begun")
            newest = checkpoints.newest_checkpoint(folder)
            hint = "choose another" if newest is None else f"take its checkpoint {newest}"
            yield Problem(flag, f": the run in {folder} has no model ({status}); wait for it, or {hint}")
        else:
            yield Problem(
                flag, f": {folder} has neither config.json nor adapter_config.json; give a run, a model or an adapter"
            )
    elif place.startswith(("/", "./", "../", "~")) or place.count("/") > 1 or not place:
        yield Problem(flag, f": there is no folder {folder}{files.did_you_mean_beside(folder)}")


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
