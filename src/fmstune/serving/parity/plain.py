"""What plain transformers and PEFT make of saved files: a program of its own that imports nothing of fmstune.

`python plain.py REQUEST.json ANSWER.json`; fmstune starts it in a process of its own, and reads its answer.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

Json = dict[str, Any]


class Greedy(NamedTuple):
    """The likeliest tokens behind a prompt, one after the other."""

    ids: list[int]
    log_probs: list[float]
    margins: list[float]
    """How much more likely each is than the second; 0 is a tie."""


class Plain(NamedTuple):
    """A model and a tokenizer as they were saved."""

    model: Any
    tokenizer: Any
    stops: list[int]
    """The tokens at which servers stop: those of the generation configuration, and the tokenizer's end-of-sequence."""
    told: list[int]
    """Tokens at which they stop only where they are told so: plain PEFT reads the base's configuration alone."""


def main(words: list[str]) -> None:
    """Answer the request in the first file, and write the answer into the second."""
    request = json.loads(Path(words[0]).read_text(encoding="utf-8"))
    Path(words[1]).write_text(json.dumps(answer_plainly(request)), encoding="utf-8")


@torch.no_grad()
def answer_plainly(request: Json) -> Json:
    """What the saved files make of each row: the prompt's tokens, the answer's log-probabilities, the greedy answer."""
    plain = load_plainly(request)
    rows, stops = [], [*plain.stops, *plain.told]
    for row in request["rows"]:
        ids = prompt_tokens(row, plain.tokenizer)
        # answers to other prompts are not compared
        known = greedy(plain.model, ids, row["limit"], stops) if ids == row["prompt_ids"] else Greedy([], [], [])
        rows.append(
            {
                "prompt_ids": ids,
                "prompt_text": plain.tokenizer.decode(ids),
                # of training's own prompt, so that other prompts do not look like other weights
                "log_probs": log_probs(plain.model, row["before"], row["scored"]),
                "greedy": known._asdict(),
            }
        )
    pad, dtype = plain.tokenizer.pad_token_id, str(next(plain.model.parameters()).dtype).removeprefix("torch.")
    return {"rows": rows, "stops": stops, "told": plain.told, "pad": pad, "dtype": dtype}


def load_plainly(request: Json) -> Plain:
    """The model and tokenizer of the folder; of an adapter, on its base."""
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    place, revision = request["base"] or request["model"], request["revision"]
    model: Any = AutoModelForCausalLM.from_pretrained(place, revision=revision, dtype=request["dtype"])
    ends, told = _ids(model.generation_config), list[int]()
    if request["base"] is not None:
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            # the mean, as transformers does, and without its noise: of a token that was not trained, any would do
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                if table is not None:
                    table.weight[rows:] = table.weight[:rows].mean(0)
        model = PeftModel.from_pretrained(model, request["model"])
        told = request["ends"]
        if (Path(request["model"]) / GENERATION_CONFIG_NAME).is_file():
            told = _ids(GenerationConfig.from_pretrained(request["model"]))
    stops = sorted({*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
    return Plain(model.to(request["device"]).eval(), tokenizer, stops, [one for one in told if one not in stops])


def _ids(config: GenerationConfig) -> list[int]:
    """The tokens that end an answer."""
    found = config.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def prompt_tokens(row: Json, tokenizer: Any) -> list[int]:
    """The tokens of the conversation under the saved chat template, or of the text; never none."""
    if row["messages"] is not None:
        variables = tokenizer.init_kwargs.get("chat_template_kwargs") or {}
        made = tokenizer.apply_chat_template(
            row["messages"], tools=row["tools"], add_generation_prompt=True, return_dict=True, **variables
        )
        return list(made["input_ids"])
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return list(tokenizer(row["prompt"])["input_ids"]) or [first]


def log_probs(model: Any, prompt: list[int], answer: list[int], *, without: int | None = None) -> list[float]:
    """The log-probability of each token of the answer; `without` masks this token wherever it stands."""
    tokens = torch.tensor([[*prompt, *answer]], device=model.device)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    # logits of a long prompt would be the largest tensor of all
    keeps = "logits_to_keep" in inspect.signature(plain.forward).parameters
    more = {"logits_to_keep": len(answer) + 1} if keeps else {}
    mask = torch.ones_like(tokens) if without is None else (tokens != without).long()
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, **more).logits[0, -len(answer) - 1 : -1]
    found = logits.float().log_softmax(-1).gather(1, torch.tensor(answer, device=model.device)[:, None])
    return [float(one) for one in found[:, 0]]


def greedy(model: Any, prompt: list[int], limit: int, stops: list[int]) -> Greedy:
    """The greedy answer of at most `limit` tokens, with the token that ends it."""
    tokens = torch.tensor([prompt], device=model.device)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers fills what is left open from the model's own, such as a repetition penalty
    plain.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    made = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
    each = torch.stack(made.logits)[:, 0].float().log_softmax(-1)
    ids = made.sequences[0, -len(each) :].tolist()
    best = each.topk(2).values
    chosen = each.gather(1, torch.tensor(ids, device=each.device)[:, None])[:, 0]
    return Greedy(ids, chosen.tolist(), (best[:, 0] - best[:, 1]).tolist())


if __name__ == "__main__":
    main(sys.argv[1:])
