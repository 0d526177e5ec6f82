"""TRL's SFTTrainer with its CPU loss made fast, its packing audited, everything counted, and LoRA+'s optimizer."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.launch import preemption
from fmstune.models import base_identity, sharding
from fmstune.models.trl_internals import global_then_local_main_first, score_supervised_positions_on_cpu
from fmstune.runs.checkpoints import (
    SAVING,
    CheckpointFacts,
    disk_is_full,
    name_newest,
    publish_checkpoint,
    remove_unfinished,
)
from fmstune.training import collate, packing_audit
from fmstune.training.packing_audit import Audit
from fmstune.training.transformers_internals import rotate_checkpoints


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenised and masked already."""

    _total_train_tokens: int
    """TRL's count, from which it logs `num_tokens`."""

    def __init__(self, model: Any, *args: Any, loraplus_lr_ratio: float | None = None, **kwargs: Any) -> None:
        score_supervised_positions_on_cpu()
        adapter = {name: p.data for name, p in model.named_parameters() if p.requires_grad and _is_quantised(model)}
        super().__init__(model, *args, **kwargs)
        if self.is_fsdp_enabled:
            sharding.keep_exact(self.accelerator.state.fsdp_plugin)
        # TRL 1.16 rounds the adapter on a quantised base to bfloat16 (sft_trainer.py:908), where small updates vanish
        for name, parameter in self.model.named_parameters():
            parameter.data = adapter.get(name, parameter.data)
        self.data_collator = collate.Collator(
            pad_token_id=self.processing_class.pad_token_id,
            padding_free=self.args.padding_free,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
            flat=collate.reads_ends(self.model),
        )
        self.answer_sample: Callable[[], dict[str, float]] | None = None
        """Measures of generated answers, logged at each evaluation beside the loss; None where none is asked for."""
        self.adapter_base: base_identity.Base | None = None
        """Which base an adapter is tuned on, written into its checkpoints; None for full tuning."""
        self.loraplus_lr_ratio = loraplus_lr_ratio
        """LoRA+: the rate of B by that of A, which is the learning rate; None trains both alike."""
        self.clock = StepClock()
        self.add_callback(self.clock)
        self.stops = False
        """Some process was given notice: all of them save a checkpoint after this step, and stop."""
        self.add_callback(SaveAndStop(lambda: self.stops))
        self.positions = 0
        """Positions that went through the model in training, padding included; of all processes."""
        self.audit: Audit | None = None
        """How packed documents compare with the same alone; None where nothing is packed, or before the first step."""
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

    def about(self) -> CheckpointFacts:
        """What a checkpoint that is saved now is made with."""
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
        """Write the checkpoint aside, then give it its name; raises UserError where the disk is full.

        The former checkpoint is whole then, and removed only when the new one is.
        """
        run, step = Path(self.args.output_dir), self.state.global_step
        if self.args.should_save:
            remove_unfinished(run)
        self.accelerator.wait_for_everyone()
        self._aside = run / SAVING
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.adapter_base is not None:
                    base_identity.write(self.adapter_base, run / SAVING / f"checkpoint-{step}")
                publish_checkpoint(run / SAVING / f"checkpoint-{step}", run / f"checkpoint-{step}", self.about())
        except (OSError, RuntimeError, SafetensorError) as err:
            # looked at before the room is given back
            problems = list(_not_saved(err, run, step))
            remove_unfinished(run)
            raise_if_any(problems)
            raise
        finally:
            self._aside = None
        if self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(run / Path(self.state.best_model_checkpoint).name)
        if self.args.should_save:
            remove_unfinished(run)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; nothing where the last checkpoint was at the end already, where Trainer would take a step."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def tokens(self) -> int:
        """Tokens that went through the model in training, padding not included."""
        return self._total_train_tokens

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: SFTConfig, packs: bool, *rest: Any, **kwargs: Any
    ) -> Any:
        """Pack where that is asked for; the rows are tokenised, masked and cut already, and none is lost here.

        TRL's own would cut rows to `max_length` again, drop what has no label left, and pack 1000 rows at a time.
        """
        if not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packs, *rest, **kwargs)
        with global_then_local_main_first():
            rows = dataset.select_columns(["input_ids", "labels"])
            rows = collate.pack(rows, args.max_length) if packs else rows
            return rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like length together, where that is asked for: the lengths are known, and the order is the seed's."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return collate.LengthGrouped(collate.lengths(rows).tolist(), batch, seed)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count the positions and tokens of the batch, then train on it; the first batch is audited where rows pack."""
        batch, padding = _without_count(inputs)
        if self.audit is None and self._packs():
            self._audit(model, batch)
        positions = batch["input_ids"].numel()
        masked = batch["attention_mask"].sum() if "attention_mask" in batch else positions - padding
        # the notice goes along: it reaches processes at different steps, and they must stop after the same one
        sums = [positions, int(masked), preemption.given()]
        counted = torch.tensor(sums, dtype=torch.float64, device=self.args.device)
        before = self._total_train_tokens
        ids = batch["input_ids"]
        try:
            loss: torch.Tensor = super().training_step(model, batch, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
            raise_if_any(self._out_of_memory(err, ids))
            raise
        # looked at when something went wrong only: a look at each would make the device wait
        self._since_log.append((self.state.global_step + 1, ids, loss.detach()))
        positions, tokens, notices = self.accelerator.reduce(counted, "sum").tolist()
        self.stops = self.stops or notices > 0
        self.positions += round(positions)
        # TRL takes a batch without a mask for one row
        self._total_train_tokens = before + round(tokens)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _packs(self) -> bool:
        return bool(self.args.packing or self.args.eval_packing or self.args.padding_free)

    def _audit(self, model: torch.nn.Module, batch: dict[str, Any]) -> None:
        """Raises UserError when packed documents see each other."""
        computed_in = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else self.model.dtype
        with self.compute_loss_context_manager():
            self.audit = packing_audit.audit(
                model,
                packing_audit.documents(self._prepare_inputs(batch)),
                self.data_collator,
                packs=bool(self.args.packing or self.args.eval_packing),
                tolerance=packing_audit.TOLERANCE[computed_in],
            )
        raise_if_any(self.audit.problems())
        if self.is_world_process_zero():
            print(self.audit.line(), file=sys.stderr, flush=True)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of the training arguments, for LoRA+ with PEFT's groups of parameters."""
        optimizer: torch.optim.Optimizer
        if self.loraplus_lr_ratio is None:
            optimizer = super().create_optimizer(*args, **kwargs)
            return optimizer
        cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        ratio, decay = self.loraplus_lr_ratio, self.args.weight_decay
        optimizer = create_loraplus_optimizer(
            self.model, cls, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings
        )
        self.optimizer = optimizer
        return optimizer

    def _out_of_memory(self, err: BaseException, ids: torch.Tensor) -> Iterator[Problem]:
        # the CPU's allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp)
        if isinstance(err, RuntimeError) and "memory" not in str(err).lower():
            return
        batch, length = ids.shape
        yield Problem(
            "",
            f"step {self.state.global_step + 1}: out of memory on a batch of {batch} x {length:,} tokens "
            f"({self._rows(ids)}); set training.per_device_train_batch_size below {self.args.train_batch_size} and "
            "training.gradient_accumulation_steps up, training.activation_checkpointing=true or a smaller "
            "data.max_length; fmstune check says what each comes to",
        )

    def _rows(self, ids: torch.Tensor) -> str:
        """Which training rows a batch holds, from 0; found by what they hold, as nothing else reaches the model."""
        if self._packs():
            return "packed rows"
        if not isinstance(self.train_dataset, Dataset):
            return "streamed rows"
        wanted = ids.tolist()
        found = [
            number
            for number, row in enumerate(self.train_dataset["input_ids"])
            if any(given[: len(row)] == row for given in wanted)
        ]
        return f"training rows {numbers(found)}" if found else "rows unknown"

    def _where(self, name: str) -> str:
        """The step and the rows that a loss which is no number comes from."""
        for step, ids, loss in self._since_log if name == "loss" else ():
            if not torch.isfinite(loss):
                return f"step {step} ({self._rows(ids)})"
        return f"step {self.state.global_step}"

    @property
    def _more_exact(self) -> str:
        """What else helps against a loss that is no number, where it is not done already."""
        half = self.args.bf16 or self.args.fp16 or self.model.dtype != torch.float32
        clips = self.args.max_grad_norm and self.args.max_grad_norm > 0
        return f"{'' if clips else ', set training.max_grad_norm=1'}{', or set model.dtype=float32' if half else ''}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `tokens_per_second` since the last log, evaluation and saving not counted.

        Raises UserError when the loss is no number any more: going on would cost and not train.
        """
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    "",
                    f"{self._where(name)}: {name} is {logs[name]}; lower training.learning_rate "
                    f"(now {self.args.learning_rate:g}){self._more_exact}",
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
        batch, _ = _without_count(inputs)
        loss, logits, labels = super().prediction_step(model, batch, *args, **kwargs)
        supervised = (batch["labels"][:, 1:] != -100).sum()
        weighed = torch.stack([loss.detach() * supervised, supervised.to(loss.dtype)])
        self._scored += weighed.cpu().double()
        return loss, logits, labels

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and let the model answer a sample of the rows, once for all sets of them."""
        found: dict[str, float] = super().evaluate(*args, **kwargs)
        # of several sets, Trainer calls this again for each, with a prefix
        if self.answer_sample is not None and kwargs.get("metric_key_prefix", "eval") == "eval":
            answered = self.answer_sample()
            self.log(dict(answered))
            found |= answered
        return found

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


def _without_count(inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What the model takes, and how many positions of it are padding where no mask says so."""
    return {key: value for key, value in inputs.items() if key != collate.PADDING}, inputs.get(collate.PADDING, 0)


def _is_quantised(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def numbers(rows: Sequence[int]) -> str:
    """Row numbers in ascending order for a message: neighbours together, and of very many the first ones."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][-1] + 1:
            spans[-1].append(row)
        else:
            spans.append([row])
    shown, rest = spans[:_MOST_SPANS], sum(map(len, spans[_MOST_SPANS:]))
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in shown]
    return ", ".join(texts) + (f" and {rest:,} more" if rest else "")


_MOST_SPANS = 64
"""More would hide what the message says of them."""


def _not_saved(err: Exception, run: Path, step: int) -> Iterator[Problem]:
    if disk_is_full(err, run):
        yield Problem(
            "",
            f"step {step}: the checkpoint cannot be saved, as the disk of {run} is full; {name_newest(run)}free "
            "space, or set training.save_total_limit, and start the same command again",
        )


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


class SaveAndStop(TrainerCallback):
    """Save a checkpoint after the step in which `asked` becomes true, and end training there."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trainer takes the stop for the end of the epoch, where it would evaluate and save once more."""
        if self._asked():
            control.should_save = control.should_evaluate = False
