"""What a sweep's folder says of its points, and the table of them."""

import dataclasses
import json
from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.runs import sweep_folder
from fmstune.runs.sweep_folder import Point

GOOD = Point(
    0, "0-seed=1", ["seed=1"], "finished", 0, False, "tuned.eval_loss", "minimize", {"tuned.eval_loss": 0.5}, None
)
BETTER = dataclasses.replace(
    GOOD, number=10, folder="10-seed=3", overrides=["seed=3"], metrics={"tuned.eval_loss": 0.25}
)
FAILED = dataclasses.replace(
    GOOD, number=2, folder="2-seed=2", overrides=["seed=2"], status="failed", code=1, metrics={}, error="it died"
)


def test_points_come_back_in_their_order_and_are_kept_beside_those_of_former_commands() -> None:
    for point in (BETTER, GOOD):
        sweep_folder.record_point(Path(), point)
    assert sweep_folder.gather_points(Path()) == [GOOD, BETTER]
    assert [path.name for path in Path().iterdir()] == [sweep_folder.FILE]
    again = dataclasses.replace(GOOD, skipped=True)
    for point in (FAILED, again):
        sweep_folder.record_point(Path(), point)
    assert sweep_folder.gather_points(Path()) == [again, FAILED]
    assert sweep_folder.read_points(Path()) == [again, FAILED, BETTER]
    assert json.loads(Path(sweep_folder.FILE).read_text())[1]["error"] == "it died"


def test_the_table_marks_the_best_and_says_why_a_point_failed() -> None:
    assert sweep_folder.render_points(Path("sweep"), [GOOD, FAILED, BETTER]).splitlines() == [
        "",
        "point  tuned.eval_loss  status    overrides",
        "───────────────────────────────────────────",
        "0                  0.5  finished  seed=1",
        "2                    -  failed    seed=2",
        "10                0.25  finished  seed=3  best",
        "failed: sweep/2-seed=2: it died",
        "best: sweep/10-seed=3 (tuned.eval_loss 0.25)",
    ]


def test_more_is_better_where_the_direction_says_so() -> None:
    more = [dataclasses.replace(point, direction="maximize") for point in (GOOD, FAILED, BETTER)]
    assert sweep_folder.best_point(more) == more[0]


def test_points_that_are_compared_by_different_numbers_are_not_compared() -> None:
    other = dataclasses.replace(BETTER, compare_by="train_loss", metrics={"train_loss": 0.1})
    assert sweep_folder.best_point([GOOD, other]) is None


def test_a_command_is_gone_on_with_as_it_was_typed_and_more_words_come_after_its_own() -> None:
    sweep_folder.record_command(Path("sweep"), ["-m", "seed=1,2", "--config-dir", "my"])
    assert sweep_folder.recorded_command(Path("sweep"), ["name=x"]) == [
        "-m",
        "seed=1,2",
        "--config-dir",
        "my",
        "name=x",
    ]


def test_a_folder_without_a_sweep_is_not_gone_on_with() -> None:
    with pytest.raises(UserError, match=r"--resume: \. is not a sweep's folder \(no command.json\)"):
        sweep_folder.recorded_command(Path(), [])


def test_a_folder_goes_only_when_no_point_has_left_anything() -> None:
    for name in ("empty", "full/0-seed=1"):
        Path(name).mkdir(parents=True)
    for folder in (Path("empty"), Path("full")):
        sweep_folder.record_command(folder, ["-m"])
        sweep_folder.release_sweep_folder(folder)
    assert not Path("empty").exists()
    assert Path("full", sweep_folder.COMMAND).exists()


def test_a_sweep_of_before_is_read_with_its_name_for_the_number(tmp_path: Path) -> None:
    early = {"objective" if name == "compare_by" else name: value for name, value in dataclasses.asdict(GOOD).items()}
    (tmp_path / sweep_folder.FILE).write_text(json.dumps([early]))
    assert sweep_folder.read_points(tmp_path) == [GOOD]
    sweep_folder.record_command(tmp_path, ["-m", "objective=tuned.eval_loss"])
    assert sweep_folder.recorded_command(tmp_path, ["seed=1"]) == ["-m", "compare_by=tuned.eval_loss", "seed=1"]


ODD = ("", "garbage", "[3]", '{"number": 1}', "[" * 100_000, json.dumps([{**dataclasses.asdict(GOOD), "number": "x"}]))


@pytest.mark.parametrize("content", ODD)
def test_a_damaged_table_of_points_is_named_to_a_reader_and_set_aside_for_a_sweep(content: str) -> None:
    Path(sweep_folder.FILE).write_text(content)
    with pytest.raises(UserError, match="sweep.json: cannot be read .*; correct or remove the file"):
        sweep_folder.read_points(Path())
    sweep_folder.record_point(Path(), GOOD)
    sweep_folder.record_point(Path(), BETTER)
    (Path(sweep_folder._LEFT) / "10.json").write_text(content)
    assert sweep_folder.gather_points(Path()) == [GOOD]
    assert sweep_folder.read_points(Path()) == [GOOD]
    assert Path("sweep.json.damaged").read_text() == content


@pytest.mark.parametrize("content", ["", "garbage", "[3]", "{}", "null"])
def test_a_damaged_command_of_a_sweep_is_named(content: str) -> None:
    Path(sweep_folder.COMMAND).write_text(content)
    with pytest.raises(UserError, match="--resume: command.json cannot be read .*; give the command itself again"):
        sweep_folder.recorded_command(Path(), [])
