"""TRL's SFTTrainer with two things mended: the loss is fast on a CPU, and tokens per second are counted."""

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from fmstune import sharding
from fmstune.checkpoints import SAVING, About, clear_aside, newest, publish
from fmstune.errors import UserError, raise_if_any


def score_supervised_positions_on_cpu() -> None:
    """Let TRL's fused LM head skip masked positions on the CPU, as it does on a GPU.

    TRL 1.16 (trainer/utils.py, `_fused_forward`) compacts the positions only where Triton runs, because a changing
    shape would recompile on Neuron; on a CPU scoring every position costs 5 to 15 times as much.
    """
    triton = trl.kernels.chunked_logprob._use_triton
    trl.trainer.utils._use_triton = lambda device: device.type == "cpu" or triton(device)


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenised and masked already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        score_supervised_positions_on_cpu()
        super().__init__(*args, **kwargs)
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.positions = 0
        """Positions that went through the model of this process in training, padding included."""
        self._scored = torch.zeros(2, dtype=torch.float64)
        self._tokens_at_last_log = 0
        self._seconds_at_last_log = 0.0
        self._before_training: Callable[[], None] | None = None
        self._aside: Path | None = None
        self._since_log: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def before_training(self, action: Callable[[], None]) -> None:
        """Do this with the model as it is before a step or a checkpoint changes it.

        At once, except where the model is sharded: it can be used only when `train` has sharded it.
        """
        if self.is_fsdp_enabled:
            self._before_training = action
        else:
            action()

    def _sharded_now(self) -> None:
        action, self._before_training = self._before_training, None
        if action is not None:
            action()

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Sharded, the model is at hand here and still the base."""
        self._sharded_now()
        super()._load_from_checkpoint(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Sharded, and without a checkpoint, the model is at hand after this."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._sharded_now()
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save for plain transformers and PEFT; of a sharded model with an adapter, gather the adapter alone."""
        if not sharding.is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        state = sharding.gathered(self.model, trained_only=isinstance(self.model, PeftModel))
        with sharding.prompt_at_hand(self.model):
            self._save(output_dir, state_dict=state)

    def about(self) -> About:
        """What a checkpoint that is saved now is made with."""
        return About(
            step=self.state.global_step,
            processes=self.args.world_size,
            rows_per_step=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            sharded=self.is_fsdp_enabled,
        )

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is written: aside, while it is."""
        return str(self._aside) if self._aside is not None else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, then give it its name; raises UserError where the disk is full.

        The former checkpoint is whole then, and removed only when the new one is.
        """
        run, step = Path(self.args.output_dir), self.state.global_step
        if self.args.should_save:
            clear_aside(run)
        self.accelerator.wait_for_everyone()
        self._aside = run / SAVING
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(run / SAVING / f"checkpoint-{step}", run / f"checkpoint-{step}", self.about())
        except (OSError, RuntimeError, SafetensorError) as err:
            # looked at before the room is given back
            problems = list(_not_saved(err, run, step))
            clear_aside(run)
            raise_if_any(problems)
            raise
        finally:
            self._aside = None
        if self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(run / Path(self.state.best_model_checkpoint).name)
        if self.args.should_save:
            clear_aside(run)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; nothing where the last checkpoint was at the end already, where Trainer would take a step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def all_positions(self) -> int:
        """Positions of all processes; every one must ask."""
        count = torch.tensor(self.positions, device=self.args.device)
        return int(self.accelerator.reduce(count, "sum"))

    @property
    def tokens(self) -> int:
        """Tokens that went through the model in training, padding not included."""
        return int(self._total_train_tokens)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count the positions of the batch, then train on it."""
        ids = inputs["input_ids"]
        self.positions += ids.numel()
        try:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
            raise_if_any(self._out_of_memory(err, ids))
            raise
        # looked at when something went wrong only: a look at each would make the device wait
        self._since_log.append((self.state.global_step + 1, ids, loss.detach()))
        return loss

    def _out_of_memory(self, err: BaseException, ids: torch.Tensor) -> Iterator[str]:
        # the CPU's allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp)
        if isinstance(err, RuntimeError) and "memory" not in str(err).lower():
            return
        batch, length = ids.shape
        yield (
            f"step {self.state.global_step + 1}: out of memory on a batch of {batch} x {length:,} tokens "
            f"({self._rows(ids)}); set training.per_device_train_batch_size below {self.args.train_batch_size} and "
            "training.gradient_accumulation_steps up, training.activation_checkpointing=true or a smaller "
            "data.max_length; fmstune check says what each comes to"
        )

    def _rows(self, ids: torch.Tensor) -> str:
        """Which training rows a batch holds, from 0; found by what they hold, as nothing else reaches the model."""
        if self.args.packing or self.args.padding_free:
            return "packed rows"
        wanted = ids.tolist()
        found = [
            number
            for number, row in enumerate(self.train_dataset["input_ids"])
            if any(given[: len(row)] == row for given in wanted)
        ]
        return f"training rows {', '.join(map(str, found))}" if found else "rows unknown"

    def _where(self, name: str) -> str:
        """The step and the rows that a loss which is no number comes from."""
        for step, ids, loss in self._since_log if name == "loss" else ():
            if not torch.isfinite(loss):
                return f"step {step} ({self._rows(ids)})"
        return f"step {self.state.global_step}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `tokens_per_second` since the last log, evaluation and saving not counted.

        Raises UserError when the loss is no number any more: going on would cost and not train.
        """
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    f"{self._where(name)}: {name} is {logs[name]}; lower training.learning_rate "
                    f"(now {self.args.learning_rate:g}), or set model.dtype=float32"
                )
        self._since_log.clear()
        seconds = self.clock.seconds - self._seconds_at_last_log
        if "loss" in logs and seconds > 0:
            logs["tokens_per_second"] = round((self.tokens - self._tokens_at_last_log) / seconds, 1)
            self._tokens_at_last_log = self.tokens
            self._seconds_at_last_log = self.clock.seconds
        super().log(logs, start_time)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Score a batch, and weigh its loss by the tokens that it is a mean of."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        supervised = (inputs["labels"][:, 1:] != -100).sum()
        weighed = torch.stack([loss.detach() * supervised, supervised.to(loss.dtype)])
        self._scored += weighed.cpu().double()
        return loss, logits, labels

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> Any:
        """Evaluate, with `eval_loss` as the mean over tokens, as the final table has it; Trainer's is over batches."""
        self._scored = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens = self.accelerator.reduce(self._scored.float().to(self.args.device), "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / max(tokens, 1)
        return output

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into the run folder at each checkpoint; the run's own files say more."""


def _not_saved(err: Exception, run: Path, step: int) -> Iterator[str]:
    """A full disk, in whichever words a library says it; torch's writer does not name the reason at all."""
    text = str(err)
    full = shutil.disk_usage(run).free < _NO_SPACE
    if getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or full:
        former = newest(run)
        kept = f"{former.name} is whole; " if former is not None else ""
        yield (
            f"step {step}: the checkpoint cannot be saved, as the disk of {run} is full; {kept}free space, or set "
            "training.save_total_limit, and start the same command again"
        )


_NO_SPACE = 2**20
"""Bytes; with less, a failed write is put down to the disk."""


class StepClock(TrainerCallback):
    """Seconds spent in optimizer steps, gradient accumulation included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._begun = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.steps += 1
