"""A model or an adapter as a folder that plain transformers and PEFT load: complete, or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from fmstune.files import write_aside
from fmstune.models import base_identity, sharding
from fmstune.models.load import Tokenizer
from fmstune.runs import model_card, run_folder


def save(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    folder: Path,
    base: base_identity.Base | None = None,
    *,
    card: str | None = None,
    writes: bool = True,
) -> None:
    """The model or adapter with its tokenizer and card, for plain transformers and PEFT; written aside, then renamed.

    An adapter gets the identity of its base beside it. Every process must call it, as each holds a part of a sharded
    model; one `writes`.
    """
    grown = bool(tokenizer.added)
    state = None
    if sharding.is_sharded(model):
        state = sharding.gathered(model, trained_only=isinstance(model, PeftModel) and not grown)
    with sharding.prompt_at_hand(model):
        if writes:
            with _aside(folder) as aside:
                _write(model, tokenizer, aside, base, state)
                if card is not None:
                    (aside / model_card.MODEL_CARD).write_text(card, encoding="utf-8")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when all is in it."""
    with write_aside(folder) as aside:
        yield aside
        run_folder.share_weights(aside)
        # of a run that was killed before it could say that it is finished
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    aside: Path,
    base: base_identity.Base | None,
    state: dict[str, Any] | None,
) -> None:
    if isinstance(model, PeftModel):
        # PEFT would look the base up on the hub to find out whether the embedding grew; we know
        model.save_pretrained(aside, state_dict=state, save_embedding_layers=bool(tokenizer.added))
        # PEFT's card is a form to fill in, with this machine's path of the base
        (aside / "README.md").unlink(missing_ok=True)
        if base is not None:
            base_identity.write(base, aside)
    else:
        model.save_pretrained(aside, state_dict=state)
    tokenizer.tokenizer.save_pretrained(aside)
