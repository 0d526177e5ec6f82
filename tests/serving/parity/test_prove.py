"""`fmstune parity`: faults of serving are named, on a server that computes with a real model and on saved files."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.config.choices import Dtype
from fmstune.config.requests import Merge
from fmstune.errors import UserError
from fmstune.models import merge
from fmstune.models.tuned import Place, locate
from fmstune.serving.parity import plain, prove
from fmstune.serving.parity.endpoint import find_endpoint
from tests import ROOT
from tests.conftest import Result

TINY = ROOT / "src" / "fmstune" / "assets" / "tiny_llama"
END, PAD = 2, 1535
FAULTS = {
    "other template": "template",
    "doubled first token": "first token doubled",
    "prompt cut": "prompt cut",
    "end token missing": "end token missing",
    "end token is padding": "end token equal to padding",
    "wrong base": "wrong base",
    "adapter not applied": "adapter not applied",
    "precision": "precision",
}
RESTORE = threading.Lock()


class Stub:
    """An OpenAI-compatible server on a real model, with one fault; without `tells` it knows only OpenAI's fields."""

    def __init__(self, run: Path, fault: str = "", *, tells: bool = True) -> None:
        self.fault, self.tells = fault, tells
        self.tokenizer = AutoTokenizer.from_pretrained(run / "model")
        model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        if fault == "wrong base":
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += torch.randn_like(parameter) * parameter.std() * 0.5
        if fault != "adapter not applied":
            model = PeftModel.from_pretrained(model, run / "model")
        self.model = (model.bfloat16() if fault == "precision" else model).eval()
        self.stops = {"end token missing": [], "end token is padding": [PAD]}.get(fault, [END])

    def prompt(self, given: str | list[int]) -> list[int]:
        if not isinstance(given, str):
            return given
        ids = self.tokenizer(given.replace("Label", "Answer") if self.fault == "other template" else given)["input_ids"]
        if self.fault == "doubled first token":
            return [ids[0], *ids]
        return ids[-8:] if self.fault == "prompt cut" else ids

    def completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        ids = self.prompt(asked["prompt"])
        with RESTORE, torch.inference_mode():
            made = plain.greedy(self.model, ids, asked["max_tokens"], self.stops)
            # the log-probability of every token but the first
            scored = [None, *plain.log_probs(self.model, ids[:1], ids[1:])] if asked.get("echo") else []
        new, log_probs = made.ids, made.log_probs
        if bias := asked.get("logit_bias"):
            forced = int(next(iter(bias)))
            new = [forced] * (1 if forced in self.stops else asked["max_tokens"])
        ended = new[-1] in self.stops
        shown = [*(ids if asked.get("echo") else []), *new]
        found: dict[str, Any] = {
            "text": self.tokenizer.decode(shown, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
        }
        if asked.get("logprobs"):
            tokens = [self.tokenizer.decode([one]) for one in shown]
            found["logprobs"] = {"tokens": tokens, "token_logprobs": [*scored, *log_probs]}
        if asked.get("return_token_ids"):
            found |= {"prompt_token_ids": ids, "token_ids": new}
        return {"choices": [found], "usage": {"prompt_tokens": len(ids)}}

    def refusal(self, asked: dict[str, Any]) -> str | None:
        if self.tells:
            return None
        unknown = asked.keys() - {"model", "prompt", "max_tokens", "temperature", "logit_bias"}
        return f"unknown field {min(unknown)}" if unknown else None


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a stub at a URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(stub: Stub) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": "base"}, {"id": "tuned"}]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                refused = stub.refusal(asked)
                self.send(*((400, {"error": refused}) if refused else (200, stub.completion(asked))))

            def send(self, code: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def proven_at(url: str, known: prove.Known) -> str:
    server = find_endpoint(url, None, known.tokenizer.tokenizer)
    assert server.model == "tuned"
    return prove.prove_endpoint(known, server, "float32")


@pytest.mark.slow
def test_each_planted_fault_of_a_server_is_named_and_none_on_a_sound_one(
    run: Path, known: prove.Known, serve: Serve
) -> None:
    said = proven_at(serve(Stub(run)), known)
    assert said.startswith("parity: tuned at http://127.0.0.1:") and "note" not in said
    assert "serves 6 held-out rows" in said
    found = {}
    for fault in FAULTS:
        with pytest.raises(UserError) as error:
            proven_at(serve(Stub(run, fault)), known)
        found[fault] = [problem.text.split(": ")[1] for problem in error.value.problems]
    assert found == {fault: [cause] for fault, cause in FAULTS.items()}


@pytest.mark.slow
def test_a_server_that_tells_little_is_compared_by_counts_and_texts_and_the_report_says_so(
    run: Path, known: prove.Known, serve: Serve
) -> None:
    said = proven_at(serve(Stub(run, tells=False)), known)
    assert said.count("note: the server does not") == 3 and "their number was compared" in said
    for fault in ("doubled first token", "prompt cut", "end token missing", "end token is padding"):
        with pytest.raises(UserError, match=FAULTS[fault]):
            proven_at(serve(Stub(run, fault, tells=False)), known)


@pytest.mark.slow
def test_saved_files_are_proven_and_what_was_changed_in_them_is_named(
    run: Path, known: prove.Known, in_process: None, tmp_path: Path
) -> None:
    place = locate(str(run / "model"), None, force=False)
    assert "plain transformers serves 6 held-out rows" in prove.prove_saved(known, place, Dtype.auto)
    with pytest.raises(UserError, match="adapter not applied: row "):
        prove.prove_saved(known, Place(str(TINY), None), Dtype.auto)
    # a tokenizer that was saved without its first token
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in (run / "model").iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="prompt cut|template: row .* token 1 of the prompt is"):
        prove.prove_saved(known, place._replace(model=str(changed)), Dtype.auto)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.slow
def test_conversations_are_proven_and_peft_has_to_be_told_how_their_answers_end(
    tuned: Path, known_chat: prove.Known, in_process: None, tmp_path: Path
) -> None:
    assert all(row.messages for row in known_chat.chosen.rows)
    place = locate(str(tuned / "model"), None, force=False)
    said = prove.prove_saved(known_chat, place, Dtype.auto)
    assert said.startswith("parity: plain transformers serves 6 training rows")
    told = f"it lacks <|im_end|>; pass GenerationConfig.from_pretrained('{tuned}/model')"
    assert told in said and f"--generation-config {tuned}/model to vLLM" in said
    # an adapter that does not say it serves properly where it is told
    bare = copied(tuned / "model", tmp_path / "bare")
    (bare / "generation_config.json").unlink()
    assert "; pass eos_token_id=[" in prove.prove_saved(known_chat, place._replace(model=str(bare)), Dtype.auto)
    other = copied(tuned / "model", tmp_path / "other")
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="template: row 1 of data.train: token 1 of the prompt is"):
        prove.prove_saved(known_chat, place._replace(model=str(other)), Dtype.auto)


