"""The plan and the results of a run, in the numbers that `summary.json` holds."""

import dataclasses
from typing import Any

from fmstune.data.dataset import Prepared
from fmstune.data.ledger import Ledger
from fmstune.models import shapes, sharding
from fmstune.training.legs import speed_of_legs, sum_legs
from fmstune.training.preflight import Checked
from fmstune.training.trainer import RunMixin


def training_figures(
    trainer: RunMixin, checked: Checked, prepared: Prepared, metrics: dict[str, float]
) -> dict[str, Any]:
    """Return the results of the training."""
    seconds, legs = trainer.clock.seconds, trainer.legs()
    # rows that share their beginnings have more tokens than positions, and none is padding
    padded = max(trainer.positions - trainer.tokens, 0)
    return {
        "train_loss": metrics["train_loss"],
        "steps": trainer.state.global_step,
        # of the last leg
        "steps_here": trainer.clock.steps,
        "epochs": trainer.state.epoch,
        "tokens_per_second": round(trainer.tokens / seconds, 1) if seconds else None,
        **speed_of_legs(legs),
        "model_flops": trainer.flops,
        "tokens_trained_on": trainer.tokens,
        "tokens_padded": padded,
        "positions": trainer.positions,
        "padding_share": round(padded / trainer.positions, 6) if trainer.positions else None,
        **trainer.own_figures(),
        "total_parameters": shapes.parameters(trainer.model),
        "base_parameters": checked.dimensions.base_parameters,
        "trainable_parameters": shapes.parameters(trainer.model, trained=True),
        "processes": trainer.args.world_size,
        "weight_bytes_by_rank": sharding.held_by_rank(trainer.model),
        **sum_legs(legs),
        "data": {**_data(prepared), "from_cache": legs[0].from_cache},
    }


def _data(prepared: Prepared) -> dict[str, Any]:
    """Return the ledgers of all rows, and of each source where there are several."""
    train = {part.name: part.ledger for part in prepared.sources} if prepared.streamed is None else prepared.streamed
    held_out = {part.name: part.ledger for part in prepared.held_out}
    found: dict[str, Any] = {
        "train": _ledger(Ledger.total(list(train.values()))),
        "held_out": _ledger(Ledger.total(list(held_out.values()))) if held_out else None,
        "streamed": prepared.streamed is not None,
        "shared": [one._asdict() for one in prepared.shared],
    }
    for name, ledgers in (("sources", train), ("held_out_sets", held_out)):
        if "" not in ledgers:
            found[name] = {source: _ledger(ledger) for source, ledger in ledgers.items()}
    if len(prepared.mixture) > 1:
        found["mixture"] = [share._asdict() for share in prepared.mixture]
    return found


def _ledger(ledger: Ledger) -> dict[str, Any]:
    counts = {key: value for key, value in dataclasses.asdict(ledger).items() if key != "lengths"}
    return {**counts, "rows_dropped": ledger.rows_dropped}
