"""Model, data and arguments → SFTTrainer → the artifacts of a run."""

import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed
from trl import SFTConfig

from fmstune import ranks
from fmstune.checks import resume
from fmstune.checks.memory_plan import Plan
from fmstune.config.job import LORAPLUS_LR_RATIO, Job, is_sharded
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.config.renamed_fields import OWN
from fmstune.data.dataset import Prepared
from fmstune.errors import Preempted, Problem, UserError, raise_if_any
from fmstune.evaluation import held_out
from fmstune.files import write_json
from fmstune.launch import parent
from fmstune.models import adapters, base_identity, load, save, sharding
from fmstune.models.load import Tokenizer
from fmstune.runs import checkpoints, hashes, lockfile, model_card, run_folder
from fmstune.runs.lockfile import Lock
from fmstune.training import figures, fsdp_on_cpu, memory, tracking
from fmstune.training.callbacks import LossPlot, MetricsFile, Progress, draw_loss
from fmstune.training.named_classes import make_callbacks
from fmstune.training.preflight import Checked
from fmstune.training.stopping import Stopping
from fmstune.training.trainer import Trainer


def run(
    job: Job, checked: Checked, tokenizer: Tokenizer, prepared: Prepared, plan: Plan, command: str | None = None
) -> None:
    """Train, evaluate, save; the folder's summary says how it ended, also when it did not go well.

    `command` is what was typed, to be recorded.
    """
    assert job.output_dir is not None
    folder, main = Path(job.output_dir), ranks.here().is_main
    checkpoint = _checkpoint(job, folder)
    start = {"name": job.name, "plan": figures.of_plan(plan), "preparation_seconds": prepared.seconds}
    with ExitStack() as until_the_end:
        if main:
            until_the_end.enter_context(_recorded(folder, start))
            until_the_end.enter_context(_full_disk_named(folder))
        done = resume.steps_done(checkpoint) if checkpoint is not None else 0
        former = run_folder.read_summary(folder) if checkpoint is not None and checkpoint.parent == folder else {}
        if main:
            record = lockfile.LockWriter(job, folder, _provenance(job, checked, prepared, command))
            checkpoints.remove_unfinished(folder)
            run_folder.drop_metrics_after(folder, done)
        # before training: the base may be moved while it goes on
        base_model = base_identity.at(job.model.path, job.model.revision) if checked.peft is not None else None
        tracked = until_the_end.enter_context(tracking.tracked(job, folder, done, writes=main))
        trainer, seconds = _build(job, checked, tokenizer, prepared, folder)
        trainer.adapter_base = base_model
        trainer.add_callback(tracked)
        stopping = Stopping(job.callbacks)
        trainer.add_callback(stopping)
        for callback in make_callbacks(job):
            trainer.add_callback(callback)
        tracked.log({"preparation_seconds": prepared.seconds, "load_seconds": seconds["load_seconds"]}, done)
        if checkpoint is not None and (made := checkpoints.read_checkpoint_facts(checkpoint)) is not None:
            raise_if_any(checkpoints.checkpoint_mismatches(checkpoint, made, trainer.about()))
        base: list[dict[str, Any] | None] = []
        if job.evaluation.base and "base" not in former:
            trainer.before_training(lambda: base.append(_score(trainer, job, checked, prepared, base=True)))
        memory.reset_peak(checked.device)
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if trainer.stops:
            _stop(trainer, folder)
        came_to = {**figures.of_training(trainer, checked, prepared, output.metrics), "stopped": stopping.reason}
        tuned = _score(trainer, job, checked, prepared, base=False)
        _raise_if_not_finite({"train_loss": came_to["train_loss"], "eval_loss": tuned["eval_loss"] if tuned else 0.0})
        both = {"base": base[0] if base else former.get("base"), "tuned": tuned}
        scores = {key: one for key, one in both.items() if one is not None}
        card = None
        if main:
            lock = lockfile.as_json(record.whole())
            card = model_card.run_card(job, lock, {**came_to, **scores}, _licence(job))
        save.save(trainer.model, tokenizer, folder / run_folder.MODEL, base_model, card=card, writes=main)
        if main:
            draw_loss(folder / run_folder.METRICS, folder / run_folder.LOSS_PLOT)
            weights = {"weights_sha256": hashes.hash_weights(folder / run_folder.MODEL)}
            run_folder.update_summary(folder, {**seconds, **came_to, **scores, **weights})


def _raise_if_not_finite(losses: Mapping[str, float]) -> None:
    """A model whose loss is no number is not worth saving; raises UserError."""
    raise_if_any(
        Problem(name, f"is {loss} after training; lower training.learning_rate, or set model.dtype=float32")
        for name, loss in losses.items()
        if not math.isfinite(loss)
    )


