"""Rules on the flags of `generate`, `merge`, `evaluate`, `serve` and `chat`."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fmstune import files
from fmstune.checks.limits import flag_problems
from fmstune.config.after_training.serving import API_KEY, LOCAL_HOSTS, Serving, ServingEngine, Talk
from fmstune.config.after_training.sharing import Push
from fmstune.config.choices import Attention
from fmstune.config.requests import (
    NOTHING_TO_ASK,
    PROMPTS,
    SAMPLING,
    Export,
    Generation,
    Harness,
    Merge,
    Parity,
    Scoring,
    SuspectRows,
)
from fmstune.errors import Problem, UserError
from fmstune.runs import checkpoints, manifest, run_folder


def run_model(given: str) -> str:
    """The folder of the weights, where the folder of a run is given; any other place as it is given."""
    inside = files.user_path(given) / run_folder.MODEL
    return str(inside) if inside.is_dir() and not _holds_a_model(inside.parent) else given


def generation_problems(request: Generation, data_format: str | None) -> Iterator[Problem]:
    """Yield the problems of `fmstune generate`; `data_format` is the choice of `--format`."""
    yield from _model_problems(request)
    prompts = [f"--{name}" for name in PROMPTS if getattr(request, name) is not None]
    if not prompts:
        yield NOTHING_TO_ASK
    elif len(prompts) > 1:
        yield Problem(" and ".join(prompts), "exclude each other; give one of them")
    if request.text_file not in (None, "-"):
        yield from files.absent("--text_file", str(request.text_file))
    if request.rows_file is not None:
        yield from files.absent("--rows_file", request.rows_file)
    if request.rows_file is not None and data_format is None:
        yield Problem("--rows_file", "needs --format, which makes prompts of rows, such as --format alpaca")
    path = Path(request.out_file)
    what = f".json (a list) or .jsonl (one line for each answer), got {path}"
    yield from _out_file_problems(path, (".json", ".jsonl"), what)
    if request.resume and path.suffix != ".jsonl":
        yield Problem("--resume", f"needs an --out_file of JSON lines (.jsonl), got {path}")
    elif path.suffix == ".jsonl" and path.is_file() and not request.resume:
        yield Problem("--out_file", f": {path} exists; add --resume to continue it, or choose another")
    yield from flag_problems(request)
    if request.stream and request.resume:
        yield Problem("--stream", "shows answers as they come, and --resume continues a file; leave one of them out")
    if any(not text for text in request.stop):
        yield Problem("--stop", "is empty text, which would never stop an answer; leave it out")
    unused = [f"--{name}" for name in SAMPLING if getattr(request, name) is not None]
    if unused and not request.do_sample:
        yield Problem(", ".join(unused), ": no effect without --do_sample; add it, or leave the others out")


def _out_file_problems(path: Path, suffixes: tuple[str, ...], what: str) -> Iterator[Problem]:
    if path.suffix not in suffixes:
        yield Problem("--out_file", f"must end in {what}")
    elif path.is_dir():
        yield Problem("--out_file", f": {path} is a folder; name a file")
    else:
        yield from _parent_problems("--out_file", path)


def _parent_problems(flag: str, path: Path) -> Iterator[Problem]:
    """Yield a problem where no file or folder can be made in the parent of this one."""
    if not path.parent.is_dir():
        yield Problem(flag, f": no folder {path.parent}; make it, or choose another")
    elif not os.access(path.parent, os.W_OK):
        yield Problem(flag, f": you have no permission to write into the folder {path.parent}; choose another")


def merge_problems(request: Merge) -> Iterator[Problem]:
    """Yield the problems of `fmstune merge`."""
    yield from _model_problems(request)
    if (most := max(request.model, key=request.model.count)) and (times := request.model.count(most)) > 1:
        yield Problem("--model", f": {most} is given {times} times; give it once, with --weight")
    if request.weight and len(request.weight) != len(request.model):
        text = f"is given {len(request.weight)} times for {len(request.model)} --model; give one for each"
        yield Problem("--weight", text)
    for weight in request.weight:
        if not math.isfinite(weight) or weight == 0:
            yield Problem("--weight", f"must be a number other than 0, got {weight:g}")
    out = Path(request.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        yield Problem("--out", f": {out} exists; choose another folder")
    else:
        yield from _parent_problems("--out", out)
    if request.parity_rows < 0:
        yield Problem("--parity_rows", f"must be at least 0, got {request.parity_rows}")
    size = re.fullmatch(r"(\d+)[KMGT]B", request.max_shard_size)
    if size is None or int(size[1]) == 0:
        yield Problem("--max_shard_size", f"must be a size such as 500MB or 5GB, got {request.max_shard_size}")
    yield from _export_problems(request)


def _export_problems(request: Merge) -> Iterator[Problem]:
    if request.export is Export.vllm_lora and (len(request.model) > 1 or set(request.weight) - {1.0}):
        text = f"{request.export.value} takes one adapter as it is; leave --weight and further --model out"
        yield Problem("--export", text)
    if request.export is not None and (request.dtype, request.max_shard_size) != (Merge.dtype, Merge.max_shard_size):
        yield Problem("--dtype", "and --max_shard_size apply to a merged model; leave them out with --export")
    if request.export not in (Export.gguf, Export.ollama):
        if request.gguf_type is not Merge.gguf_type:
            yield Problem("--gguf_type", "applies to a GGUF file; add --export gguf or --export ollama")
        return
    yield from _gguf_problems("--export", request.export.value)


def _gguf_problems(flag: str, what: str) -> Iterator[Problem]:
    if importlib.util.find_spec("gguf") is None:
        yield Problem(flag, f"{what} needs the package gguf; pip install 'fmstune[gguf]'".strip())


def evaluation_problems(request: Scoring | Harness) -> Iterator[Problem]:
    """Yield the problems of `fmstune evaluate`."""
    yield from _model_problems(request)
    if request.no_base and request.base_model_name_or_path is not None:
        yield Problem("--no_base", "and --base_model_name_or_path exclude each other; give one of them")
    what = f".json, got {request.out_file}; a table is written next to it, as .md"
    yield from _out_file_problems(Path(request.out_file), (".json",), what)
    yield from flag_problems(request)
    if isinstance(request, Harness):
        if not all(request.tasks):
            text = f": an empty name in {','.join(request.tasks)!r}; give names with commas between them"
            yield Problem("--tasks", text)
        if request.include_path is not None and not files.user_path(request.include_path).is_dir():
            text = f": no folder {request.include_path}; name the folder that holds the YAML files of the tasks"
            yield Problem("--include_path", text)
        if importlib.util.find_spec("lm_eval") is None:
            yield Problem("evaluate", "harness needs lm-evaluation-harness; pip install 'fmstune[eval]'")
    elif len({" ".join(label.casefold().split()) for label in request.label}) < len(request.label):
        yield Problem("--label", ": two labels are the same but for case and spaces; give each once")
    elif len(request.label) == 1 or not all(label.strip() for label in request.label):
        yield Problem("--label", ": give at least two labels that are not blank, or none for those that the rows have")


def parity_problems(request: Parity) -> Iterator[Problem]:
    """Yield the problems of `fmstune parity`."""
    folder = files.user_path(request.run)
    if not (folder / run_folder.JOB).is_file():
        text = f": {request.run} is not the folder of a run; give one that holds {run_folder.JOB}"
        yield Problem("parity", text + files.did_you_mean_beside(folder))
    elif not (folder / run_folder.MODEL).is_dir():
        status = run_folder.read_summary(folder).get("status", "not begun")
        yield Problem("parity", f": the run in {folder} has no model ({status}); wait for it, or resume it")
    if request.rows < 1:
        yield Problem("--rows", f"must be at least 1, got {request.rows}")
    if request.endpoint is not None and not re.match(r"https?://[^/]", request.endpoint):
        text = f"must be a URL such as http://127.0.0.1:8000, got {request.endpoint}"
        yield Problem("--endpoint", text)
    if request.gguf is not None:
        yield from files.absent("--gguf", request.gguf)
        yield from _gguf_problems("--gguf", "")
        if request.endpoint is not None or request.dtype is not Parity.dtype:
            yield Problem("--gguf", "and --endpoint or --dtype exclude each other: the file says how it is served")
    if request.served_model is not None and request.endpoint is None:
        yield Problem("--served_model", "names a model of --endpoint; give both, or neither")
    if request.base_model_name_or_path is not None:
        yield from _place_problems("--base_model_name_or_path", request.base_model_name_or_path)


def conversing_problems(request: Serving | Talk) -> Iterator[Problem]:
    """Yield the problems of `fmstune serve` and `fmstune chat`."""
    yield from _model_problems(request)
    yield from flag_problems(request)
    if request.no_base and request.base_model_name_or_path is not None:
        yield Problem("--no_base", "and --base_model_name_or_path exclude each other; give one of them")
    if isinstance(request, Serving):
        yield from _serving_problems(request)
        return
    if request.compare and request.no_base:
        yield Problem("--compare", "shows the base, and --no_base leaves it out; leave one of them out")
    unused = [f"--{name}" for name in ("top_p", "seed") if getattr(request, name) is not None]
    if unused and request.temperature is None:
        yield Problem(", ".join(unused), ": no effect without --temperature; add it, or leave the others out")
    if request.history is not None:
        yield from _parent_problems("--history", Path(request.history))


def _serving_problems(request: Serving) -> Iterator[Problem]:
    key = os.environ.get(API_KEY)
    if key is not None and (not key.strip() or not key.isascii() or key != key.strip()):
        yield Problem(API_KEY, "must be a key in ASCII without spaces around it; set one, or unset the variable")
    if key is None and request.host not in LOCAL_HOSTS:
        text = f": others reach {request.host}, and the server would answer anyone; set a key in {API_KEY}, which "
        yield Problem("--host", f"{text}clients send, or leave --host out")
    if request.engine is ServingEngine.vllm:
        own = ("batch_size", "max_waiting", "grace", "max_new_tokens", "no_base", "data_format")
        if given := [f"--{name}" for name in own if getattr(request, name) != getattr(Serving, name)]:
            yield Problem(
                ", ".join(given).replace("data_format", "format"), ": no effect with --engine vllm; leave out"
            )
        return
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(module) is None:
            yield Problem("serve", f"needs {module}; pip install 'fmstune[serve]'")


def suspects_problems(request: SuspectRows) -> Iterator[Problem]:
    """Yield the problems of `fmstune rows`."""
    if request.rows < 1:
        yield Problem("--rows", f"must be at least 1, got {request.rows}")
    if not (files.user_path(request.run) / run_folder.JOB).is_file():
        yield Problem("rows", f": {request.run} is not the folder of a run; give one that holds {run_folder.JOB}")
    for flag, place in (("--html", request.html), ("--json", request.json), ("--quarantine", request.quarantine)):
        if place is not None and Path(place).is_dir():
            yield Problem(flag, f": {place} is a folder; name a file")
        elif place is not None:
            yield from _parent_problems(flag, Path(place))


def push_problems(request: Push) -> Iterator[Problem]:
    """Yield the problems of `fmstune push` that can be known without the hub."""
    folder = files.user_path(run_model(request.run))
    found = list(_place_problems("push", str(folder)))
    if not found and not folder.is_dir():
        found = [Problem("push", f": no folder {folder}{files.did_you_mean_beside(folder)}")]
    yield from found
    yield from _repository_problems(request.repo)
    if request.parity_rows < 0:
        yield Problem("--parity_rows", f"must be at least 0, got {request.parity_rows}")
    base = request.base_model_name_or_path
    if base is not None and (not files.is_model_id(base) or files.user_path(base).exists()):
        yield Problem("--base_model_name_or_path", f"must be the base's id on the hub, got {base!r}")


def _repository_problems(repo: str) -> Iterator[Problem]:
    """Yield a problem where the hub gives no repository this name (huggingface_hub: validate_repo_id)."""
    if repo.count("/") != 1 or not files.is_model_id(repo):
        yield Problem("--repo", f"must be USER/NAME, got {repo!r}")
    elif len(repo) > 96 or re.search(r"--|\.\.", repo) or repo.endswith((".git", "-", ".")):
        rules = "at most 96 characters, neither -- nor .. in it, and no -, . or .git at its end"
        yield Problem("--repo", f": the hub refuses the name {repo!r}; choose one with {rules}")


def _model_problems(request: Generation | Merge | Scoring | Harness | Serving | Talk) -> Iterator[Problem]:
    """Yield the problems of the places of models; `run_model` has been applied to `request.model`."""
    for model in [request.model] if isinstance(request.model, str) else dict.fromkeys(request.model):
        yield from _place_problems("--model", model)
    if getattr(request, "attention", None) is Attention.varlen:
        yield Problem("--attention", "=varlen is for rows that are trained end to end; choose auto or sdpa")
    if request.base_model_name_or_path is not None:
        yield from _place_problems("--base_model_name_or_path", request.base_model_name_or_path)


def _place_problems(flag: str, place: str) -> Iterator[Problem]:
    """Yield a problem where a folder holds no model, or where the place is neither a folder nor a hub id."""
    try:
        folder = files.user_path(files.resolve(place))
    except UserError as err:
        yield Problem(flag, f": {err}")
        return
    if _holds_a_model(folder):
        if damage := manifest.find_model_damage(folder):
            yield Problem(flag, f": {folder} is a damaged checkpoint ({', '.join(damage[:3])}); give another")
        return
    if (folder / run_folder.JOB).is_file():
        status = run_folder.read_summary(folder).get("status", "not begun")
        newest = checkpoints.newest_checkpoint(folder)
        hint = "choose another" if newest is None else f"take its checkpoint {newest}"
        yield Problem(flag, f": the run in {folder} has no model ({status}); wait for it, or {hint}")
    elif folder.is_dir():
        text = f": {folder} has neither config.json nor adapter_config.json; give a run, a model or an adapter"
        yield Problem(flag, text)
    elif folder.is_file():
        yield Problem(flag, f": {folder} is a file; give the folder that holds it")
    elif place.startswith(("/", "./", "../", "~")) or place.count("/") > 1 or not place:
        yield Problem(flag, f": no folder {folder}{files.did_you_mean_beside(folder)}")


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
