"""`fmstune generate` by hand: what was tuned answers, from its run folder, and elsewhere."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.config import requests
from fmstune.config.requests import Generation
from fmstune.files import resolve
from tests import ROOT, small
from tests.conftest import Result
from tests.fixtures import forked
from tests.runs.test_model_card import python_of

Fmstune = Callable[..., Result]
QUICK = ("training.max_steps=2", "data.max_rows=32", "evaluation=none", "training.save_strategy=no")
TEXTS = ["The <a> driver", "### Text: I was charged twice for the", "Hello, my new lamp arrived and it", "Thanks for"]


def results(name: str = "inference_result.json") -> list[dict[str, str]]:
    return list(json.loads(Path(name).read_text(encoding="utf-8")))


def texts_file(tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return "texts.txt"


def test_a_text_is_continued_and_written_as_the_early_tool_did(fmstune: Fmstune) -> None:
    words = ("--model", "package:tiny_llama", "--text", "Thanks for", "--max_new_tokens", "8", "--out_file", "r.json")
    done = fmstune("generate", *words)
    assert done.code == 0, done.err
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/fmstune/assets/tiny_llama")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "src/fmstune/assets/tiny_llama", dtype=torch.float32)
    ids = model.generate(**tokenizer("Thanks for", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    expected = [{"input": "Thanks for", "output": tokenizer.decode(ids[0], skip_special_tokens=True)}]
    assert Path("r.json").read_text() == json.dumps(expected, indent=4) + "\n"
    assert done.out.startswith(f"{expected[0]['output']}\nwrote r.json: 1 answer in ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("lora", "tiny_llama"),
        ("prompt_tuning", "tiny_llama"),
        ("full", "tiny_gpt_bigcode"),
        pytest.param("full", "tiny_llama", marks=pytest.mark.soak),
        pytest.param("lora", "tiny_gpt_bigcode", marks=pytest.mark.soak),
        pytest.param("prompt_tuning", "tiny_gpt_bigcode", marks=pytest.mark.soak),
    ],
)
def test_what_was_tuned_answers_from_its_run_and_in_batches_as_one_by_one(
    method: str, name: str, fmstune: Fmstune, tmp_path: Path
) -> None:
    changes = ("training.learning_rate=1e-2", "model.special_tokens={extra_special_tokens: ['<a>']}")
    assert fmstune(f"peft={method}", f"model={name}", *QUICK, *changes, "output_dir=run").code == 0
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    assert tokenizer.convert_tokens_to_ids("<a>") == len(tokenizer) - 1
    words = ("generate", "--model", "run", "--text_file", texts_file(tmp_path))
    assert fmstune(*words).code == 0
    together = results()
    assert [one["input"] for one in together] == TEXTS
    assert all(one["output"].startswith(one["input"]) for one in together)
    assert fmstune(*words, "--batch_size", "1", "--stream").code == 0
    assert results() == together
    assert fmstune("generate", "--model", "run/model", "--text", TEXTS[0], "--only_new_text").code == 0
    assert TEXTS[0] + results()[0]["output"] == together[0]["output"]


@pytest.mark.slow
def test_an_adapter_follows_its_base_and_takes_no_other(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    words = (
        "peft=lora",
        "model=causal_lm",
        f"model.path={base}",
        "model.special_tokens={extra_special_tokens: ['<a>']}",
    )
    assert fmstune(*words, *QUICK, "training.save_strategy=epoch", "output_dir=run").code == 0
    saved = {path: path.read_bytes() for path in Path("run/model").iterdir()}
    modes = {file.stat().st_mode for file in Path("run").glob("*/adapter_*")}
    assert len(modes) == 1, "who may read the settings may read the weights"
    assert Path("run/checkpoint-2/base.json").read_bytes() == Path("run/model/base.json").read_bytes()
    ask = ("generate", "--model", "run", "--text", "thank you")
    assert fmstune(*ask).code == 0
    before = results()

    base.rename(tmp_path / "moved")
    gone = fmstune(*ask)
    assert gone.code == 2
    assert "pass --base_model_name_or_path with the folder or hub id of its base" in gone.err
    assert fmstune(*ask, "--base_model_name_or_path", "moved").code == 0
    assert results() == before

    other = tmp_path / "other"
    shutil.copytree(tmp_path / "moved", other)
    file = other / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))
    refused = fmstune(*ask, "--base_model_name_or_path", "other")
    assert refused.code == 2
    assert "rms_norm_eps is 0.5 and not 1e-06" in refused.err
    assert fmstune(*ask, "--base_model_name_or_path", "other", "--force").code == 0
    assert {path: path.read_bytes() for path in Path("run/model").iterdir()} == saved


def test_a_place_in_the_home_folder_is_found_behind_an_equals_sign_too(
    fmstune: Fmstune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    small.save(tmp_path / "base")
    done = fmstune("generate", "--model=~/base", "--text", "hi", "--out_file=~/r.json")
    assert done.code == 0, done.err
    assert results("r.json")[0]["input"] == "hi"


def test_a_model_without_a_pad_token_or_room_for_one_answers_in_batches(fmstune: Fmstune, tmp_path: Path) -> None:
    small.save(tmp_path / "base", architecture={**small.LLAMA, "vocab_size": 300})
    words = ("generate", "--model", "./base", "--text_file", texts_file(tmp_path))
    found = []
    for size in ("4", "1"):
        done = fmstune(*words, "--batch_size", size)
        assert done.code == 0, done.err
        found.append(results())
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_model_that_was_tuned_on_a_format_is_asked_in_its_words(fmstune: Fmstune, rows_file: Any) -> None:
    rows_file([{"Tweet text": "late again"}, {"Tweet text": "thanks", "text_label": "no complaint"}], "rows.jsonl")
    words = ("generate", "--model", "package:tiny_llama", "--format", "twitter_complaints", "--max_new_tokens", "4")
    assert fmstune(*words, "--rows_file", "rows.jsonl").code == 0
    asked = [one["input"] for one in results()]
    assert asked == ["### Text: late again\n\n### Label:", "### Text: thanks\n\n### Label:"]
    assert fmstune(*words, "--text", "late again").code == 0
    assert results()[0]["input"] == asked[0]
    assert fmstune(*words[:3], "--format", "input_output", "data.format.separator=' -> '", "--text", "x").code == 0
    assert results()[0]["input"].startswith("x ->")


@pytest.mark.slow
def test_a_format_of_the_users_own_asks_in_its_words(
    fmstune: Fmstune, rows_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from fmstune.data.formats import Segment

def stars(row, *, text_field, response_template):
    return [Segment(f"Review: {row['review']} Stars:", trained=False), Segment(" 5", trained=True)]
"""
    (tmp_path / "own_reviews.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_conf" / "data").mkdir(parents=True)
    (tmp_path / "my_conf" / "data" / "reviews.yaml").write_text(
        "defaults: [text]\nformat:\n  _target_: own_reviews.stars\n"
    )
    rows_file([{"review": "Good."}], "rows.jsonl")
    words = ("generate", "--model", "package:tiny_llama", "--rows_file", "rows.jsonl", "--config-dir", "my_conf")
    refused = fmstune(*words, "--format", "reviews")
    assert refused.code == 2 and "--trust own_reviews" in refused.err
    done = fmstune(*words, "--format", "reviews", "--trust", "own_reviews")
    assert done.code == 0, done.err
    assert results()[0]["input"] == "Review: Good. Stars:"