def _licence(job: Job) -> dict[str, str]:
    """The licence that the base's own card names, where that card is here."""
    folder = lockfile.model_folders(job.model).get("model.path")
    return {} if folder is None else model_card.read_licence(folder)


def _stop(trainer: Trainer, folder: Path) -> NoReturn:
    """End at a notice: what is left to do is not done, and the same command does it; raises Preempted."""
    # the others end as soon as one of them does
    parent.interrupt_no_more()
    said = f"preempted; a checkpoint was saved at step {trainer.state.global_step}, and the same command goes on"
    if ranks.here().is_main:
        run_folder.mark_ended(folder, run_folder.INTERRUPTED, run_folder.PREEMPTED, said)
    trainer.accelerator.wait_for_everyone()
    raise Preempted(said)


def _checkpoint(job: Job, folder: Path) -> Path | None:
    """Where to go on: the checkpoint that the job names, else the newest complete one of its own folder."""
    given = job.training.get("resume")
    return checkpoints.newest_checkpoint(folder) if given in (None, resume.AUTO) else Path(given)


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Raises UserError where something of the run cannot be written for want of room."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        if not checkpoints.disk_is_full(err, folder):
            raise
        raise UserError(
            "",
            f"the disk of {folder} is full; {checkpoints.name_newest(folder)}free space, and start the same command "
            "again",
        ) from err


@contextmanager
def _recorded(folder: Path, start: dict[str, Any]) -> Iterator[None]:
    """The run's status in its summary: running, then finished, failed or interrupted."""
    run_folder.update_summary(folder, {"status": run_folder.RUNNING, "error": None, **start})
    try:
        yield
    except Preempted:
        raise  # recorded before the other processes could end this one
    except KeyboardInterrupt:
        run_folder.mark_ended(folder, run_folder.INTERRUPTED, "interrupted", "stopped by a signal before the end")
        raise
    except UserError as err:
        # what is wrong is said, also where there is no room to record it
        with suppress(OSError):
            run_folder.mark_ended(folder, run_folder.FAILED, "user", str(err))
        raise
    except BaseException as err:
        if parent.is_gone():
            # the other processes have seen it first and are gone, which looks like a failure from here
            run_folder.mark_orphaned(folder)
        else:
            run_folder.mark_ended(folder, run_folder.FAILED, "internal", f"{type(err).__name__}: {err}")
        raise
    run_folder.update_summary(folder, {"status": run_folder.FINISHED})


