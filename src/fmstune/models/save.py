"""A model or an adapter as a folder that plain transformers and PEFT load: complete, or not there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import TrainableTokensWrapper
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from fmstune.data.chat_template import answer_ends
from fmstune.files import read_json, write_aside, write_json
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
    """Write the model or adapter, its tokenizer, card and base aside, then rename; one `writes`, and all call it."""
    grown, state = bool(tokenizer.added), None
    # each process holds a part
    if sharding.holds_shard(model):
        state = sharding.gathered(model, trained_only=isinstance(model, PeftModel) and not grown)
    with sharding.unshard_prompt(model):
        if not writes:
            return
        with write_aside(folder) as aside:
            # PEFT would look the base up on the hub to find out whether the embedding grew
            more = {"save_embedding_layers": grown} if isinstance(model, PeftModel) else {}
            model.save_pretrained(aside, state_dict=state if state is not None else tied_once(model), **more)
            tokenizer.tokenizer.save_pretrained(aside)
            if isinstance(model, PeftModel):
                write_adapter_ends(aside, tokenizer.tokenizer, model.get_base_model().generation_config)
            else:
                name_turn_ends(aside, tokenizer.tokenizer)
            # PEFT's own card is a form to fill in, with this machine's path of the base
            (aside / model_card.MODEL_CARD).unlink(missing_ok=True)
            if base is not None:
                base_identity.write_base(base, aside)
            if card is not None:
                (aside / model_card.MODEL_CARD).write_text(card, encoding="utf-8")
            run_folder.share_weights(aside)
            # left by a run that was killed before it was marked as finished
            shutil.rmtree(folder, ignore_errors=True)


def keep_asking(tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any]) -> None:
    """Let the tokenizer save how a model of chat rows is asked: the values that its template was given in training."""
    if format["_target_"] == run_folder.CHAT:
        # transformers writes into tokenizer_config.json what a tokenizer was made with, other libraries' keys too
        tokenizer.init_kwargs |= {key: format[name] for name, key in run_folder.ASKED_ALIKE.items() if name in format}


def name_turn_ends(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add what the chat template ends an answer with to the tokens at which a server stops, if the folder has them."""
    file = folder / GENERATION_CONFIG_NAME
    if not file.is_file():
        return
    facts = read_json(file)
    ids, ends = _stops(facts.get("eos_token_id"), tokenizer), _turn_ends(tokenizer)
    if set(ends) - set(ids):
        write_json(file, {**facts, "eos_token_id": list(dict.fromkeys([*ids, *ends]))})


def write_adapter_ends(folder: Path, tokenizer: PreTrainedTokenizerBase, base: GenerationConfig | None) -> bool:
    """Write the base's generation configuration beside an adapter whose answers end otherwise than the base's.

    Plain PEFT reads that of the base alone, and vLLM this one by `--generation-config`. Returns whether it was written.
    """
    facts = json.loads(base.to_json_string()) if base is not None else {}
    if set(_turn_ends(tokenizer)) <= set(_stops(facts.get("eos_token_id"), tokenizer)):
        return False
    write_json(folder / GENERATION_CONFIG_NAME, facts)
    name_turn_ends(folder, tokenizer)
    return True


def _stops(given: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.eos_token_id] if given is None else given if isinstance(given, list) else [given]


def _turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [end.token for end in answer_ends(tokenizer) if end.token is not None]


def tied_once(model: PreTrainedModel | PeftModel) -> dict[str, Any] | None:
    """The state of an adapter's model without an output layer that is its embedding; None where all of it is needed.

    PEFT 0.21 saves both names of the one matrix where the embedding grew, and safetensors a copy of each
    (peft/utils/save_and_load.py, `get_peft_model_state_dict`). Loading the embedding sets the output layer too.
    """
    if not isinstance(model, PeftModel):
        return None
    head = model.get_output_embeddings()
    matrices = [
        # around it, PEFT holds the rows that are trained alone, of both in one place
        module.token_adapter.get_base_layer() if isinstance(module, TrainableTokensWrapper) else module
        for module in (model.get_input_embeddings(), head)
    ]
    # any other module of PEFT's around one of them holds what is trained
    plain = isinstance(matrices[0], torch.nn.Embedding) and isinstance(matrices[1], torch.nn.Linear)
    if not plain or matrices[0].weight is not matrices[1].weight:
        return None
    place = next(name for name, module in model.named_modules() if module is head)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{place}.")}
