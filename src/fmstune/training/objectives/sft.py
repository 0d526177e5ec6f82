"""Supervised fine-tuning: the next token of the trained part of each row, with TRL's SFTTrainer."""

import dataclasses
import random
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from fmstune.config.job import Evaluation, order_seed, sources
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.data.prefix_sharing.packs import pack_shared
from fmstune.data.tokenized import IDENTITY
from fmstune.errors import raise_if_any
from fmstune.evaluation.held_out import Scores, keep_samples, labels_of, row_likelihoods, score, together
from fmstune.models.compiled import uncompiled
from fmstune.models.sharding import asks_first_token
from fmstune.models.trl_internals import global_then_local_main_first, name_experts, score_supervised_positions_on_cpu
from fmstune.runs import row_losses
from fmstune.runs.looks import RowLosses
from fmstune.runs.losers import is_watched
from fmstune.training import collate, packing_audit
from fmstune.training.objectives.base import BaseObjective
from fmstune.training.objectives.held_out_losses import HeldOutLosses, TokenMean, name_by_place
from fmstune.training.objectives.loss_recorder import LossRecorder
from fmstune.training.objectives.shared_targets import score_each_row
from fmstune.training.packing_audit import Audit
from fmstune.training.trainer import RunMixin, without_count
from fmstune.training.transformers_internals import reads_document_ends, takes_segments


