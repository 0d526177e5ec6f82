"""`fmstune evaluate harness` in the runner: tasks of lm-evaluation-harness, by a tuned model and by its base."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fmstune.config.requests import Harness
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any
from fmstune.evaluation import metrics
from fmstune.files import user_path
from fmstune.models import tuned
from fmstune.models.sharding import virtual_tokens
from fmstune.models.tuned import Tuned


def run_harness(request: Harness) -> int:
    """Do the tasks, print the table, and write it with all figures; raises UserError."""
    for name in ("lm_eval", "huggingface_hub"):
        # the latter tells of each try to reach the hub; what came of it is said below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # it asks git for the commit of the folder that we happen to be in, which complains where there is none
    evaluator.get_git_commit_hash = lambda: None
    manager = _task_manager(request)
    hint = "; --include_path adds a folder of your own"
    raise_if_any(
        Problem("--tasks", f": the harness has no task {name!r}{did_you_mean(name, manager.all_tasks) or hint}")
        for name in request.tasks
        if name not in manager.task_index
    )
    place, base = tuned.with_base(request)
    tokenizer = tuned.tokenizer_of(place)
    generates = _load(request, manager)
    found: dict[str, dict[str, Any]] = {}
    for name, model in tuned.in_turn(request, place, base, tokenizer):
        print(f"evaluating the {name} model on {', '.join(request.tasks)} …", file=sys.stderr, flush=True)
        found[name] = _results(request, manager, model, generates=generates)
        del model
    rows = list(_rows(found["tuned"]["results"], found["base"]["results"] if "base" in found else {}))
    asked = {name: getattr(request, name) for name in ("tasks", "num_fewshot", "limit", "seed")}
    report = {"model": request.model, "base_model": base and base.model, **asked, **found}
    heads, note = ("task", "measure", "base", "tuned", "change"), "± is one standard error, as the harness gives it"
    metrics.write_results(request.out_file, report, [(heads, rows)], [note])
    return 0


def _task_manager(request: Harness) -> Any:
    """The harness's index of tasks; of the user's folder alone where it has all that are asked for.

    The harness reads each of its 14,000 files for an index of its own tasks, which takes ten seconds.
    """
    folder = request.include_path and str(user_path(request.include_path))
    if folder:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(request.tasks) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=folder)


def _load(request: Harness, manager: Any) -> bool:
    """Get the tasks' data, and say whether a task generates; raises UserError with all whose data is missing."""
    missing: dict[str, str] = {}
    generates = False
    for name in request.tasks:
        try:
            loaded = manager.load([name])["tasks"].values()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, DatasetsError) as err:
            missing[name] = (" ".join(str(err).split()) or type(err).__name__)[:200]
        else:
            generates = generates or any(task.OUTPUT_TYPE == "generate_until" for task in loaded)
    if missing:
        text = f": {', '.join(missing)} cannot be loaded ({next(iter(missing.values()))}); tasks get their data from"
        hint = "the hub: load it where the hub can be reached and carry the cache over (HF_HOME), set HF_ENDPOINT to a"
        own = "mirror, or name tasks of your own files with --include_path"
        raise UserError("--tasks", f"{text} {hint} {own}")
    return generates


def _results(request: Harness, manager: Any, model: Tuned, *, generates: bool) -> dict[str, Any]:
    # the harness pads on the left to generate, which moves the text away from virtual tokens
    batch_size = 1 if generates and virtual_tokens(model.model) else request.batch_size
    lm = HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer.tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=tuned.positions(model),
        trust_remote_code=False,
    )
    try:
        found: dict[str, Any] = evaluator.simple_evaluate(
            model=lm,
            tasks=list(request.tasks),
            task_manager=manager,
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            batch_size=batch_size,
            bootstrap_iters=metrics.RESAMPLES,
            log_samples=False,
            **{f"{of}random_seed": request.seed for of in ("", "numpy_", "torch_", "fewshot_")},
        )
    except ValueError as err:
        # such as a task whose answers are run as a program
        raise UserError("--tasks", f": the harness refuses: {' '.join(str(err).split())}") from err
    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
    return {name: json.loads(json.dumps(found[name], default=str)) for name in kept if name in found}


def _rows(tuned_ones: dict[str, Any], base: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each number of each task; the harness names it `MEASURE,FILTER`, and its error `MEASURE_stderr,FILTER`."""
    for task, after in tuned_ones.items():
        before = base.get(task, {})
        for key, value in after.items():
            measure, comma, filter = key.partition(",")
            if not comma or measure.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = f"{measure}_stderr,{filter}"
            change = f"{value - before[key]:+.4f}" if key in before else "-"
            shown = measure if filter == "none" else f"{measure} ({filter})"
            yield task, shown, _with_error(before, key, error), _with_error(after, key, error), change


def _with_error(values: dict[str, Any], key: str, error: str) -> str:
    if key not in values:
        return "-"
    return f"{values[key]:.4f}" + (f" ± {values[error]:.4f}" if isinstance(values.get(error), float) else "")
