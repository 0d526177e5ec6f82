"""Model, data and arguments → the objective's trainer → the artifacts of a run."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from accelerate.utils import broadcast_object_list
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed

from fmstune import ranks
from fmstune.checks import resume
from fmstune.checks.memory_plan import Plan, plan_values
from fmstune.config.choices import Kernels
from fmstune.config.job import LORAPLUS_LR_RATIO, Job
from fmstune.config.metrics import metrics_of
from fmstune.data.dataset import Prepared
from fmstune.errors import Preempted, Problem, UserError, raise_if_any
from fmstune.files import read_json
from fmstune.launch import parent
from fmstune.models import adapters, base_identity, compiled, liger, load, save, sharding
from fmstune.models.flop_count.batch import BatchFlops
from fmstune.models.load import Tokenizer
from fmstune.runs import checkpoints, learning_rate, lockfile, model_card, run_folder
from fmstune.runs.looks import identify_rows
from fmstune.runs.losers import is_watched
from fmstune.training import figures, memory, tracking
from fmstune.training.arguments import training_arguments
from fmstune.training.callbacks import LossPlot, MetricsFile, Progress, draw_loss
from fmstune.training.debugging.fingerprints import Fingerprints
from fmstune.training.legs import Begun, read_figures
from fmstune.training.named_classes import make_callbacks
from fmstune.training.objectives.base import BaseObjective, load_objective
from fmstune.training.preflight import Checked
from fmstune.training.stopping import LoserStopping, Stopping
from fmstune.training.trainer import RunMixin


def train_job(
    job: Job, checked: Checked, tokenizer: Tokenizer, prepared: Prepared, plan: Plan, command: str | None = None
) -> None:
    """Train, evaluate, save, and record in the summary how it ended; `command` is what was typed."""
    assert job.output_dir is not None
    folder, main = Path(job.output_dir), ranks.here().is_main
    start = {"name": job.name, "plan": plan_values(plan), "preparation_seconds": prepared.seconds}
    chosen = {**checked.chosen, **_chosen_rate(folder)}
    start |= {"chosen": chosen} if chosen else {}
    with ExitStack() as until_the_end:
        checkpoint, done, lock = None, 0, None
        if main:
            until_the_end.enter_context(_recorded(folder, start))
            checkpoint, done = _choose_checkpoint(job)
            config, data = checked.configuration.to_json_string(use_diff=False), prepared.identity
            facts = lockfile.collect_lock(job, device=checked.device, model_config=config, command=command, data=data)
            lock = lockfile.LockWriter(job, folder, facts)
            checkpoints.remove_unfinished(folder)
            restored = run_folder.restore_metrics(folder, _log_history(checkpoint), done)
            # another folder has none of its lines yet
            _say(restored if checkpoint is None or checkpoint.parent == folder else ())
        # before training: the base may be moved while the run trains
        base_model = base_identity.identify_base(job.model.path, job.model.revision) if checked.peft else None
        tracked = until_the_end.enter_context(tracking.tracked(job, folder, done, writes=main))
        save.keep_asking(tokenizer.tokenizer, job.data.format)
        objective = load_objective(job)
        watching = [
            MetricsFile(folder / run_folder.METRICS),
            Progress(metrics_of(job)),
            LossPlot(folder / run_folder.METRICS, folder / run_folder.LOSS_PLOT),
            Fingerprints(folder, modules=not compiled.asks_compiled(job.training)),
        ]
        trainer, seconds = build_trainer(objective, checked, tokenizer, prepared, watching)
        trainer.adapter_base = base_model
        # the main process has looked at its files
        checkpoint = _agree(checkpoint, prepared.identity["data_hashes"])
        trainer.former = read_figures(checkpoint) if checkpoint is not None else None
        trainer.begun = Begun(
            prepared.seconds,
            from_cache=prepared.cached,
            device=checked.device,
            device_tflops=plan.work.machine.tflops,
            **seconds,
        )
        trainer.batch_flops = BatchFlops(checked.dimensions, job.objective.frozen_copies)
        for callback in (tracked, *make_callbacks(job)):
            trainer.add_callback(callback)
        tracked.log({"preparation_seconds": prepared.seconds, "load_seconds": seconds["load_seconds"]}, done)
        results = _train_and_score(objective, trainer, job, checked, prepared, checkpoint)
        if "status" in results:  # a loser: its checkpoint is kept, and no model is made of it
            if main:
                run_folder.update_summary(folder, results)
            return
        folder_of_base = lockfile.model_folders(job.model).get("model.path")
        licence = model_card.read_licence(folder_of_base) if folder_of_base is not None else {}
        card = model_card.run_card(job, lock.wait(), results, licence) if lock else None
        save.save(trainer.model, tokenizer, folder / run_folder.MODEL, base_model, card=card, writes=main)
        # a process that ends resets its connections, and another may still be gathering weights over them
        trainer.accelerator.wait_for_everyone()
        if main:
            draw_loss(folder / run_folder.METRICS, folder / run_folder.LOSS_PLOT)
            weights = {"weights_sha256": lockfile.hash_weights(folder / run_folder.MODEL)}
            run_folder.update_summary(folder, {**results, **weights})


def _chosen_rate(folder: Path) -> dict[str, Any]:
    """What probes have made of `training.learning_rate=auto`, by the field; empty where the rate was given."""
    found = learning_rate.read_choice(folder)
    if not found:
        return {}
    why = f"{len(found['probes'])} probes; {found['low']:.2g} to {found['high']:.2g}"
    return {"training.learning_rate": {"value": found["rate"], "why": why}}


def _choose_checkpoint(job: Job) -> tuple[Path | None, int]:
    """The checkpoint to resume from, and its step, where all its files are whole; raises UserError where none is."""
    chosen = resume.choose_checkpoint(job)
    _say(chosen.notes)
    if (checkpoint := chosen.checkpoint) is None:
        return None, 0
    done = resume.steps_done(checkpoint)
    print(f"resuming from {checkpoint}, after step {done:,}", file=sys.stderr, flush=True)
    if read_figures(checkpoint) is None:
        _say([f"{checkpoint} holds no figures, so loss, tokens and seconds of the summary are of the steps after it"])
    return checkpoint, done


def _agree(checkpoint: Path | None, data_hashes: Mapping[str, str]) -> Path | None:
    """The checkpoint that the main process has chosen; raises UserError where this process has read other rows."""
    told: list[Any] = [None if checkpoint is None else str(checkpoint), dict(data_hashes)]
    broadcast_object_list(told)
    again = "changed while the processes started; start again when nothing writes to it"
    raise_if_any(Problem(field, again) for field, digest in data_hashes.items() if told[1].get(field) != digest)
    return None if told[0] is None else Path(told[0])


def _log_history(checkpoint: Path | None) -> list[dict[str, Any]]:
    """What was logged until the checkpoint was saved."""
    if checkpoint is None:
        return []
    found: list[dict[str, Any]] = read_json(checkpoint / "trainer_state.json").get("log_history") or []
    return found


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"fmstune: note: {note}", file=sys.stderr, flush=True)


def _train_and_score(
    objective: BaseObjective, trainer: RunMixin, job: Job, checked: Checked, prepared: Prepared, checkpoint: Path | None
) -> dict[str, Any]:
    """Train from the checkpoint on, and score; return the figures that the summary holds."""
    folder = Path(str(job.output_dir))
    former = run_folder.read_summary(folder) if checkpoint is not None and checkpoint.parent == folder else {}
    stopping = Stopping(job.callbacks)
    trainer.add_callback(stopping)
    losing = _watch_rivals(objective, trainer, job, prepared)
    if checkpoint is not None and (made := checkpoints.read_checkpoint_facts(checkpoint)) is not None:
        raise_if_any(checkpoints.checkpoint_mismatches(checkpoint, made, trainer.checkpoint_facts()))
    base: list[dict[str, Any] | None] = []
    if job.evaluation.base and "base" not in former:
        trainer.before_training(lambda: base.append(_score(objective, trainer, job, prepared, base=True)))
    memory.reset_peak(checked.device)
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if trainer.stops:
        _stop(trainer, folder)
    trained = {**figures.training_figures(trainer, checked, prepared, output.metrics), "stopped": stopping.reason}
    if losing is not None and losing.reason is not None:
        return {**trained, "stopped": losing.reason, "status": run_folder.STOPPED}
    tuned = _score(objective, trainer, job, prepared, base=False)
    losses = {"train_loss": trained["train_loss"], "eval_loss": (tuned or {}).get("eval_loss", 0.0)}
    raise_if_any(
        Problem(name, f"is {loss} after training; lower training.learning_rate, or set model.dtype=float32")
        for name, loss in losses.items()
        if not math.isfinite(loss)
    )
    scores = {"base": base[0] if base else former.get("base"), "tuned": tuned}
    return {**trained, **{key: one for key, one in scores.items() if one is not None}}


def _watch_rivals(objective: BaseObjective, trainer: RunMixin, job: Job, prepared: Prepared) -> LoserStopping | None:
    """Look at the held-out rows at each evaluation of a point of a sweep that stops losers; None of other runs."""
    if not is_watched(job.sweep):
        return None
    held_out = {part.name: part.rows for part in prepared.held_out}
    rows = identify_rows([row for part in held_out.values() for row in part], job.seed)
    last = f"eval_{list(held_out)[-1]}_loss" if len(held_out) > 1 else None
    losing = LoserStopping(job, lambda: objective.row_losses(trainer, held_out), rows, last)
    trainer.add_callback(losing)
    return losing


def _stop(trainer: RunMixin, folder: Path) -> NoReturn:
    """End a run that was given notice, without evaluating or saving the model; raises Preempted."""
    # the others end as soon as one of them does
    parent.interrupt_no_more()
    step = trainer.state.global_step
    said = f"preempted; a checkpoint was saved at step {step}, and the same command resumes the run"
    if ranks.here().is_main:
        run_folder.mark_ended(folder, run_folder.INTERRUPTED, run_folder.PREEMPTED, said)
    trainer.accelerator.wait_for_everyone()
    raise Preempted(said)


@contextmanager
def _recorded(folder: Path, start: dict[str, Any]) -> Iterator[None]:
    """The run's status in its summary: running, then finished, failed or interrupted; a full disk is a UserError."""
    run_folder.update_summary(folder, {"status": run_folder.RUNNING, "error": None, **start})
    try:
        try:
            yield
        except (OSError, SafetensorError) as err:
            if not checkpoints.disk_is_full(err, folder):
                raise
            change = f"{checkpoints.name_newest(folder)}free space, and start the same command again"
            raise UserError("", f"the disk of {folder} is full; {change}") from err
    except Preempted:
        raise  # recorded before the other processes could end this one
    except KeyboardInterrupt:
        run_folder.mark_ended(folder, run_folder.INTERRUPTED, "interrupted", "stopped by a signal before the end")
        raise
    except UserError as err:
        # the error is shown even where the disk has no room to record it
        with suppress(OSError):
            run_folder.mark_ended(folder, run_folder.FAILED, "user", str(err))
        raise
    except BaseException as err:
        if parent.is_gone():
            # the other processes noticed it first and have ended, which looks like a failure in this one
            run_folder.mark_orphaned(folder)
        else:
            run_folder.mark_ended(folder, run_folder.FAILED, "internal", f"{type(err).__name__}: {err}")
        raise
    if run_folder.read_summary(folder).get("status") == run_folder.RUNNING:
        run_folder.update_summary(folder, {"status": run_folder.FINISHED})


