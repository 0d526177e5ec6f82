"""The part of a trainer that every objective shares: checkpoints, notices, counts, broken losses, memory, LoRA+."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors import SafetensorError
from transformers import Trainer

from fmstune.errors import UserError
from fmstune.launch import preemption
from fmstune.models import base_identity, sharding
from fmstune.models.flop_count.batch import BatchFlops
from fmstune.models.save import tied_once
from fmstune.runs import checkpoints, manifest
from fmstune.runs.checkpoints import CheckpointFacts
from fmstune.training import memory
from fmstune.training.callbacks import AtBegin, SaveAndStop, StepClock
from fmstune.training.collate import PADDING, rows_with_tokens
from fmstune.training.legs import Begun, Done, Figures, Leg, explain_load_errors, write_figures
from fmstune.training.transformers_internals import rotate_checkpoints


class BrokenLoss(UserError):
    """The loss is not a finite number."""


class RunMixin(Trainer):
    """A trainer of TRL on rows that are tokenised already: `class X(RunMixin, trl.XTrainer)`."""

    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int
    """Trainer's counts of the loss."""
    _total_train_tokens: int
    """TRL's count, from which it logs `num_tokens`."""
    _metrics: dict[str, dict[str, list[float]]]
    """Values that TRL averages into the next log, of training and of evaluation."""

    def __init__(self, model: Any, *args: Any, loraplus_lr_ratio: float | None = None, **kwargs: Any) -> None:
        quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
        adapter = {name: p.data for name, p in model.named_parameters() if p.requires_grad and quantised}
        super().__init__(model, *args, **kwargs)
        if self.is_fsdp_enabled:
            sharding.keep_exact(self.accelerator.state.fsdp_plugin)
        # TRL 1.16 rounds the adapter on a quantised base to bfloat16 (sft_trainer.py:908), where small updates vanish
        for name, parameter in self.model.named_parameters():
            parameter.data = adapter.get(name, parameter.data)
        self.adapter_base: base_identity.Base | None = None
        """Which base an adapter is tuned on, written into its checkpoints; None for full tuning."""
        self.loraplus_lr_ratio = loraplus_lr_ratio
        """LoRA+: the rate of B by that of A, which is the learning rate; None trains both alike."""
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.former: Figures | None = None
        """The figures at the checkpoint that the run is resumed from."""
        self.begun = Begun()
        self.add_callback(AtBegin(self._carry_on))
        self.stops = False
        """Some process was given notice: all of them save a checkpoint after this step and stop."""
        self.add_callback(SaveAndStop(lambda: self.stops))
        self.positions = 0
        """Positions that went through the model in training, padding included; of all processes."""
        self.batch_flops: BatchFlops | None = None
        """What a batch takes; None counts no model FLOPs."""
        self.flops = 0.0
        """Model FLOPs of the training, of all processes."""
        self._at_last_log, self._after_first_step = Done(), Done()
        self._before_training: list[Callable[[], None]] = []
        self._aside: Path | None = None
        self._since_log: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def before_training(self, action: Callable[[], None]) -> None:
        """Call this before training changes the model: at once, or when `train` has sharded it for use."""
        self._before_training.append(action)
        if not self.is_fsdp_enabled:
            self._sharded_now()

    def _sharded_now(self) -> None:
        while self._before_training:
            self._before_training.pop()()
            # a checkpoint is loaded into shards
            sharding.shard_again(self.model)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """A sharded model can be used here, and is still the base."""
        self._sharded_now()
        with explain_load_errors("weights"):
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        with explain_load_errors("optimizer or schedule"):
            super()._load_optimizer_and_scheduler(*args, **kwargs)

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        with explain_load_errors("random state"):
            super()._load_rng_state(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """A sharded model can be used after this where no checkpoint is loaded."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._sharded_now()
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save for plain transformers and PEFT; of a sharded model with an adapter, gather the adapter alone."""
        if not sharding.holds_shard(self.model):
            once = tied_once(self.model)
            if once is None:
                super().save_model(output_dir, _internal_call)
            elif self.args.should_save:
                self._save(output_dir, state_dict=once)
            return
        state = sharding.gathered(self.model, trained_only=isinstance(self.model, PeftModel))
        with sharding.unshard_prompt(self.model):
            self._save(output_dir, state_dict=state)

    def checkpoint_facts(self) -> CheckpointFacts:
        """Return the facts that a checkpoint saved now is made with."""
        return CheckpointFacts(
            step=self.state.global_step,
            processes=self.args.world_size,
            rows_per_step=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            sharded=self.is_fsdp_enabled,
        )

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is written: aside, while it is."""
        return str(self._aside) if self._aside is not None else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, rename it, then remove older ones; raises UserError where the disk is full."""
        run, step = Path(self.args.output_dir), self.state.global_step
        if self.args.should_save:
            checkpoints.remove_unfinished(run)
        self.accelerator.wait_for_everyone()
        self._aside, figures = run / checkpoints.SAVING, self.figures()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                made = self._aside / f"checkpoint-{step}"
                if self.adapter_base is not None:
                    base_identity.write_base(self.adapter_base, made)
                write_figures(figures, made)
                checkpoints.publish_checkpoint(made, run / made.name, self.checkpoint_facts())
        except (OSError, RuntimeError, SafetensorError) as err:
            full = checkpoints.disk_is_full(err, run)  # before the next line frees space
            checkpoints.remove_unfinished(run)
            if not full:
                raise
            text = f"step {step}: the checkpoint cannot be saved, as the disk of {run} is full"
            change = "free space, or set training.save_total_limit, and start the same command again"
            raise UserError("", f"{text}; {checkpoints.name_newest(run)}{change}") from err
        finally:
            self._aside = None
        if self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(run / Path(self.state.best_model_checkpoint).name)
        if self.args.should_save:
            checkpoints.remove_unfinished(run)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        """Load the best checkpoint, where its files are as they were saved; raises UserError."""
        best = self.state.best_model_checkpoint
        if best is not None and (damage := manifest.find_model_damage(Path(best))):
            what = f": {best}, the best checkpoint, is damaged ({', '.join(damage[:3])})"
            raise UserError("training.load_best_model_at_end", f"{what}; set it to false, and take another checkpoint")
        super()._load_best_model()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless the last checkpoint was at the end already: Trainer would still take a step."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def legs(self) -> tuple[Leg, ...]:
        """Return the legs of the run so far, this one last."""
        former = self.former.legs if self.former is not None else ()
        begun = {name: value for name, value in vars(self.begun).items() if name != "device"}
        warm = self.done.since(self._after_first_step) if self.clock.steps > 1 else Done()
        own = Leg(
            from_step=self.state.global_step - self.clock.steps,
            to_step=self.state.global_step,
            train_seconds=round(self.clock.train_seconds, 3),
            step_seconds=round(self.clock.seconds - (self.former.step_seconds if self.former else 0.0), 6),
            peak_memory_bytes=memory.peak(self.begun.device),
            processes=self.args.world_size,
            warm=warm,
            **begun,
        )
        return (*former, own)

    def figures(self) -> Figures:
        """Return the figures so far; every process must call this."""
        return Figures(
            legs=self.legs(),
            tokens=self.tokens,
            positions=self.positions,
            flops=self.flops,
            loss_logged=self._total_loss_scalar,
            loss_since_log=tuple(self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()),
            last_logged_step=self._globalstep_last_logged,
            at_last_log=self._at_last_log,
            metrics=dict(self._metrics["train"]),
            own=self.own_figures(),
        )

    def _carry_on(self) -> None:
        """Set the counts to those of the checkpoint; Trainer and TRL begin them anew after a resume."""
        if (former := self.former) is None:
            return
        self._initial_global_step = former.legs[0].from_step
        self._total_loss_scalar = former.loss_logged
        self._tr_loss += former.loss_of(self.args.process_index, self.args.world_size)
        self._globalstep_last_logged = former.last_logged_step
        self._total_train_tokens, self.positions, self.flops = former.tokens, former.positions, former.flops
        self._at_last_log = former.at_last_log
        self.clock.seconds = former.step_seconds
        self._metrics["train"].update({name: list(values) for name, values in former.metrics.items()})

    @property
    def tokens(self) -> int:
        """Tokens that went through the model in training, padding not included."""
        return self._total_train_tokens

    @property
    def done(self) -> Done:
        """What was computed until now."""
        return Done(self.tokens, self.flops, self.clock.seconds)

    def look_at_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> None:
        """Look at a batch before it is trained on; does nothing unless an objective's trainer says otherwise."""

    def own_figures(self) -> dict[str, Any]:
        """Return what the summary holds beyond the figures of every run."""
        return {}

    def score_rows(self, rows: Dataset) -> dict[str, float]:
        """Return the loss on these rows, and the means of what else the trainer measures as it evaluates."""
        self._metrics["eval"].clear()
        was_training = self.model.training
        output = self.evaluation_loop(self.get_eval_dataloader(rows), "scoring", prediction_loss_only=True)
        self.model.train(was_training)
        measured = {name: sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return {**measured, "eval_loss": output.metrics["eval_loss"]}

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count the positions and tokens of the batch, then train on it."""
        batch, padding = without_count(inputs)
        if self.clock.steps == 1 and not self._after_first_step.seconds:
            self._after_first_step = self.done
        self.look_at_batch(model, batch)
        ids = batch["input_ids"]
        positions = ids.numel()
        masked = batch["attention_mask"].sum() if "attention_mask" in batch else positions - padding
        # a notice reaches processes at different steps, and they must stop after the same one
        flops = self.batch_flops(batch, padding) if self.batch_flops is not None else 0.0
        sums = [positions, int(masked), preemption.given(), flops]
        counted = torch.tensor(sums, dtype=torch.float64, device=self.args.device)
        before = self._total_train_tokens
        try:
            loss: torch.Tensor = super().training_step(model, batch, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
            # the CPU's allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp)
            if isinstance(err, RuntimeError) and "memory" not in str(err).lower():
                raise
            raise UserError("", self._out_of_memory(ids)) from err
        # read only after an error: to read each would make the device wait
        self._since_log.append((self.state.global_step + 1, ids, loss.detach()))
        positions, tokens, notices, flops = self.accelerator.reduce(counted, "sum").tolist()
        self.stops = self.stops or notices > 0
        self.positions, self.flops = self.positions + round(positions), self.flops + flops
        # TRL takes a batch without a mask for one row
        self._total_train_tokens = before + round(tokens)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of the training arguments, for LoRA+ with PEFT's groups of parameters."""
        if self.loraplus_lr_ratio is None:
            return super().create_optimizer(*args, **kwargs)
        cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        settings |= {"loraplus_lr_ratio": self.loraplus_lr_ratio, "loraplus_weight_decay": self.args.weight_decay}
        self.optimizer = create_loraplus_optimizer(self.model, cls, **settings)
        return self.optimizer

    def _out_of_memory(self, ids: torch.Tensor) -> str:
        batch, length = ids.shape
        return (
            f"step {self.state.global_step + 1}: out of memory on a batch of {batch} x {length:,} tokens "
            f"({self.rows_of_batch(ids)}); set training.per_device_train_batch_size below "
            f"{self.args.train_batch_size} and training.gradient_accumulation_steps up, "
            "training.activation_checkpointing=true or a smaller data.max_length; "
            "fmstune check shows the memory that each takes"
        )

    def rows_of_batch(self, ids: torch.Tensor) -> str:
        """Which training rows a batch holds, from 0; found by their tokens, as their numbers do not reach the model."""
        return rows_with_tokens(self.train_dataset, ids)

    def _where(self, name: str) -> str:
        """The step and the rows of the loss that is not a finite number."""
        for step, ids, loss in self._since_log if name == "loss" else ():
            if not torch.isfinite(loss):
                return f"step {step} ({self.rows_of_batch(ids)})"
        return f"step {self.state.global_step}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed of the steps alone; raises UserError for a loss that is not finite."""
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                rate, half = self.args.learning_rate, self.args.bf16 or self.args.fp16
                more = "" if (self.args.max_grad_norm or 0) > 0 else ", set training.max_grad_norm=1"
                more += ", or set model.dtype=float32" if half or self.model.dtype != torch.float32 else ""
                text = f"{name} is {logs[name]}; lower training.learning_rate (now {rate:g}){more}"
                raise BrokenLoss("", f"{self._where(name)}: {text}")
        self._since_log.clear()
        done = self.done.since(self._at_last_log)
        if "loss" in logs and done.seconds > 0:
            logs["tokens_per_second"] = round(done.tokens / done.seconds, 1)
            logs |= done.speed(self.args.world_size, self.begun.device_tflops)
            self._at_last_log = self.done
        if "train_runtime" in logs and self.former is not None:
            # Trainer's own, at the end: of this leg alone
            seconds, here = sum(leg.train_seconds for leg in self.legs()), logs["train_runtime"]
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] *= here / max(seconds, 1e-9)
            logs["train_runtime"] = seconds
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into the run folder at each checkpoint; the run's own files say more."""


def without_count(inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the model's inputs, and how many of their positions are padding where no mask says so."""
    return {key: value for key, value in inputs.items() if key != PADDING}, inputs.get(PADDING, 0)
