"""What runs differ in, which belong together, and whether the best is ahead by more than noise."""

from pathlib import Path
from typing import Any

import pytest

from fmstune.errors import UserError
from fmstune.runs.report import ranking
from fmstune.runs.report.ranking import Column, Group, Metric
from fmstune.runs.report.run_data import Run

LESS = Metric("tuned.eval_loss", smaller=True)


def run(job: dict[str, Any], loss: float | None = None, words: tuple[str, ...] = ()) -> Run:
    summary = {} if loss is None else {"status": "finished", "tuned": {"eval_loss": loss}}
    return Run(Path("run"), job, summary, [], {}, {}, list(words), [])


def test_settings_are_what_the_jobs_differ_in_seed_and_folder_aside() -> None:
    runs = [
        run({"seed": n, "output_dir": str(n), "training": {"learning_rate": rate}}) for n, rate in ((1, 0.1), (2, 1))
    ]
    assert ranking.differing_columns(runs) == [Column("training.learning_rate", (0.1, 1))]


def test_fields_that_change_together_are_one_setting() -> None:
    full, lora = {"_target_": "full"}, {"_target_": "peft.LoraConfig", "r": 8}
    runs = [run({"peft": full, "rate": 1}), run({"peft": lora, "rate": 1}), run({"peft": lora, "rate": 2})]
    assert [column.name for column in ranking.differing_columns(runs)] == ["peft._target_", "rate"]


def test_words_that_tell_all_differences_name_the_settings() -> None:
    jobs = [{"peft": {"_target_": "full"}}, {"peft": {"_target_": "peft.LoraConfig", "r": 8}}]
    runs = [run(job, words=(f"peft={name}", "-m")) for job, name in zip(jobs, ("full", "lora"), strict=True)]
    assert ranking.differing_columns(runs) == [Column("peft", ("full", "lora"))]


def test_two_intervals_of_a_search_are_two_settings_though_every_run_has_values_of_its_own() -> None:
    jobs = [{"a": 0.1, "b": 7}, {"a": 0.2, "b": 3}, {"a": 0.3, "b": 5}]
    runs = [run(job, words=tuple(f"{name}={value}" for name, value in job.items())) for job in jobs]
    assert ranking.differing_columns(runs) == [Column("a", (0.1, 0.2, 0.3)), Column("b", (7, 3, 5))]


def test_words_that_miss_a_difference_are_not_relied_upon() -> None:
    """Such as a file of the user's that was changed between two runs."""
    jobs = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 2}]
    runs = [run(job, words=(f"a={job['a']}",)) for job in jobs]
    assert [column.name for column in ranking.differing_columns(runs)] == ["a", "b"]


def test_runs_that_differ_in_the_seed_alone_are_grouped_and_the_best_group_is_first() -> None:
    runs = [
        run({"seed": seed, "a": a}, loss) for seed, a, loss in ((1, 1, 4.0), (2, 1, 2.0), (1, 2, 1.0), (2, 2, None))
    ]
    best, second = ranking.group_runs(runs, ranking.differing_columns(runs), LESS)
    assert (best.values, best.scores, best.mean, best.spread) == ((2,), (1.0,), 1.0, None)
    assert (second.values, second.mean) == ((1,), 3.0)
    assert second.spread == pytest.approx(2**0.5)
    assert [one.figure(LESS.name) for one in second.runs] == [2.0, 4.0]


def test_more_can_be_better_and_runs_without_a_figure_are_last() -> None:
    runs = [run({"a": 1}), run({"a": 2}, 1.0), run({"a": 3}, 2.0)]
    more = Metric("tuned.eval_loss", smaller=False)
    assert [group.values for group in ranking.group_runs(runs, ranking.differing_columns(runs), more)] == [
        (3,),
        (2,),
        (1,),
    ]


@pytest.mark.parametrize(
    ("best", "second", "says"),
    [
        ((1.0, 1.1), (3.0, 3.1), "It leads the second by 2, more than the seeds explain"),
        ((1.0, 2.0), (1.2, 2.2), "which may be noise"),
        ((1.0, 2.0), (2.0, 1.0), "The second is just as good."),
        ((1.0,), (3.0,), "Two seeds of each setting would tell whether that is noise"),
    ],
)
def test_the_lead_is_compared_with_the_noise(best: tuple[float, ...], second: tuple[float, ...], says: str) -> None:
    assert says in ranking.verdict(Group((), (), best), Group((), (), second))


def test_a_figure_that_no_run_has_is_refused_with_one_that_is_near() -> None:
    with pytest.raises(UserError, match=r"--metric tuned.eval_los: .* did you mean 'tuned.eval_loss'\?"):
        ranking.choose_metric([run({}, 1.0)], "tuned.eval_los", None)


def test_the_train_loss_counts_where_nothing_was_held_out_and_the_name_tells_the_direction() -> None:
    finished = Run(Path("run"), {}, {"status": "finished", "train_loss": 1.0, "steps": 3}, [], {}, {}, [], [])
    assert ranking.choose_metric([finished], None, None) == Metric("train_loss", smaller=True)
    assert ranking.choose_metric([finished], "steps", None) == Metric("steps", smaller=False)
    assert ranking.choose_metric([finished], "steps", "minimize") == Metric("steps", smaller=True)


def test_compare_by_of_the_jobs_orders_them_where_no_other_figure_is_asked_for() -> None:
    summary = {"status": "finished", "train_loss": 1.0, "steps": 3}
    job = {"compare_by": "steps", "direction": "minimize"}
    jobs = [job, {**job, "direction": "maximize"}, {"compare_by": "train_loss"}]
    one, other, another = (Run(Path("run"), job, summary, [], {}, {}, [], []) for job in jobs)
    assert ranking.choose_metric([one, one], None, None) == Metric("steps", smaller=True)
    assert ranking.choose_metric([one], "steps", "maximize") == Metric("steps", smaller=False)
    assert ranking.choose_metric([one], "train_loss", None) == Metric("train_loss", smaller=True)
    assert ranking.choose_metric([one, other], None, None) == Metric("steps", smaller=False)
    assert ranking.choose_metric([one, another], None, None) == Metric("train_loss", smaller=True)


@pytest.mark.parametrize("odd", [[1], {"a": 1}, 3, "up", True])
def test_a_job_whose_direction_was_edited_is_ranked_as_its_metric_is(odd: object) -> None:
    edited = run({"compare_by": "train_loss", "direction": odd}, 1.0)
    assert ranking.choose_metric([edited, edited], None, None) == Metric("train_loss", smaller=True)