def _build(
    job: Job, checked: Checked, tokenizer: Tokenizer, prepared: Prepared, folder: Path
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer around the model, and what building it took."""
    # before the model: a new adapter's weights are random
    set_seed(job.seed)
    before = memory.now(checked.device)
    begun = time.perf_counter()
    # before the model: with several processes it is what makes them meet, and then weights are read in one of them
    settings = arguments(job, checked, folder)
    base = load.load(
        job.model,
        tokenizer,
        dtype=checked.precision.weights,
        attention=checked.attention,
        quantization_config=load.bits_and_bytes(job.model.quantization, checked.precision),
    )
    model = adapters.wrap(base, checked.peft, job.model.adapter)
    loaded = time.perf_counter() - begun
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=prepared.train,
        eval_dataset=_while_training(job, prepared),
        processing_class=tokenizer.tokenizer,
        callbacks=[
            MetricsFile(folder / run_folder.METRICS),
            Progress(metrics_of(job)),
            LossPlot(folder / run_folder.METRICS, folder / run_folder.LOSS_PLOT),
        ],
        loraplus_lr_ratio=job.peft.get(LORAPLUS_LR_RATIO),
    )
    trainer.remove_callback(PrinterCallback)
    if job.evaluation.sample and prepared.held_out:
        trainer.answer_sample = lambda: _sample(trainer, job, checked, prepared)
    return trainer, {"memory_before_model_bytes": before, "load_seconds": round(loaded, 3)}


def arguments(job: Job, checked: Checked, folder: Path) -> SFTConfig:
    """The SFTConfig of the job; every default of TRL's that would decide something behind the job's back is set."""
    given = {name: value for name, value in job.training.items() if name not in OWN}
    packs = bool(given.get("packing") or given.get("eval_packing"))
    derived = {
        "output_dir": str(folder),
        "run_name": job.name,
        "seed": job.seed,
        "use_cpu": checked.device == "cpu",
        "bf16": checked.precision.autocast == "bfloat16",
        "fp16": checked.precision.autocast == "float16",
        # rows are cut already; only packing needs to know the length
        "max_length": job.data.max_length if packs else None,
        "report_to": "none",
        "disable_tqdm": True,
        "completion_only_loss": False,
        **_sharing(job, checked),
    }
    # for a user's own training file that leaves them out
    defaults = {
        "activation_checkpointing": False,
        # a filtered NaN looks like a good loss
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": checked.device == "cuda",
    }
    try:
        return SFTConfig(**{**defaults, **given, **derived})
    except (TypeError, ValueError) as err:
        raise UserError("training", f": trl.SFTConfig refuses these fields: {err}") from err


def _sharing(job: Job, checked: Checked) -> dict[str, Any]:
    """What several processes share; nothing where this one was started alone, as for a check."""
    if not (is_sharded(job.launcher) and ranks.here().started):
        # every trained weight takes part in every step, so there is nothing to look for
        return {"ddp_find_unused_parameters": False} if ranks.here().processes > 1 else {}
    sharding.set_environment(job.launcher)
    # else each process would keep whole gradients while it accumulates (transformers/trainer.py, `no_sync`)
    shares = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
    if checked.device == "cpu":
        fsdp_on_cpu.enable()
    return {**sharding.settings(job.launcher), **shares}


def _while_training(job: Job, prepared: Prepared) -> Dataset | dict[str, Dataset] | None:
    """The held-out rows, by name where there are several sets; Trainer puts the name into the metric's."""
    if not prepared.held_out or job.training.get("eval_strategy", "no") == "no":
        return None
    sets = {part.name: part.rows.select_columns(["input_ids", "labels"]) for part in prepared.held_out}
    return sets.get("", sets)


def _sample(trainer: Trainer, job: Job, checked: Checked, prepared: Prepared) -> dict[str, float]:
    """How the model answers a sample of each set of held-out rows, always the same one, while it is trained."""
    tokenizer, autocast = trainer.processing_class, checked.precision.autocast
    few = dataclasses.replace(job.evaluation, max_rows=job.evaluation.sample)
    scores = {}
    for part in prepared.held_out:
        drawn = random.Random(job.seed).sample(range(len(part.rows)), min(len(part.rows), job.evaluation.sample))
        rows = part.rows.select(sorted(drawn))
        # of all rows, as an answer may be a label that none of these few has
        labels = held_out.labels_of(part.rows, tokenizer)
        scores[part.name] = held_out.score(trainer.model, tokenizer, rows, few, labels=labels, autocast=autocast)
    figures = {"eval": held_out.together(scores)}
    figures |= {f"eval_{name}": one.figures for name, one in scores.items() if name}
    logged = names_at(metrics_of(job), Place.sample)
    return {f"{prefix}_{key}": float(one[key]) for prefix, one in figures.items() for key in logged if key in one}


def _score(trainer: Trainer, job: Job, checked: Checked, prepared: Prepared, *, base: bool) -> dict[str, Any] | None:
    """How the model does on the held-out rows, before training or after; None where there are none."""
    if not prepared.held_out or not job.evaluation.enabled:
        return None
    model, tokenizer, autocast = trainer.model, trainer.processing_class, checked.precision.autocast
    # a new adapter may change the output before it is trained (a random prompt does)
    as_base = sharding.as_base(model) if base and isinstance(model, PeftModel) else nullcontext()
    if ranks.here().is_main:
        print(f"evaluating the {'base' if base else 'tuned'} model …", file=sys.stderr, flush=True)
    with as_base:
        scores = {
            part.name: held_out.score(model, tokenizer, part.rows, job.evaluation, labels=labels, autocast=autocast)
            for part in prepared.held_out
            for labels in [held_out.labels_of(part.rows, tokenizer)]
        }
    together = held_out.together(scores)
    if ranks.here().is_main:
        _keep_samples(Path(trainer.args.output_dir), scores, "base" if base else "tuned")
    if base and ranks.here().is_main:
        # at once, so that a run that is gone on with need not do it again
        run_folder.update_summary(Path(trainer.args.output_dir), {"base": together})
    return together


def _keep_samples(folder: Path, scores: Mapping[str, held_out.Scores], answered: str) -> None:
    """The first held-out rows with this model's answers, beside those that another has given before."""
    path = folder / run_folder.SAMPLES
    former = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    known = {(row["set"], row["row"]): row for row in former}
    rows = [
        {**known.get((name, number), {}), "set": name, "row": number, "prompt": sample.prompt}
        | {"expected": sample.expected, answered: sample.answer}
        for name, one in scores.items()
        for number, sample in enumerate(one.samples, start=1)
    ]
    write_json(path, {"rows": rows})


def _provenance(job: Job, checked: Checked, prepared: Prepared, command: str | None) -> Lock:
    hashes = {"data_hashes": dict(prepared.hashes), "tokens": dict(prepared.tokens)}
    return lockfile.collect_lock(
        job,
        device=checked.device,
        model_config=checked.configuration.to_json_string(use_diff=False),
        command=command,
        data={**hashes, "data_rows": dict(prepared.rows_read)},
    )
