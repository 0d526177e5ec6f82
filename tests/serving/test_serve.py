"""`fmstune serve` as its users have it: a server of its own, the client of OpenAI, a browser, and a signal."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Result
from tests.fixtures import browser, forked
from tests.serving.conftest import QUESTIONS, TOKENS, generated

pytestmark = pytest.mark.slow
Fmstune = Callable[..., Result]
KEY = "a-key-for-tests"


@dataclass
class Server:
    """A server that listens."""

    address: str
    process: forked.Process
    run: Path

    def client(self, **how: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, **how)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        return httpx.post(f"{self.address}{path}", content=json.dumps(body), headers=headers, timeout=60)

    def metric(self, name: str) -> float:
        headers = {"Authorization": f"Bearer {KEY}"}
        text = httpx.get(f"{self.address}/metrics", headers=headers).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def server(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    out = tmp_path_factory.mktemp("server") / "out"
    words = ["serve", tuned, "--port=0", "--max_waiting=24", "--max_new_tokens=200", "--grace=20"]
    with out.open("w") as file:
        env = {**os.environ, "FMSTUNE_API_KEY": KEY}
        process = forked.Process([forked.SCRIPT, *words], env, dict.fromkeys((1, 2), file.fileno()))
    end = time.monotonic() + 60
    while (found := re.search(r" at (http\S+)\n", out.read_text())) is None:
        assert process.poll() is None and time.monotonic() < end, out.read_text()
        time.sleep(0.05)
    yield Server(found[1], process, tuned)
    process.kill()


def chat(client: openai.OpenAI, text: str, **how: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    how = {"model": "tuned", "temperature": 0, "max_tokens": TOKENS, **how}
    return client.chat.completions.create(messages=messages, **how)


def test_two_hundred_requests_of_sixteen_clients_are_all_answered_as_generate_answers(server: Server) -> None:
    expected, texts = generated(server.run, "answers.json"), generated(server.run, "texts.json")
    assert len(set(expected.values()) | set(texts.values())) > 4
    clients = [server.client(max_retries=20) for _ in range(16)]

    def ask(number: int) -> bool:
        client, question = clients[number % 16], QUESTIONS[number % 20]
        if number % 4 == 3:
            made = client.completions.create(model="tuned", prompt=question, temperature=0, max_tokens=TOKENS)
            return made.choices[0].text == texts[question]
        if number % 4 == 2:
            stream = chat(client, question, stream=True)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return said == expected[question]
        return chat(client, question).choices[0].message.content == expected[question]

    with ThreadPoolExecutor(16) as pool:
        right = list(pool.map(ask, range(200)))
    assert right == [True] * 200


def test_a_prompt_is_echoed_with_the_log_probabilities_of_its_tokens(server: Server) -> None:
    client, more = server.client(), {"return_token_ids": True}
    answer = client.completions.create(model="tuned", prompt=QUESTIONS[0], temperature=0, max_tokens=4, extra_body=more)
    told = answer.choices[0].model_dump()
    prompt, ids = told["prompt_token_ids"], told["token_ids"]
    assert len(prompt) == answer.usage.prompt_tokens and len(ids) == answer.usage.completion_tokens
    same = {"model": "tuned", "temperature": 0, "logprobs": 1, "max_tokens": 1}
    stepwise = [client.completions.create(prompt=[*prompt, *ids[:n]], **same).choices[0].logprobs for n in range(3)]
    echoed = client.completions.create(prompt=[*prompt, *ids[:3]], echo=True, **same).choices[0]
    assert echoed.text.startswith(QUESTIONS[0])
    scores = echoed.logprobs.token_logprobs
    assert scores[0] is None and len(scores) == len(prompt) + 3 + 1
    expected = [one.token_logprobs[0] for one in stepwise]
    assert scores[len(prompt) : len(prompt) + 3] == pytest.approx(expected, abs=1e-4)


def test_parity_compares_all_that_the_server_tells(
    server: Server, fmstune: Fmstune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server.run.parent)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    done = fmstune("parity", str(server.run), "--rows=6", f"--endpoint={server.address}")
    assert done.code == 0, done.err
    assert "tuned at http" in done.out and "as training had them; log-probabilities differ by" in done.out
    assert "note" not in done.out
    done = fmstune("parity", str(server.run), "--rows=6", f"--endpoint={server.address}", "--served_model=base")
    assert done.code == 2 and "adapter not applied" in done.err


def test_base_and_tuned_are_two_models_and_the_base_is_untouched(server: Server, fmstune: Fmstune) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tuned", "base"]
    made = client.completions.create(model="base", prompt=QUESTIONS[0], temperature=0, max_tokens=TOKENS)
    words = ("--model", "package:tiny_llama", "--text", QUESTIONS[0], "--only_new_text")
    assert fmstune("generate", *words, "--max_new_tokens", str(TOKENS), "--out_file=b.json").code == 0
    assert made.choices[0].text == json.loads(Path("b.json").read_text())[0]["output"]
    assert made.choices[0].text != generated(server.run, "texts.json")[QUESTIONS[0]]


def test_streams_stops_usage_seeds_and_log_probabilities_are_those_of_the_api(server: Server) -> None:
    client, question = server.client(), QUESTIONS[1]
    whole = chat(client, question)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.choices[0].finish_reason in ("stop", "length")

    chunks = list(chat(client, question, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage

    word = whole.choices[0].message.content.split()[1]
    stopped = chat(client, question, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == whole.choices[0].message.content.partition(word)[0]

    told = chat(client, question, logprobs=True, top_logprobs=3, max_tokens=3).choices[0].logprobs.content
    assert len(told) == 3 and all(one.top_logprobs[0].token == one.token for one in told)
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in told)
    assert "".join(one.token for one in told) == whole.choices[0].message.content[: sum(len(one.token) for one in told)]

    drawn = [chat(client, question, temperature=1.5, seed=seed, n=2).choices for seed in (1, 1, 5)]
    texts = [[choice.message.content for choice in one] for one in drawn]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]

    ids = client.completions.create(model="tuned", prompt=[5, 6, 7], max_tokens=2, temperature=0, logprobs=1)
    assert ids.usage.prompt_tokens == 3 and len(ids.choices[0].logprobs.tokens) <= 2


@pytest.mark.parametrize(
    ("path", "change", "status", "said"),
    [
        ("chat/completions", {"model": "tune"}, 404, "'tune' does not exist; this server has tuned and base; did you"),
        (
            "chat/completions",
            {"temprature": 1},
            400,
            "Unrecognized request argument supplied: temprature; did you mean",
        ),
        ("chat/completions", {"tools": [{"type": "function"}]}, 400, "tools is not supported by this server"),
        ("chat/completions", {"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
        ("chat/completions", {"messages": []}, 400, "messages is empty; give at least one message"),
        (
            "chat/completions",
            {"messages": [{"role": "user"}]},
            400,
            "messages: column 'messages': turn 1 has no content",
        ),
        ("chat/completions", {"max_tokens": 900}, 400, "max_tokens is 900, and this server gives at most 200"),
        ("completions", {"prompt": "late " * 600}, 400, "maximum context length is 512 tokens. The prompt has "),
        ("completions", {"prompt": [99999]}, 400, "token ids must be a list of numbers from 0 to "),
        ("completions", {"prompt": ["a"] * 30}, 400, "30 answers are asked for at once, and the queue holds 24"),
        ("completions", {"prompt": "a\ud800"}, 400, "prompt holds half a character (a lone surrogate) at 1; remove it"),
        ("completions", {"a\ud800": 1}, 400, "Unrecognized request argument supplied: a\\ud800"),
        ("embeddings", {}, 404, "Unknown request URL: POST /v1/embeddings"),
    ],
)
def test_an_error_has_the_shape_of_the_api_and_says_what_to_change(
    server: Server, path: str, change: dict[str, Any], status: int, said: str
) -> None:
    usual = {"prompt": "Hi"} if path == "completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    got = server.post(f"/v1/{path}", {"model": "tuned", **usual, **change})
    assert got.status_code == status
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert said in got.json()["error"]["message"]


def test_the_key_is_needed_and_other_pages_may_not_ask(server: Server) -> None:
    body = {"model": "tuned", "prompt": "Hi", "max_tokens": 1}
    assert server.post("/v1/completions", body, Authorization="Bearer wrong").status_code == 401
    with pytest.raises(openai.AuthenticationError, match="Incorrect or missing API key"):
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong").models.list()
    assert server.post("/v1/completions", body, Origin="http://elsewhere.example").status_code == 403
    assert server.post("/v1/completions", body, Origin=server.address).status_code == 200
    form = httpx.post(
        f"{server.address}/v1/completions", content=json.dumps(body), headers={"Content-Type": "text/plain"}
    )
    assert form.status_code == 415
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}


def test_a_full_queue_refuses_and_who_goes_away_frees_its_places(server: Server) -> None:
    long = {"model": "tuned", "prompt": "The", "max_tokens": 200, "temperature": 1.9, "n": 16, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    before = server.metric("fmstune_cancelled_total")
    with httpx.stream("POST", f"{server.address}/v1/completions", json=long, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert server.metric("fmstune_requests_waiting") >= 9
        refused = server.post("/v1/completions", {**long, "stream": False})
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
    end = time.monotonic() + 20
    while server.metric("fmstune_requests_waiting") + server.metric("fmstune_requests_running"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert server.metric("fmstune_cancelled_total") == before + 1


def test_fields_without_effect_are_named_and_counted(server: Server) -> None:
    got = server.post(
        "/v1/completions", {"model": "tuned", "prompt": "Hi", "max_tokens": 1, "user": "me", "store": True}
    )
    assert got.status_code == 200 and got.headers["X-Ignored-Fields"] == "store, user"
    assert server.metric("fmstune_ignored_fields_total") >= 2


def test_what_clients_send_by_default_is_taken(server: Server) -> None:
    client, turns = server.client(), [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[2]}]}]
    usual: dict[str, Any] = {"model": "tuned", "temperature": 0, "max_completion_tokens": TOKENS}
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "reasoning_effort": "none",
        "verbosity": "medium",
        "stop": None,
        "seed": 7,
        "top_p": 1,
        "user": "me",
        "store": False,
        "metadata": {},
        "service_tier": "auto",
    }
    of_others = {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "max_tokens": TOKENS, "chat_template_kwargs": {}}
    said = client.chat.completions.create(messages=turns, **usual, **neutral, extra_body=of_others).choices[0].message
    assert said.content == generated(server.run, "answers.json")[QUESTIONS[2]]
    # as it came, with the fields that say nothing
    again = client.chat.completions.create(messages=[*turns, said, {"role": "user", "content": "And now?"}], **usual)
    assert again.usage.prompt_tokens > len(turns)
    text: dict[str, Any] = {"frequency_penalty": 0, "presence_penalty": 0, "best_of": 1, "suffix": "", "echo": False}
    assert client.completions.create(model="tuned", prompt="Hi", max_tokens=1, **text).choices
    with pytest.raises(openai.BadRequestError, match="kwargs: the model is asked as it was trained, with"):
        client.chat.completions.create(messages=turns, **usual, extra_body={"chat_template_kwargs": {"a": 1}})


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium")
def test_the_page_shows_base_and_tuned_side_by_side(server: Server, tmp_path: Path) -> None:
    with browser.browser() as page:
        page.open(f"{server.address}/")
        page.width(1000)
        fill = {"key": KEY, "tokens": TOKENS, "text": QUESTIONS[0]}
        for name, value in fill.items():
            page.value(f"document.getElementById('{name}').value = {value!r}")
        page.value("document.getElementById('form').requestSubmit()")
        end = time.monotonic() + 30
        while page.value("document.getElementById('send').disabled"):
            assert time.monotonic() < end
            time.sleep(0.05)
        said = {
            name: page.value(f"document.querySelector('#talk-{name} .assistant').textContent")
            for name in ("tuned", "base")
        }
        assert said["tuned"] == generated(server.run, "answers.json")[QUESTIONS[0]] != said["base"]
        places = [page.value(f"document.getElementById('talk-{name}').getBoundingClientRect().left") for name in said]
        assert places[0] < places[1]
        unnamed = "[...document.querySelectorAll('input, textarea')].filter(one => !one.labels.length).length"
        assert page.value(unnamed) == 0
        assert page.complaints() == []
        assert all(address.startswith((server.address, "data:")) for address in page.requests())
        colours = []
        for scheme in ("light", "dark"):
            page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            colours.append(page.value("getComputedStyle(document.body).backgroundColor"))
        assert colours[0] != colours[1]
        page.width(400)
        assert page.value("document.documentElement.scrollWidth") <= 400
        page.picture(tmp_path / "page.png")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_sigterm_lets_a_running_answer_end_and_takes_no_other(server: Server) -> None:
    body = {"model": "tuned", "prompt": "The", "max_tokens": 120, "temperature": 1.9, "seed": 3, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.process.wait(30) == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.address}/health")


def test_a_port_that_is_taken_is_named_before_a_weight_is_read(fmstune: Fmstune) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = fmstune("serve", "package:tiny_llama", f"--port={port}")
    assert done.code == 2
    assert f"--port: cannot listen at 127.0.0.1:{port} (Address already in use); choose another" in done.err
