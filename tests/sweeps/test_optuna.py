"""A search by Optuna: what it draws from, what is checked before it, and a real one that fails, ends and goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fmstune.config.overrides import parse_overrides
from fmstune.errors import UserError
from fmstune.sweeps import optuna as search
from tests.conftest import Result

Run = Callable[..., Result]


def drawn_from(word: str) -> Any:
    pytest.importorskip("optuna")
    return search.distribution(OverridesParser.create().parse_override(word))


@pytest.mark.parametrize(
    ("word", "kind", "fields"),
    [
        ("a=interval(0.0,1.0)", "FloatDistribution", {"low": 0.0, "high": 1.0, "log": False}),
        ("a=tag(log,interval(1e-5,1e-3))", "FloatDistribution", {"low": 1e-5, "high": 1e-3, "log": True}),
        ("a=interval(4,64)", "FloatDistribution", {"low": 4.0, "high": 64.0}),
        ("a=int(interval(4,64))", "IntDistribution", {"low": 4, "high": 64}),
        ("a=range(4,17,4)", "IntDistribution", {"low": 4, "high": 16, "step": 4}),
        ("a=range(0.0,0.5,0.25)", "FloatDistribution", {"low": 0.0, "high": 0.25, "step": 0.25}),
        ("a=1e-4,null,x", "CategoricalDistribution", {"choices": ("0.0001", "null", "x")}),
        ("++peft=choice(lora,full)", "CategoricalDistribution", {"choices": ("lora", "full")}),
    ],
)
def test_what_a_field_is_drawn_from(word: str, kind: str, fields: dict[str, object]) -> None:
    found = drawn_from(word)
    assert type(found).__name__ == kind
    assert {name: getattr(found, name) for name in fields} == fields


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"a=interval\(2,1\) cannot be searched"):
        drawn_from("a=interval(2,1)")


def test_each_end_and_each_choice_is_checked_once_before_the_search() -> None:
    words = parse_overrides(["++a=tag(log,interval(1e-5,1e-3))", "peft=lora,full,ia3", "++b=range(1,9)", "seed=1"])
    found = search.samples(words, frozenset(("a", "peft", "b")))
    assert [[one.input_line for one in sample] for sample in found] == [
        ["++a=1e-05", "peft=lora", "++b=1", "seed=1"],
        ["++a=0.001", "peft=full", "++b=8", "seed=1"],
        ["++a=0.001", "peft=ia3", "++b=8", "seed=1"],
    ]


@pytest.mark.sampled(11)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("training.learning_rate=interval(1e-4,11.0)",),
            "training.learning_rate must be above 0 and below 10, got 11",
        ),
        (("training.learning_rate=interval(1e-4,1e-3)", "compare_by=tuned.f1"), "compare_by: tuned.f1 is not a number"),
        (("peft=lora",), "hydra/sweeper=optuna has nothing to search; give a field an interval or several values"),
        (("evaluation=none,held_out",), "compare_by must be given: the points of this search would be compared by"),
        (("seed=1,2", "hydra.sweeper.sampler=TPSampler"), "TPSampler is not a class of optuna.samplers; did you mean"),
        (
            ("seed=1,2", "hydra.sweeper.pruner=MedianPruner", "training.eval_strategy=no"),
            "hydra.sweeper.pruner=MedianPruner looks at points at each evaluation; set training.eval_strategy=steps",
        ),
        (
            ("seed=1,2", "hydra.sweeper.pruner=MedanPruner", "training.eval_strategy=epoch"),
            "hydra.sweeper.pruner: MedanPruner is not a class of optuna.pruners; did you mean 'MedianPruner'?",
        ),
        (
            ("seed=1,2", "hydra.sweeper.pruner=ThresholdPruner", "training.eval_strategy=epoch"),
            "hydra.sweeper.pruner_fields: ThresholdPruner cannot be made of them (Either",
        ),
        (
            ("seed=1,2", "hydra.sweeper.pruner_fields={min_resource: 2}", "training.eval_strategy=epoch"),
            "hydra.sweeper.pruner_fields: no pruner takes them; set hydra.sweeper.pruner",
        ),
        (
            ("seed=1,2", "hydra.sweeper.storage=postgresql://me:secret@host/x"),
            "hydra.sweeper.storage holds a password, and the sweep's folder keeps the command",
        ),
        (("seed=1,2", "hydra.sweeper.storage=foo://x"), "hydra.sweeper.storage: foo://x cannot be used as Optuna's"),
    ],
)
def test_a_search_that_cannot_go_well_is_refused_and_leaves_nothing(
    fmstune: Run, words: tuple[str, ...], says: str
) -> None:
    pytest.importorskip("optuna")
    done = fmstune("-m", "hydra/sweeper=optuna", "output_dir=sweep", *words)
    assert done.code == 2
    assert says in done.err
    assert not Path("sweep").exists()


def test_a_search_without_a_sweep_and_an_interval_without_a_search_say_what_to_add(fmstune: Run) -> None:
    pytest.importorskip("optuna")
    done = fmstune("hydra/sweeper=optuna", "seed=1,2")
    assert "hydra/sweeper=optuna chooses the points of a sweep; add -m" in done.err
    done = fmstune("-m", "seed=interval(1,2)", "output_dir=sweep")
    assert "an interval is searched with hydra/sweeper=optuna" in done.err
    assert not Path("sweep").exists()


SMALL = (
    "peft=lora",
    "training.max_steps=1",
    "training.gradient_accumulation_steps=1",
    "training.save_strategy=no",
    "data=text",
    'data.response_template="\\n### Label:"',
    "data.eval_fraction=0.25",
    "data.eval=null",
    "evaluation.max_new_tokens=1",
    "evaluation.base=false",
)


@pytest.mark.slow
def test_a_failed_trial_does_not_end_the_search_which_goes_on_from_its_storage(fmstune: Run) -> None:
    pytest.importorskip("optuna")
    row = '{"output": "### Text: late\\n\\n### Label: complaint"}\n'
    Path("good.jsonl").write_text(row * 8)
    Path("bad.jsonl").write_text('{"output": "no template here"}\n' * 8)
    searched = ("training.learning_rate=tag(log,interval(1e-4,1e-1))", "data.train=choice(good.jsonl,bad.jsonl)")
    done = fmstune("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", *searched, *SMALL, "output_dir=sweep")
    assert done.code == 2
    first = json.loads(Path("sweep/sweep.json").read_text())
    assert [point["number"] for point in first] == [0, 1, 2, 3]
    statuses = [point["status"] for point in first]
    assert 0 < statuses.count("failed") < 4
    assert f"{statuses.count('failed')} of 4 points failed" in done.err
    states = {"finished": "COMPLETE", "failed": "FAIL"}
    assert [trial.state.name for trial in trials()] == [states[status] for status in statuses]
    values = [point["metrics"].get("tuned.eval_loss") for point in first]
    assert [trial.value for trial in trials()] == values
    # killed in the midst: one that the study has asked for, and heard nothing of
    study = optuna_study()
    study.ask(trials()[0].distributions)
    again = fmstune("-m", "--resume", "sweep", "hydra.sweeper.n_trials=5")
    assert again.out.count("fmstune: run folder") == 0 and again.err.count("fmstune: run folder") == 1
    assert "point  tuned.eval_loss" in again.out
    assert [trial.state.is_finished() for trial in trials()] == [True] * 5
    whole = json.loads(Path("sweep/sweep.json").read_text())
    assert [point["number"] for point in whole] == [0, 1, 2, 3, 4]
    assert whole[:4] == first
    assert len({trial.params["training.learning_rate"] for trial in trials()}) == 5
    other = fmstune("-m", "hydra/sweeper=optuna", "seed=1,2", *SMALL, "data.train=good.jsonl", "output_dir=sweep")
    assert "holds a study 'fmstune' that searches otherwise" in other.err
    assert Path("sweep/optuna.db").exists()


def optuna_study() -> Any:
    import optuna

    return optuna.load_study(study_name="fmstune", storage="sqlite:///sweep/optuna.db")


def trials() -> list[Any]:
    return list(optuna_study().trials)