@pytest.mark.slow
def test_a_whole_model_of_conversations_must_say_how_its_answers_end(
    tuned: Path, known_chat: prove.Known, in_process: None, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    merge.run_merge(Merge(model=(str(tuned / "model"),), out=str(merged)), None)
    whole = Place(str(merged), None)
    assert "note" not in prove.prove_saved(known_chat, whole, Dtype.auto)
    facts = json.loads((merged / "generation_config.json").read_text())
    (merged / "generation_config.json").write_text(json.dumps({**facts, "eos_token_id": END}))
    with pytest.raises(UserError, match=r"end token missing: row .*'<\|im_end\|>' \(\d+\), ends it in training"):
        prove.prove_saved(known_chat, whole, Dtype.auto)


@pytest.mark.slow
def test_a_run_is_proven_in_a_fresh_process(run: Path, known: prove.Known) -> None:
    place = locate(str(run / "model"), None, force=False)
    assert "plain transformers serves 6 held-out rows" in prove.prove_saved(known, place, Dtype.auto)


@pytest.mark.slow
def test_the_command_proves_a_run_and_merge_proves_what_it_wrote(run: Path, fmstune: Callable[..., Result]) -> None:
    done = fmstune("parity", str(run), "--rows", "3")
    assert done.code == 0, done.err
    assert done.out.startswith("parity: plain transformers serves 3 held-out rows")
    done = fmstune("merge", "--model", str(run), "--out", "merged", "--parity_rows", "2")
    assert done.code == 0, done.err
    assert "parity: plain transformers serves 2 held-out rows" in done.out


def test_merge_says_where_nothing_can_be_compared(tmp_path: Path) -> None:
    request = Merge(model=(str(tmp_path),), out="out")
    assert "found no run" in str(prove.prove_merged(request, tmp_path))
    two = Merge(model=("a", "b"), out="out")
    assert "found several or weighted adapters" in str(prove.prove_merged(two, tmp_path))
    assert prove.prove_merged(Merge(model=("a",), out="out", parity_rows=0), tmp_path) is None