@pytest.mark.slow
def test_answers_in_lines_go_on_where_they_stopped(fmstune: Fmstune, tmp_path: Path) -> None:
    words = ("generate", "--model", "package:tiny_llama", "--text_file", texts_file(tmp_path), "--out_file")
    assert fmstune(*words, "whole.jsonl").code == 0
    whole = Path("whole.jsonl").read_bytes()
    for cut in (0, 5, whole.index(b"\n") + 1, len(whole) - 3, len(whole)):
        Path("part.jsonl").write_bytes(whole[:cut])
        assert fmstune(*words, "part.jsonl", "--resume").code == 0
        assert Path("part.jsonl").read_bytes() == whole
    assert [json.loads(line)["input"] for line in whole.splitlines()] == TEXTS


def test_standard_input_gives_prompts_and_the_terminal_shows_the_answers(
    fmstune: Fmstune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS[:2]).encode())))
    done = fmstune("generate", "--model", "package:tiny_llama", "--text_file", "-", "--stream")
    assert done.code == 0, done.err
    shown = "\n".join(one["output"] for one in results())
    assert done.out.startswith(shown + "\n")


@pytest.mark.slow
def test_draws_follow_the_seed(fmstune: Fmstune) -> None:
    words = (
        "generate",
        "--model",
        "package:tiny_llama",
        "--text",
        "The",
        "--do_sample",
        "--temperature",
        "2",
        "--seed",
    )
    found = []
    for seed in ("1", "1", "2"):
        assert fmstune(*words, seed).code == 0
        found.append(results())
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_the_early_tools_script_takes_its_flags(tmp_path: Path) -> None:
    script = [sys.executable, "-P", str(ROOT / "scripts" / "run_inference.py")]
    flags = ["--model", "package:tiny_llama", "--text_file", texts_file(tmp_path), "--max_new_tokens", "5"]
    done = forked.run([*script, *flags, "--out_file", "r.json"])
    assert done.returncode == 0, done.stderr
    assert [one["input"] for one in results("r.json")] == TEXTS
    listed = forked.run([*script, "--help"]).stdout
    assert "--base_model_name_or_path" in listed
    refused = forked.run([*script, *flags, "--use_flash_attn", "--nosuch"]).stderr
    assert "generate has no flag --nosuch" in refused and "flash" not in refused


