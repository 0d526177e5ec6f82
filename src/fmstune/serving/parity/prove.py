"""`fmstune parity`, and the proof at the end of `merge` and others: training's rows as serving has them."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from fmstune import files
from fmstune.config import freeze
from fmstune.config.choices import Dtype
from fmstune.config.job import Job, Model
from fmstune.config.requests import Merge, Parity
from fmstune.errors import Problem, UserError, first_line, raise_if_any
from fmstune.evaluation import held_out
from fmstune.files import user_path
from fmstune.models import architecture, load, tuned
from fmstune.models.load import Tokenizer
from fmstune.models.tuned import Place
from fmstune.models.vllm import NEW_EMBEDDINGS
from fmstune.runs import run_folder
from fmstune.serving.parity import plain
from fmstune.serving.parity.endpoint import Endpoint, find_endpoint
from fmstune.serving.parity.reference import Reference, limit
from fmstune.serving.parity.training_rows import Chosen, TrainedRow, choose_rows
from fmstune.serving.parity.verdict import TOLERANCE, Compared, Ends, Served, Trained, distance, find_faults


@dataclass(frozen=True)
class Known:
    """Training's side of the comparison."""

    tokenizer: Tokenizer
    chosen: Chosen
    reference: Reference
    trained: list[Trained]


def run_parity(request: Parity) -> int:
    """Compare serving with training, print what was compared; raises UserError with what differs."""
    folder = user_path(request.run)
    job = freeze.read(folder / run_folder.JOB, trusted=tuple(request.trusted)).job
    place = tuned.locate(str(folder / run_folder.MODEL), request.base_model_name_or_path, force=request.force)
    known = training_side(job, place, request.rows)
    if request.gguf is not None:
        print(prove_gguf(known, user_path(request.gguf)))
        return 0
    if request.endpoint is None:
        print(prove_saved(known, place, request.dtype))
        return 0
    server = find_endpoint(request.endpoint, request.served_model, known.tokenizer.tokenizer)
    dtype = _saved_dtype(place) if request.dtype is Dtype.auto else request.dtype.value
    print(prove_endpoint(known, server, dtype))
    return 0


def prove_artifacts(
    run: Path, saved: Path, rows: int, *, base: str | None = None, force: bool = False, trusted: Sequence[str] = ()
) -> str:
    """Compare saved weights with the run that they were made of; the lines that say what was compared.

    `saved` is an adapter, on the base of the run or on `base`, a whole model, or a GGUF file. Where the rows of the run
    cannot be had, as on another machine, nothing is compared, and a note says why. Raises UserError with what differs.
    """
    try:
        job = freeze.read(run / run_folder.JOB, trusted=tuple(trusted)).job
        place = tuned.locate(str(run / run_folder.MODEL), base, force=force)
        known = training_side(job, place, rows)
    except UserError as err:
        return f"note: parity was not compared: {err.problems[0]}"
    if saved.is_file():
        return prove_gguf(known, saved)
    adapts = (saved / "adapter_config.json").is_file()
    return prove_saved(known, place._replace(model=str(saved)) if adapts else Place(str(saved), None), Dtype.auto)


def prove_merged(request: Merge, saved: Path) -> str | None:
    """What `fmstune merge` has written, against the run of its adapter; None where that was not asked for."""
    if request.parity_rows == 0:
        return None
    run = run_of_weights(request.model[0]) if len(request.model) == 1 and request.weight in ((), (1.0,)) else None
    if run is None:
        what = "several or weighted adapters" if len(request.model) > 1 or request.weight else "no run"
        return f"note: parity was not compared: it needs the adapter of one run as it was trained, and found {what}"
    if (saved / NEW_EMBEDDINGS).is_file():
        return f"note: parity was not compared: {NEW_EMBEDDINGS} is read by vLLM alone"
    base, force = request.base_model_name_or_path, request.force
    said = prove_artifacts(run, saved, request.parity_rows, base=base, force=force)
    # it will be renamed
    return said.replace(str(saved), request.out)


def run_of_weights(model: str) -> Path | None:
    """The run that a folder of weights belongs to; None where it belongs to none, so that nothing can be compared."""
    folder = user_path(model)
    run = folder.parent if folder.name == run_folder.MODEL else folder
    return run if (run / run_folder.JOB).is_file() and (run / run_folder.MODEL).is_dir() else None


def training_side(job: Job, place: Place, rows: int) -> Known:
    """The rows through the run's own data pipeline, and its model as fmstune loads it."""
    # as training had it: the saved tokenizer is a part of what is proven
    model = job.model if place.base is None else replace(job.model, path=place.base, revision=place.revision)
    tokenizer = load.load_tokenizer(model)
    chosen = choose_rows(job, tokenizer.tokenizer, rows)
    stops = held_out.stops([row.answer_ids for row in chosen.rows], tokenizer.tokenizer)
    before = Place(job.model.path, None, job.model.revision, compared=True) if place.base is None else None
    reference = Reference(place, before, tokenizer, chosen.rows, stops)
    return Known(tokenizer, chosen, reference, reference.measure())


def prove_saved(known: Known, place: Place, dtype: Dtype) -> str:
    """Compare with what plain transformers and PEFT make of the saved files in a process of their own."""
    rows = [
        {
            "prompt": row.prompt,
            "messages": row.messages,
            "tools": row.tools,
            "prompt_ids": row.prompt_ids,
            "before": row.before,
            "scored": row.scored,
            "limit": limit(row),
        }
        for row in known.chosen.rows
    ]
    found = answer_of_plain(
        {
            "model": files.resolve(place.model),
            "base": None if place.base is None else files.resolve(place.base),
            "revision": place.revision,
            "dtype": dtype.value,
            "device": load.find_device(known.reference.device),
            "ends": known.reference.stops,
            "rows": rows,
        }
    )
    served = [
        Served(one["prompt_ids"], one["prompt_text"], len(one["prompt_ids"]), one["log_probs"], one["greedy"]["ids"])
        for one in found["rows"]
    ]
    ends = Ends(frozenset(known.reference.stops), known.tokenizer.tokenizer.pad_token_id, frozenset(found["stops"]))
    said = _judged(known, served, ends, found["dtype"], "plain transformers")
    return "\n".join([said, *_told_ends(known, place.model, found["told"])])


