"""`fmstune evaluate` by hand: base against tuned on the held-out rows; and the real harness says the same."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmstune.config import requests
from tests import ROOT, small
from tests.conftest import Result

Fmstune = Callable[..., Result]
HELD_OUT = ROOT / "src/fmstune/assets/complaints/held_out.jsonl"
TRAIN = ("training.max_steps=6", "training.learning_rate=1e-2", "training.save_strategy=no", "data.max_rows=64")
ROWS = 24
TASK = """
task: own_complaints
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "### Text: {{{{text}}}}\\n\\n### Label:"
doc_to_choice: [complaint, no complaint]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
GENERATING = """
task: own_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "### Text: {{{{text}}}}\\n\\n### Label:"
doc_to_target: label
generation_kwargs: {{until: ["###"], max_gen_toks: 4}}
filter_list: [{{name: none, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""


def read(name: str) -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_ranking_and_the_harness_agree_on_an_adapter_and_its_base(fmstune: Fmstune, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    (tmp_path / "held.jsonl").write_text("".join(lines), encoding="utf-8")
    sampled = ("training.eval_strategy=epoch", "evaluation.sample=4", "evaluation.base=false", "data.eval=held.jsonl")
    done = fmstune("peft=lora", *TRAIN, *sampled, "evaluation.max_rows=2", "output_dir=run")
    assert done.code == 0, done.err
    logs = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for measure in ("eval_exact_match", "eval_accuracy"):
        assert [log[measure] * 4 % 1 for log in logs if measure in log] == [0.0, 0.0]
    assert {"accuracy", "micro_f1", "macro_f1"} <= set(read("run/summary.json")["tuned"])

    ranked = fmstune("evaluate", "--model", "run", "--method", "rank")
    assert ranked.code == 0, ranked.err
    own = read("evaluation.json")
    assert own["rows"] == ROWS and own["labels"] == ["complaint", "no complaint"]
    assert own["data"] == yaml.safe_load(Path("run/job.yaml").read_text())["data"]
    assert own["tuned"]["eval_loss"]["value"] < own["base"]["eval_loss"]["value"]
    assert own["change"]["accuracy"]["value"] == pytest.approx(
        own["tuned"]["accuracy"]["value"] - own["base"]["accuracy"]["value"]
    )
    assert sum(one["support"] for one in own["classes"]["base"].values()) == ROWS
    assert Path("evaluation.md").read_text().startswith("| 24 rows, by rank | base | tuned | change |")

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(TASK.format(rows=tmp_path / "held.jsonl"), encoding="utf-8")
    harness = ("evaluate", "harness", "--model", "run", "--tasks", "own_complaints", "--include_path", "tasks")
    done = fmstune(*harness)
    assert done.code == 0, done.err
    theirs = read("harness.json")
    for name in ("base", "tuned"):
        assert theirs[name]["results"]["own_complaints"]["acc,none"] == own[name]["accuracy"]["value"]


def test_tasks_of_ones_own_are_found_without_reading_those_of_the_harness(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from fmstune.evaluation import harness

    (tmp_path / "own.yaml").write_text(TASK.format(rows=tmp_path / "held.jsonl"), encoding="utf-8")
    request = requests.Harness(model="run", tasks=("own_complaints",), include_path=str(tmp_path))
    assert harness._task_manager(request).all_tasks == ["own_complaints"]


@pytest.mark.slow
def test_a_model_of_another_vocabulary_is_no_base_unless_forced(fmstune: Fmstune, tmp_path: Path) -> None:
    small.save(tmp_path / "base")
    words = ("evaluate", "--model", "package:tiny_llama", "--base_model_name_or_path", "./base", "data=complaints")
    refused = fmstune(*words, "--max_rows", "2")
    assert refused.code == 2
    assert "--base_model_name_or_path: ./base has another vocabulary than --model, first at token 0 (" in refused.err
    assert fmstune(*words, "--max_rows", "2", "--max_new_tokens", "2", "--force").code == 0
    assert read("evaluation.json")["base"]["eval_loss"]["value"] > 0


def test_the_missing_harness_is_named_with_the_command_that_installs_it(
    fmstune: Fmstune, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python finds no module that is None here
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = fmstune("evaluate", "harness", "--model", "package:tiny_llama", "--tasks", "boolq")
    assert (done.code, done.out) == (2, "")
    assert "evaluate harness needs lm-evaluation-harness; pip install 'fmstune[eval]'" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), [("full", "tiny_gpt_bigcode"), ("prompt_tuning", "tiny_llama")])
def test_what_is_tuned_is_compared_with_its_base_and_answers_the_harness_alike(
    method: str, name: str, fmstune: Fmstune, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    changes = ("model.special_tokens={extra_special_tokens: ['<a>']}", "evaluation=none", "output_dir=run")
    assert fmstune(f"peft={method}", f"model={name}", *TRAIN, *changes).code == 0
    words = ("evaluate", "--model", "run", "--max_rows", "8", "--max_new_tokens", "4")
    done = fmstune(*words)
    assert done.code == 0, done.err
    one = read("evaluation.json")
    assert (one["rows"], one["rows_left_out"], one["rows_read"]) == (8, 112, 120)
    assert one["tuned"]["eval_loss"]["value"] != one["base"]["eval_loss"]["value"]
    assert one["answers_without_label"]["tuned"] == sum(
        row["tuned"].casefold() not in ("complaint", "no complaint") for row in one["answers"]
    )
    # other rows, the same base: that of the run, and not the model of a composed job
    done = fmstune(*words, "data=complaints")
    assert done.code == 0, done.err
    again = read("evaluation.json")
    assert again["base_model"] == one["base_model"] and Path(one["base_model"]).name == name
    assert again["base"] == one["base"]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(GENERATING.format(rows=HELD_OUT), encoding="utf-8")
    harness = ("evaluate", "harness", "--model", "run", "--tasks", "own_answers", "--include_path", "tasks")
    done = fmstune(*harness, "--limit", "8")
    assert done.code == 0, done.err
    assert "git" not in done.err
    for which in ("base", "tuned"):
        found = read("harness.json")[which]["results"]["own_answers"]["exact_match,none"]
        assert found == one[which]["exact_match"]["value"]
