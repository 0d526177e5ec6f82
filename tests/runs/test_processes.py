"""The record of the process that does a run."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from fmstune.runs import processes


def test_a_process_is_recorded_while_it_runs_and_not_after() -> None:
    with processes.record_process(Path()):
        found = processes.read_process(Path())
        assert found is not None and found.is_here and found.lives
        assert not dataclasses.replace(found, started=found.started - 60).lives  # another process with its number
        assert not dataclasses.replace(found, host="elsewhere").is_here
    assert processes.read_process(Path()) is None
    assert list(Path().iterdir()) == []


def test_the_record_of_a_later_process_is_left_alone() -> None:
    with processes.record_process(Path()):
        found = processes.read_process(Path())
        assert found is not None
        other = json.dumps({**dataclasses.asdict(found), "pid": 1})
        Path(processes.FILE).write_text(other)
    assert Path(processes.FILE).read_text() == other


def test_a_process_that_has_ended_does_not_live() -> None:
    script = "import sys; from pathlib import Path; from fmstune.runs import processes\n"
    script += "kept = processes.record_process(Path()); kept.__enter__(); import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", script], check=True)
    found = processes.read_process(Path())
    assert found is not None and not found.lives


def test_a_damaged_record_is_none() -> None:
    for text in ("{", "[]", '{"host": "a", "pid": "b", "started": 1.0}', '{"host": "a", "pid": -1, "started": 1.0}'):
        Path(processes.FILE).write_text(text)
        assert processes.read_process(Path()) is None, text