def build_trainer(
    objective: BaseObjective, checked: Checked, tokenizer: Tokenizer, prepared: Prepared, watching: list[Any]
) -> tuple[RunMixin, dict[str, Any]]:
    """Return the trainer of the objective's job around the model, with these callbacks, and what building it took."""
    job = objective.job
    # before the model: a new adapter's weights are random
    set_seed(job.seed)
    before = memory.now(checked.device)
    begun = time.perf_counter()
    # before the model: this joins the processes into a group, in which one of them reads the weights
    settings = training_arguments(job, objective, checked, Path(str(job.output_dir)))
    base = load.load_model(
        job.model,
        tokenizer,
        job.objective,
        dtype=checked.precision.weights,
        attention=checked.attention,
        quantization_config=load.bits_and_bytes(job.model.quantization, checked.precision),
    )
    if job.model.kernels is Kernels.liger:
        liger.use_liger(base)
    model = adapters.wrap(base, checked.peft, job.model.adapter)
    if compiled.asks_compiled(job.training):
        compiled.compile_blocks(model, job.training)
    loaded = time.perf_counter() - begun
    held_out = {part.name: part.rows for part in prepared.held_out}
    watched = {name: objective.held_out_rows(rows, number) for number, (name, rows) in enumerate(held_out.items())}
    trainer = objective.trainer_class(
        model=model,
        args=settings,
        train_dataset=objective.rows(prepared.train),
        # by name where there are several sets; Trainer puts the name into the metric's
        eval_dataset=watched.get("", watched) if held_out and job.training.get("eval_strategy", "no") != "no" else None,
        processing_class=tokenizer.tokenizer,
        callbacks=watching,
        loraplus_lr_ratio=job.peft.get(LORAPLUS_LR_RATIO),
    )
    trainer.remove_callback(PrinterCallback)
    objective.prepare_trainer(trainer, held_out)
    return trainer, {"memory_before_model_bytes": before, "load_seconds": round(loaded, 3)}


def _score(
    objective: BaseObjective, trainer: RunMixin, job: Job, prepared: Prepared, *, base: bool
) -> dict[str, Any] | None:
    """Score the model on the held-out rows, before training or after; None where there are none."""
    if not prepared.held_out or not job.evaluation.enabled:
        return None
    model, answered, main = trainer.model, "base" if base else "tuned", ranks.here().is_main
    if main:
        print(f"evaluating the {answered} model …", file=sys.stderr, flush=True)
    # a new adapter may change the output before it is trained (a random prompt does)
    with compiled.uncompiled(), sharding.as_base(model) if base and isinstance(model, PeftModel) else nullcontext():
        figures = objective.score(trainer, {part.name: part.rows for part in prepared.held_out}, answered)
    if base and main:
        # at once, so that a resumed run need not score the base again
        run_folder.update_summary(Path(str(job.output_dir)), {"base": figures})
    return figures