def _told_ends(known: Known, adapter: str, told: Sequence[int]) -> Iterator[str]:
    """What plain PEFT has to be told about an adapter whose answers end otherwise than those of its base."""
    ends = [str(known.tokenizer.tokenizer.decode([one])) for one in told if one in known.reference.stops]
    if not ends:
        return
    given, vllm = f"eos_token_id={told}", f"stop_token_ids={told} with each request to vLLM"
    if (user_path(adapter) / GENERATION_CONFIG_NAME).is_file():
        given, vllm = f"GenerationConfig.from_pretrained({adapter!r})", f"--generation-config {adapter} to vLLM"
    yield f"note: PEFT and vLLM read from the base how answers end, and it lacks {', '.join(ends)}; pass {given}"
    yield f"  to generate, and {vllm}"


def answer_of_plain(request: dict[str, Any]) -> dict[str, Any]:
    """What the program `plain` answers; raises UserError where the files cannot be loaded as they are."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        asked, answered = Path(folder) / "asked.json", Path(folder) / "answered.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        # -P: the modules beside the program are found by no other
        argv = [sys.executable, "-P", plain.__file__, str(asked), str(answered)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = first_line("\n".join(reversed(done.stderr.splitlines())))
            raise UserError("parity", f": plain transformers cannot serve {request['model']}: {why}")
        return dict(json.loads(answered.read_text(encoding="utf-8")))


def prove_gguf(known: Known, file: Path) -> str:
    """Compare with what llama.cpp makes of the file; where it is not installed, with what the file's data tells."""
    from fmstune.serving.parity.gguf_rows import NOT_INSTALLED, ask_gguf  # needs an extra, as writing a file does

    found = ask_gguf(file, known.chosen.rows, known.tokenizer.tokenizer)
    ends = Ends(frozenset(known.reference.stops), known.tokenizer.tokenizer.pad_token_id, found.stops)
    answers = any(one.log_probs is not None for one in found.served)
    said = _judged(known, found.served, ends, found.dtype, "llama.cpp" if answers else file.name)
    return "\n".join([said, *found.notes, *([] if answers else [NOT_INSTALLED])])


def prove_endpoint(known: Known, server: Endpoint, dtype: str) -> str:
    served, pad = server.ask_all(known.chosen.rows), known.tokenizer.tokenizer.pad_token_id
    first: TrainedRow = known.chosen.rows[0]
    ends = Ends(frozenset(known.reference.stops), pad, None, lambda token: server.stops_at(first, token))
    said = _judged(known, served, ends, dtype, f"{server.model} at {server.url}")
    return "\n".join([said, *_not_compared(served)])


def _not_compared(served: Sequence[Served]) -> Iterator[str]:
    """What the server does not tell."""
    if any(one.prompt_ids is None for one in served):
        counted = all(one.prompt_count is not None for one in served)
        how = "their number was compared" if counted else "they were not compared"
        yield f"note: the server does not tell the tokens of a prompt: {how}"
    if any(one.log_probs is None for one in served):
        yield "note: the server does not score a known answer (token ids with echo and logprobs): not compared"
    if any(one.greedy is None for one in served):
        yield "note: the server does not tell the tokens of its answers: their texts were compared"


def _judged(known: Known, served: Sequence[Served], ends: Ends, dtype: str, name: str) -> str:
    tokenizer = known.tokenizer.tokenizer
    compared = Compared(
        trained=known.trained,
        served=served,
        ends=ends,
        decode=lambda ids: str(tokenizer.decode([one for one in ids if one >= 0])),
        say=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        dtype=dtype if dtype in TOLERANCE else "float32",
        explain=known.reference.guesses,
    )
    raise_if_any(Problem("parity", f": {fault.cause}: {fault.text}") for fault in find_faults(compared))
    return "\n".join(_report(known, compared, name))


def _report(known: Known, compared: Compared, name: str) -> Iterator[str]:
    what = "held-out" if known.chosen.held_out else "training"
    tokens = sum(len(row.answer_ids) for row in known.trained)
    does, answers = "serves", f" ({tokens:,} tokens of answers)"
    if not any(one.log_probs or one.greedy or one.greedy_text for one in compared.served):
        does, answers = "has the prompts and the end tokens of", ""
    said = f"parity: {name} {does} {len(known.trained):,} {what} rows{answers} as training had them"
    pairs = [(row, one) for row, one in zip(known.trained, compared.served, strict=True) if one.log_probs]
    if pairs:
        size = distance([row.log_probs for row, _ in pairs], [one.log_probs or () for _, one in pairs])
        said += f"; log-probabilities differ by {size:.1e} nats (tolerance {TOLERANCE[compared.dtype]:.0e})"
    yield said
    if known.chosen.left_out:
        yield f"note: {known.chosen.left_out:,} rows were left out: their prompt alone has other tokens than in the row"


def _saved_dtype(place: Place) -> str:
    """What the weights of the base, or of the whole model, are saved in."""
    config = architecture.model_configuration(Model(path=place.base or place.model, revision=place.revision))
    saved = str(config.dtype).removeprefix("torch.")
    return saved if saved in TOLERANCE else "float32"