@pytest.mark.slow
def test_generating_does_not_wait_for_what_trains_to_be_imported(tmp_path: Path) -> None:
    requests.write_request(Generation(model="package:tiny_llama", text="Hi"), tmp_path / "request.json")
    code = (
        "import sys\nfrom fmstune import runner\n"
        "runner.main(['request.json', '--verb=generate'])\nprint([m for m in ('trl',) if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_run_on_chat_rows_keeps_its_template_and_is_asked_with_its_variables(
    fmstune: Fmstune, rows_file: Any
) -> None:
    template = "{{ mood }}! " + Path(resolve("package:chatml.jinja")).read_text(encoding="utf-8")
    Path("mood.jinja").write_text(template, encoding="utf-8")
    turns = [{"role": "user", "content": "late"}, {"role": "assistant", "content": "so sorry"}]
    words = ("data=chat", f"data.train={rows_file([{'messages': turns}] * 2)}", "data.format.template_kwargs.mood=kind")
    once = ("training.max_steps=1", "training.save_strategy=no", "evaluation=none")
    run = fmstune("model=tiny_llama", "model.chat_template=mood.jinja", "peft=lora", *words, *once)
    assert run.code == 0, run.err
    assert fmstune("merge", "--model", str(run.folder), "--out", "merged").code == 0
    assert fmstune("merge", "--model", str(run.folder), "--export", "vllm_lora", "--out", "exported").code == 0
    for folder in (run.folder / "model", Path("merged"), Path("exported")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == template
        assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template_kwargs"] == {"mood": "kind"}
    assert "**{'mood': 'kind'}" in python_of(Path("merged/README.md").read_text(encoding="utf-8"))
    example = python_of((run.folder / "model/README.md").read_text(encoding="utf-8"))
    assert "return_tensors=\"pt\", **{'mood': 'kind'}" in example
    exec(example.replace('folder = "."', f"folder = {str(run.folder / 'model')!r}"), {})
    asked = ("--format", "chat", "--text", "late", "--max_new_tokens", "2")
    for place, more, mood in (
        (run.folder, (), "kind"),
        (run.folder / "model", (), "kind"),
        (run.folder, ("data.format.template_kwargs.mood=cross",), "cross"),
        (Path("merged"), (), "kind"),
        (Path("exported"), (), "kind"),
        (Path("merged"), ("data.format.template_kwargs.mood=calm",), "calm"),
    ):
        done = fmstune("generate", "--model", str(place), *asked, *more)
        assert done.code == 0, done.err
        assert done.out.startswith(f"{mood}!<|im_start|>user\nlate<|im_end|>\n<|im_start|>assistant\n"), done.out
        assert ("data.format.template_kwargs is {'mood': 'kind'}, as in" in done.err) == (mood == "kind")
    bare = fmstune("generate", "--model", str(run.folder), "--text", "late", "--max_new_tokens", "2")
    assert bare.out.startswith("late"), bare.err
    assert "note: the model is asked with the bare text; --format chat asks in the words of its training" in bare.err
    words = ("data=chat", f"data.eval={rows_file([{'messages': turns}], 'held_out.jsonl')}")
    scored = fmstune("evaluate", "--model", str(run.folder), "--no_base", *words)
    assert scored.code == 0, scored.err
    assert "note: data.format.template_kwargs is {'mood': 'kind'}, as in" in scored.err
