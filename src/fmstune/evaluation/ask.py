"""`fmstune generate` in the runner: prompts → answers → a file, and the terminal where it is asked for."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from fmstune.config.requests import SAMPLING, Generation
from fmstune.data import formats
from fmstune.data.read import read_rows
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.evaluation import generate, prompts
from fmstune.evaluation.prompts import Prompt
from fmstune.files import explain_write_errors, write_json
from fmstune.models import tuned
from fmstune.models.sharding import virtual_tokens
from fmstune.models.tuned import Tuned
from fmstune.tables import count_of


def answer_prompts(request: Generation) -> int:
    """Answer every prompt; what cannot be answered is said before the weights are read, where that can be known."""
    texts = _texts(request)
    place = tuned.locate(request.model, request.base_model_name_or_path, force=request.force)
    tokenizer = tuned.tokenizer_of(place)
    asked = _prompts(request, texts, tokenizer.tokenizer)
    done = _answered(request, asked) if request.resume else 0
    model = tuned.load_tuned(place, tokenizer, dtype=request.dtype, attention=request.attention, device=request.device)
    raise_if_any(_too_long(asked, model, request.max_new_tokens))
    if done:
        print(f"fmstune: {done:,} of {len(asked):,} prompts are answered in {request.out_file}", file=sys.stderr)
    begun = time.perf_counter()
    set_seed(request.seed)
    made = _answers(request, asked[done:], model)
    out = Path(request.out_file)
    if out.suffix == ".jsonl":
        with explain_write_errors("--out_file", out), out.open("ab") as file:
            for one in made:
                file.write((json.dumps(one, ensure_ascii=False) + "\n").encode())
                file.flush()
    else:
        results = list(made)
        with explain_write_errors("--out_file", out):
            write_json(out, results, indent=4)
    seconds, written = time.perf_counter() - begun, len(asked) - done
    print(f"wrote {request.out_file}: {count_of(written, 'answer')} in {seconds:.1f} s")
    return 0


def _texts(request: Generation) -> list[str]:
    """The texts that were given; none where rows were."""
    if request.text is not None:
        return [request.text]
    if request.text_file is None:
        return []
    try:
        content = sys.stdin.buffer.read() if request.text_file == "-" else Path(request.text_file).read_bytes()
        read = prompts.json_prompts_in if request.text_file.endswith(".jsonl") else prompts.prompts_in
        found = read(content.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        raise UserError("--text_file", f": {request.text_file} is not UTF-8 (byte {err.start}); convert it") from err
    except ValueError as err:
        raise UserError("--text_file", f": {request.text_file}, {err}; give one prompt a line, in quotes") from err
    except OSError as err:
        raise UserError("--text_file", f": {request.text_file} cannot be read ({err.strerror})") from err
    if not found:
        raise UserError("--text_file", f": {request.text_file} holds no text; write one prompt a line")
    return found


def _prompts(request: Generation, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    if request.format is None:
        return prompts.of_texts(texts, tokenizer)
    if request.rows_file is not None:
        return prompts.of_rows(list(read_rows(request.rows_file, "--rows_file")), request.format, tokenizer)
    named = request.text_file if request.text_file is not None else "--text"
    return prompts.of_rows(prompts.rows_of_texts(texts, named, request.format), request.format, tokenizer)


def _too_long(asked: Sequence[Prompt], model: Tuned, max_new_tokens: int) -> Iterator[Problem]:
    """Prompts that leave no room for their answer; transformers would fail, or use positions unknown to the model."""
    positions = tuned.positions(model)
    if positions is None:
        return
    if long := [number for number, one in enumerate(asked, start=1) if len(one.ids) > positions - max_new_tokens]:
        first = len(asked[long[0] - 1].ids)
        virtual = virtual_tokens(model.model)
        prompt_tokens = f" and {virtual} virtual tokens" if virtual else ""
        text = f"{len(long):,} of {len(asked):,} prompts are too long, first number {long[0]:,}: its {first:,} tokens"
        text += f"{prompt_tokens} with --max_new_tokens {max_new_tokens:,} go beyond the {positions + virtual:,} "
        yield Problem("", f"{text}positions of the model; shorten them, or lower --max_new_tokens")


def _answered(request: Generation, asked: Sequence[Prompt]) -> int:
    """How many of these prompts the file answers, after a last line that was cut off is removed; raises UserError."""
    path = Path(request.out_file)
    if not path.is_file():
        return 0
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    for number, line in enumerate(lines, start=1):
        try:
            given = json.loads(line)["input"]
        except (ValueError, KeyError, TypeError) as err:
            text = f": {path}:{number} is not an answer of fmstune generate; choose another file"
            raise UserError("--resume", text) from err
        if number > len(asked) or given != asked[number - 1].text:
            text = f": {path}:{number} answers another prompt than number {number:,} of these"
            raise UserError("--resume", f"{text}; give the prompts that it was begun with, or another --out_file")
    if rest:
        with path.open("r+b") as file:
            file.truncate(len(whole) + bool(lines))
    return len(lines)


def _answers(request: Generation, asked: Sequence[Prompt], model: Tuned) -> Iterator[dict[str, Any]]:
    tokenizer = model.tokenizer.tokenizer
    sampling = {name: getattr(request, name) for name in (*SAMPLING, "repetition_penalty")}
    given = {name: value for name, value in sampling.items() if value is not None}
    ends = prompts.Stops([], []) if request.format is None else prompts.turn_ends(request.format, tokenizer)
    # batches between two writes and two lines of progress; prompts of like length are put together among these
    step = 1 if request.stream else request.batch_size * 8
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        if request.stream:
            print(part[0].text, end="", flush=True)
        with torch.inference_mode():
            made = generate.generate(
                model.model,
                tokenizer,
                [prompt.ids for prompt in part],
                batch_size=request.batch_size,
                max_new_tokens=request.max_new_tokens,
                stops=[tokenizer.eos_token_id, *ends.tokens],
                stop_texts=[*map(formats.unescape, request.stop), *ends.texts],
                sampling={"do_sample": request.do_sample, **given},
                show=partial(print, end="", flush=True) if request.stream else None,
                behind_prompt=True,
            )
        if request.stream:
            print(flush=True)
        elif len(asked) > step:
            print(f"{start + len(part):,} of {len(asked):,} prompts", file=sys.stderr, flush=True)
        for prompt, answer in zip(part, made, strict=True):
            output = answer if request.only_new_text else prompt.text + answer
            if request.text is not None and not request.stream:
                print(output)
            yield {"input": prompt.text, "output": output}