class SftTrainer(RunMixin, SFTTrainer):
    """SFTTrainer on rows that are masked already, with a fast loss on the CPU and an audit of packing."""

    data_collator: Any
    _signature_columns: list[str]
    """TRL's: the columns that reach the collator."""
    aux_loss_enabled: bool
    """Whether TRL adds the loss that keeps the experts of a mixture evenly used."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        score_supervised_positions_on_cpu()
        text = model.config.get_text_config()
        name_experts(text)
        super().__init__(model, *args, **kwargs)
        if getattr(text, "output_router_logits", False):
            # TRL asks for them by itself in training; an answer that is generated would fail over them
            text.output_router_logits = False
        if asks_first_token(self.model):
            # Trainer divides the sum of the losses by a count that leaves out the first token of each row
            self._loss_shifts_labels = False
        self.data_collator = collate.Collator(
            pad_token_id=self.processing_class.pad_token_id,
            padding_free=self.args.padding_free,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
            flat=reads_document_ends(self.model),
            segments=takes_segments(self.model),
        )
        self.answer_sample: Callable[[], dict[str, float]] | None = None
        """Measures of generated answers, logged with the loss at each evaluation; None where none is asked for."""
        self.audit: Audit | None = None
        """How packed documents compare with the same alone; None where nothing is packed, or before the first step."""
        self.losses: LossRecorder | None = None
        """Keeps the loss of each training row; None where the rows have no `IDENTITY`."""
        self.evaluated: HeldOutLosses | None = None
        """Keeps the loss of each held-out row at an evaluation; None where nothing asks for it."""
        self._epoch = 0
        self._whose: collate.Whose | None = None
        self._shares = False
        self._scored = TokenMean()
        self._held_out: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """How many held-out rows a loader has, without those of `collate.fill_up`."""

    def share_prefixes(self) -> None:
        """Let the rows of a batch share their beginnings, and an epoch bring together those that do."""
        self._shares, self.data_collator = True, collate.SharingCollator()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; of rows that share their beginnings, that of the rows alone."""
        if collate.TARGETS in inputs:
            model, inputs = score_each_row(model, inputs)
        held_out = None if self.evaluated is None else self.evaluated.recorder
        recorder = self.losses if self.model.training else held_out
        if recorder is not None and self._whose is not None:
            model = recorder.watch(model, self._whose, self._epoch, self.state.global_step + 1)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: SFTConfig, packs: bool, *rest: Any, **kwargs: Any
    ) -> Any:
        """Pack the rows where `packing` is set; they are tokenised, masked and cut already, and none is lost here.

        TRL would cut rows to `max_length` again, drop those without a label left, and pack 1000 rows at a time.
        """
        if not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packs, *rest, **kwargs)
        with global_then_local_main_first():
            more = [name for name in (collate.DOCUMENTS, *IDENTITY) if name in dataset.column_names]
            rows = dataset.select_columns(["input_ids", "labels", *more])
            rows = collate.pack(rows, args.max_length) if packs else rows
            return rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows that begin alike together, or of similar length, in an order that the seed decides."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        grouped = collate.grouped_sampler(rows, self.args, shares=self._shares)
        return grouped or super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """Trainer's; held-out rows come in full batches, so that none is evaluated twice and none left out."""
        if is_training or not isinstance(dataset, Dataset):
            return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)
        loader = super()._get_dataloader(collate.fill_up(dataset, self.args), *args, **kwargs)
        self._held_out[loader] = len(dataset)
        return loader

    def _set_signature_columns_if_needed(self) -> None:
        """Let the columns that name a row reach the collator."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *IDENTITY]))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, and write the losses of the rows; those before the checkpoint are its own."""
        main = self.is_world_process_zero()
        if self.losses is not None and resume_from_checkpoint is not None:
            known = self.losses.resume(Path(resume_from_checkpoint), is_main=main)
            if not known and main:
                without = f"{resume_from_checkpoint} holds no losses of rows, so {row_losses.FILE} begins after it"
                print(f"fmstune: note: {without}", file=sys.stderr, flush=True)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._write_losses()
        return output

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        self._epoch = epoch
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on the batch, and keep the loss of each of its rows."""
        batch, self._whose = collate.without_whose(inputs)
        try:
            return super().training_step(model, batch, *args, **kwargs)
        finally:
            self._whose = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; into a checkpoint, the losses of the rows too."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:
            self._write_losses(Path(output_dir))

    def _write_losses(self, checkpoint: Path | None = None) -> None:
        """Write the losses of the rows so far: into the run folder as a table, into a checkpoint as sums."""
        if self.losses is None:
            return
        self.losses.collect()
        if self.args.should_save:
            row_losses.write_row_losses(Path(self.args.output_dir), self.losses.sources, self.losses.entries)
            if checkpoint is not None:
                self.losses.save(checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss of each source, where there are several."""
        if self.losses is not None and "loss" in logs:
            self.losses.settle()
            if len(self.losses.sources) > 1:
                found = self.losses.losses_since_log(self._add_up)
                logs |= {f"loss_{name}": loss for name, loss in found.items()}
        super().log(logs, start_time)

    def _add_up(self, sums: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.accelerator.reduce(sums.to(self.args.device), "sum")
        return added

    def look_at_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> None:
        """Audit the first batch where rows pack or share; raises UserError when one sees what it does not see alone."""
        if self.audit is not None or not (self._packs() or self._shares):
            return
        # TF32 has the mantissa of float16
        short = torch.float16 if self.args.fp16 or (self.args.tf32 and self.model.dtype == torch.float32) else None
        computed_in = torch.bfloat16 if self.args.bf16 else short or self.model.dtype
        tolerance, found = packing_audit.TOLERANCE[computed_in], packing_audit.documents(self._prepare_inputs(batch))
        with uncompiled(), self.compute_loss_context_manager():
            if self._shares:
                self.audit = packing_audit.audit_sharing(model, found, tolerance=tolerance)
            else:
                packs = bool(self.args.packing or self.args.eval_packing)
                self.audit = packing_audit.audit_packing(
                    model, found, self.data_collator, packs=packs, tolerance=tolerance
                )
        raise_if_any(self.audit.apart_problems())
        if self.is_world_process_zero():
            print(self.audit.line(), file=sys.stderr, flush=True)

    def rows_of_batch(self, ids: torch.Tensor) -> str:
        """Which training rows a batch holds; packed rows cannot be told."""
        return "packed rows" if self._packs() else super().rows_of_batch(ids)

    def _packs(self) -> bool:
        return bool(self.args.packing or self.args.eval_packing or self.args.padding_free)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Score a batch, without the loss of a router, and weigh the loss by the tokens that it is a mean of.

        The first token of a row is not scored, as in the comparison with a base, which has no virtual tokens.
        """
        batch, self._whose = collate.without_whose(without_count(inputs)[0])
        batch = {**batch, "labels": batch["labels"].clone()}
        batch["labels"][:, 0] = -100
        balanced, self.aux_loss_enabled = self.aux_loss_enabled, False
        try:
            loss, logits, labels = super().prediction_step(model, batch, *args, **kwargs)
        finally:
            self.aux_loss_enabled, self._whose = balanced, None
        self._scored.add(loss, batch["labels"])
        return loss, logits, labels

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and let the model answer a sample of the rows, once for all sets of them."""
        # of several sets, Trainer calls this again for each, with a prefix
        if (whole := kwargs.get("metric_key_prefix", "eval") == "eval") and self.evaluated is not None:
            self.evaluated.begin(self.state.global_step)
        with uncompiled():
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            if self.answer_sample is not None and whole:
                answered = self.answer_sample()
                self.log(dict(answered))
                found |= answered
            return found

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> Any:
        """Evaluate, with `eval_loss` as the mean over tokens, as the final table has it; Trainer's is over batches."""
        self._scored = TokenMean()
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._scored.mean(self._add_up)
        return output._replace(num_samples=self._held_out.get(dataloader, output.num_samples))

    def own_figures(self) -> dict[str, Any]:
        """Return how rows that pack or share compared with the same alone, at the first batch of the whole run."""
        name = "prefix_sharing" if self._shares else "packing"
        former = self.former.own.get(name) if self.former is not None else None
        audit = former or (self.audit and dataclasses.asdict(self.audit))
        if self._shares and self.tokens:
            saved = self.tokens - self.positions
            audit = {**(audit or {}), "positions_saved": saved, "share_saved": round(saved / self.tokens, 6)}
        return {"packing": None, name: audit, **self._losses_by_source()}

    def _losses_by_source(self) -> dict[str, float]:
        if self.losses is None or len(self.losses.sources) < 2:
            return {}
        found = row_losses.loss_by_source(self.losses.entries, self.losses.sources)
        return {f"loss_{name}": loss for name, loss in found.items()}


class Sft(BaseObjective):
    """Supervised fine-tuning, compared on the loss and on generated answers."""

    trainer_class = SftTrainer

    def arguments(self) -> dict[str, Any]:
        """Return what the rows decide: what is trained is known, and only packing needs to know the length."""
        packs = self.job.training.get("packing") or self.job.training.get("eval_packing")
        if self.job.data.prefix_sharing is True:
            # `rows` packs
            return {"max_length": None, "completion_only_loss": False, "packing": False}
        return {"max_length": self.job.data.max_length if packs else None, "completion_only_loss": False}

    def rows(self, rows: Any) -> Any:
        """Return the rows; where they share their beginnings, packed by distinct tokens if the job packs."""
        named = self.job.data.row_losses and set(IDENTITY) <= set(rows.column_names or ())
        rows = rows.select_columns([*self.job.objective.columns, *(IDENTITY if named else ())])
        if self.job.data.prefix_sharing is True and self.job.training.get("packing"):
            return pack_shared(rows, self.job.data.max_length, order_seed(self.job))
        return rows

    def held_out_rows(self, rows: Any, number: int) -> Any:
        """Return the rows; in a sweep that stops losers, each with the name by which its loss is kept."""
        return self.rows(name_by_place(rows, number) if is_watched(self.job.sweep) else rows)

    def prepare_trainer(self, trainer: SftTrainer, held_out: Mapping[str, Dataset]) -> None:
        """Let rows share their beginnings, and the model answer a sample of held-out rows, where the job says so."""
        if self.job.data.prefix_sharing is True:
            trainer.share_prefixes()
        if set(IDENTITY) <= set(trainer.train_dataset.column_names or ()):
            trainer.losses = LossRecorder(tuple(sources(self.job.data, "train")))
        if is_watched(self.job.sweep):
            trainer.evaluated = HeldOutLosses(list(held_out.values()))
        if self.job.evaluation.sample and held_out:
            trainer.answer_sample = lambda: self._score_sample(trainer, held_out)

    def score(self, trainer: SftTrainer, held_out: Mapping[str, Dataset], answered: str) -> dict[str, Any]:
        """Return the loss on the held-out answers and how well generated answers match; keep the first answers."""
        scores = self._scores(trainer, held_out, held_out, self.job.evaluation)
        if trainer.is_world_process_zero():
            keep_samples(Path(trainer.args.output_dir), scores, answered)
        return together(scores)

    def row_losses(self, trainer: SftTrainer, held_out: Mapping[str, Dataset]) -> RowLosses:
        """Return the loss of the answer of each held-out row that is evaluated, set after set.

        Rows that Trainer has evaluated at this step are not scored again.
        """
        limit, step = self.job.evaluation.max_rows, trainer.state.global_step
        if trainer.evaluated is not None and (seen := trainer.evaluated.read(step, limit)) is not None:
            return seen
        pad, autocast = trainer.processing_class.pad_token_id, _autocast(trainer.args)
        measure = partial(row_likelihoods, trainer.model, pad_token_id=pad, autocast=autocast)
        with uncompiled():
            found = [one for rows in held_out.values() for one in measure(rows, self.job.evaluation)]
        return RowLosses([-one.log_likelihood for one in found], [one.tokens for one in found])

    def _scores(
        self, trainer: SftTrainer, scored: Mapping[str, Dataset], held_out: Mapping[str, Dataset], how: Evaluation
    ) -> dict[str, Scores]:
        tokenizer, autocast = trainer.processing_class, _autocast(trainer.args)
        # labels of all held-out rows, as an answer may be a label that none of a few scored rows has
        labels = {name: labels_of(held_out[name], tokenizer) for name in scored}
        return {
            name: score(trainer.model, tokenizer, rows, how, labels=labels[name], autocast=autocast)
            for name, rows in scored.items()
        }

    def _score_sample(self, trainer: SftTrainer, held_out: Mapping[str, Dataset]) -> dict[str, float]:
        """How the model answers a sample of each set of held-out rows, always the same one, while it is trained."""
        size, seed = self.job.evaluation.sample, self.job.seed
        few = {
            name: rows.select(sorted(random.Random(seed).sample(range(len(rows)), min(len(rows), size))))
            for name, rows in held_out.items()
        }
        scores = self._scores(trainer, few, held_out, dataclasses.replace(self.job.evaluation, max_rows=size))
        figures = {"eval": together(scores)}
        figures |= {f"eval_{name}": one.figures for name, one in scores.items() if name}
        logged = names_at(metrics_of(self.job), Place.sample)
        return {f"{prefix}_{key}": float(one[key]) for prefix, one in figures.items() for key in logged if key in one}


def _autocast(args: SFTConfig) -> str | None:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None
