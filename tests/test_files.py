"""Names of shipped files become paths; a file is written whole or not at all."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fmstune.config import freeze
from fmstune.errors import UserError
from fmstune.files import did_you_mean_beside, explain_write_errors, resolve, user_path, write_aside, write_json
from fmstune.launch import accelerate_file


def test_a_shipped_file_is_found() -> None:
    assert Path(resolve("package:tiny_llama/config.json")).is_file()


def test_other_text_is_left_as_it_is() -> None:
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["package:tiny_lama", "package:tiny_llama/../../job.py", "package:"])
def test_what_is_not_shipped_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="package:"):
        resolve(name)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'tiny_llama'"):
        resolve("package:tiny_lama")


def test_a_chat_template_of_trl_is_found_by_its_name() -> None:
    assert "{%- generation" in Path(resolve("trl:qwen3_training")).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trl:qwen3_trainin", "TRL ships no such template; did you mean 'qwen3_training'"),
        ("trl:", "TRL ships no such template; those for training are cohere"),
        ("trl:../sft_trainer", "TRL ships no such template"),
    ],
)
def test_a_name_that_trl_does_not_have_is_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(name)


def test_json_is_replaced_as_a_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    write_json(path, {"ü": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "summary.json", {"a": float("nan")})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"a": 1}


def test_a_file_that_cannot_be_written_is_named_by_its_flag_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "taken.json"
    folder.mkdir()
    with (
        pytest.raises(UserError, match=r"--out_file: .*taken\.json cannot be written \(Is a directory\)"),
        explain_write_errors("--out_file", folder),
    ):
        write_json(folder, {})
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_failed_block_wrote_is_removed_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    _interrupted(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_with_all_its_files_and_not_with_those_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "model"
    left = _interrupted(path)
    left.mkdir()
    (left / "of_a_killed_process").touch()
    with write_aside(path) as aside:
        aside.mkdir()
        (aside / "weights").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_working_folder_itself_is_refused() -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write_json(Path(), {})


def _interrupted(path: Path) -> Path:
    """The path that a block which failed wrote to."""
    with suppress(KeyboardInterrupt), write_aside(path) as aside:
        aside.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    return aside


def test_the_folder_of_an_unknown_user_is_a_path_that_is_not_there() -> None:
    assert user_path("~nobody-here/x") == Path("~nobody-here/x")
    assert user_path("~/x") == Path.home() / "x"


def test_a_named_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (freeze.read, accelerate_file.values):
        with pytest.raises(UserError, match="is a named pipe; give a file"):
            read(pipe)


def test_a_link_to_itself_is_not_written_and_stays(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    link = tmp_path / "loop"
    with pytest.raises(UserError, match="Too many levels"), explain_write_errors("--html", link):
        write_json(link, {})
    assert [path.name for path in tmp_path.iterdir()] == ["loop"] and (tmp_path / "loop").is_symlink()


def test_a_name_that_is_there_is_no_suggestion_for_itself(tmp_path: Path) -> None:
    (tmp_path / "row.jinja").touch()
    os.mkfifo(tmp_path / "pipe.jinja")
    (tmp_path / "loop.jinja").symlink_to("loop.jinja")
    (tmp_path / "here.jinja").mkdir()
    assert did_you_mean_beside(tmp_path / "rows.jinja") == "; did you mean 'row.jinja'?"
    hints = [did_you_mean_beside(tmp_path / f"{name}.jinja") for name in ("pipe", "loop", "here")]
    assert hints == ["; it is a named pipe", "; it is a broken link", "; it is a folder"]
    assert did_you_mean_beside(Path("/dev/null")) == "; it is a device"


def test_a_pipe_is_written_into_and_a_link_through(tmp_path: Path) -> None:
    # as a file in place of /dev/null or /dev/stdout would break the machine
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    write_json(pipe, {"a": 1})
    assert json.loads(reader.communicate(timeout=10)[0]) == {"a": 1}
    assert pipe.is_fifo()
    write_json(link, {"a": 2})
    assert link.is_symlink() and json.loads(file.read_text()) == {"a": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
