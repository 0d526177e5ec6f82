"""An objective of a user's own: a reward head on pairs, from a folder of its own and without a change in src/."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.config import freeze
from fmstune.errors import UserError
from fmstune.training.objectives.base import load_objective
from tests.config.test_freeze import tree
from tests.conftest import Result
from tests.project.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "extending.md"
FILES = ("reward.py", "preferences.py", "my_conf/objective/reward.yaml", "my_conf/data/pairs.yaml")
"""The objective as the page shows it; its rows are too few to learn from."""
REWARD = (
    *("--config-dir=my_conf", "--trust=reward", "--trust=preferences", "data.eval_fraction=0.25"),
    *("objective=reward", "data=pairs", "peft=full", "launcher.threads=1", "output_dir=run"),
    *("training.learning_rate=1e-3", "training.per_device_train_batch_size=8"),
    *("training.gradient_accumulation_steps=1", "training.eval_strategy=epoch"),
)


@pytest.fixture
def own_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an objective, its format, its groups and its rows: the polite answer is chosen."""
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = {block.before.rpartition("`:")[0].rpartition("`")[2]: block.text for block in blocks(PAGE)}
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(shown[name])
    draw = random.Random(0)
    rows = []
    for number in range(96):
        polite, rude = draw.choice(["thank you", "with pleasure"]), draw.choice(["no", "go away"])
        rows.append({"question": f"Can you help with task {number}?", "chosen": polite, "rejected": rude})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_an_objective_of_ones_own_is_checked_trained_saved_and_resumed(
    own_objective: Path, fmstune: Callable[..., Result]
) -> None:
    run = fmstune(*REWARD, "training.num_train_epochs=2")
    assert run.code == 0, run.err
    base, tuned = run.summary["base"], run.summary["tuned"]
    assert base["accuracy"] < 0.8
    assert tuned["accuracy"] >= 0.9 and tuned["margin"] > base["margin"] + 0.5
    assert tuned["eval_loss"] < base["eval_loss"]
    assert tuned["rows"] == 24
    assert "accuracy of pairs" in run.out
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    steps = run.summary["steps"]
    more = fmstune(
        *(word for word in REWARD if word != "output_dir=run"),
        "output_dir=more",
        "training.num_train_epochs=3",
        f"training.resume=run/checkpoint-{steps}",
    )
    assert more.code == 0, more.err
    assert (more.summary["steps"], more.summary["steps_here"]) == (steps * 3 // 2, steps // 2)


def test_an_objective_outside_fmstune_must_be_trusted() -> None:
    own = tree(objective={"_target_": "reward.Reward", "config_class": "trl.RewardConfig"})
    with pytest.raises(UserError, match=r"objective\._target_: .* if you trust it, add --trust reward"):
        freeze.freeze(own)


def test_training_takes_the_fields_of_the_class_that_the_objective_names() -> None:
    own = tree(
        objective={"_target_": "mine.Reward", "config_class": "trl.RewardConfig"},
        training={"center_rewards_coefficient": "0.1"},
    )
    job = freeze.freeze(own, trusted=["mine"]).job
    assert job.training == {"center_rewards_coefficient": 0.1}
    with pytest.raises(UserError, match=r"training\.packing: unknown field of trl\.RewardConfig"):
        freeze.freeze({**own, "training": {"packing": True}}, trusted=["mine"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_class": "trl.NoConfig"}, "objective.config_class: the installed trl has no configuration class"),
        ({"metrics": {"margin": {"label": "m"}}}, "objective.metrics.margin must give label and where"),
        (
            {"metrics": {"margin": {"label": "m", "where": ["here"]}}},
            "objective.metrics.margin.where must list some of",
        ),
        (
            {"metrics": {"margin": {"label": "m", "where": ["table"], "better": "up"}}},
            "objective.metrics.margin.better must be minimize, maximize or null, got 'up'",
        ),
    ],
)
def test_what_is_wrong_with_an_objective_is_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        freeze.freeze(tree(objective={"_target_": "mine.Reward", **changes}), trusted=["mine"])
    assert str(caught.value).startswith(message)


def test_a_class_that_is_no_objective_is_refused() -> None:
    job = freeze.freeze(tree(objective={"_target_": "json.JSONDecoder"}), trusted=["json"]).job
    with pytest.raises(UserError, match=r"objective\._target_: json\.JSONDecoder must be a class that extends"):
        load_objective(job)
