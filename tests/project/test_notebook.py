# SPDX-License-Identifier: Apache-2.0
"""The page and the notebook on Python do what they show."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fmstune as python  # where a fixture has the name
from tests import ROOT
from tests.conftest import Result
from tests.project.test_docs import python_blocks

SCRIPT = """
import asyncio, logging, os, signal, sys, threading

def state():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return handlers, os.getcwd(), dict(os.environ), [*sys.argv], [*logging.root.handlers], threading.active_count()

async def main():
BODY
    assert run.status == best.status == "finished"
    assert isinstance(answer, str)
    assert len(sweep.runs) == 2 and sorted(sweep.points()["seed"]) == ["1", "2"]
    assert run.resume() == run
    assert len(fmstune.runs("runs")) == 2

before = state()
asyncio.run(main())
assert state() == before
assert not {"torch", "hydra", "omegaconf"} & {*sys.modules}
print("whole")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runners")
def test_the_page_runs_as_a_script_without_a_guard_within_an_event_loop_and_changes_nothing(tmp_path: Path) -> None:
    body = textwrap.indent("\n".join(python_blocks(ROOT / "docs" / "python.md")), "    ")
    (tmp_path / "script.py").write_text(SCRIPT.replace("BODY", body), encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and done.stdout.endswith("whole\n"), done.stderr
    assert "no problems found" in done.stdout and "step 4/4" in done.stderr


@pytest.fixture(autouse=True)
def _jupyter_has_folders_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("forked_runners")
def test_the_notebook_runs_and_shows_the_lines_of_its_run(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(ROOT / "docs" / "python.ipynb", as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (trained,) = (cell for cell in notebook.cells if cell.source == "run = job.train()")
    streams = [output for output in trained.outputs if output.output_type == "stream"]
    assert "step 8/8" in "".join(output.text for output in streams if output.name == "stderr")
    assert "8 steps in" in "".join(output.text for output in streams if output.name == "stdout")


TRAINS = """
import fmstune
words = ("peft=lora", "training.max_steps=5000", "training.save_strategy=steps", "training.save_steps=2")
job = fmstune.compose(*words, "data.max_rows=16", "evaluation=none", "output_dir=run")
job.train()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("forked_runners")
def test_interrupting_the_kernel_ends_the_run_in_order_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    from jupyter_client.manager import start_new_kernel
    from jupyter_core.utils import ensure_event_loop

    manager, client = start_new_kernel(cwd=str(tmp_path), startup_timeout=300)

    def look(message: dict[str, Any]) -> None:
        said.append(message["content"].get("text", ""))

    def interrupt() -> None:
        # not as the run says a line: the next is five seconds away
        while not [*(tmp_path / "run").glob("checkpoint-*/complete.json")]:
            if ended.wait(0.05):
                return
        manager.interrupt_kernel()
        # jupyter has made it for this thread, and leaves it open
        ensure_event_loop().close()

    ended = threading.Event()
    said: list[str] = []
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        reply = client.execute_interactive(TRAINS, timeout=500, output_hook=look)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        said.clear()
        asked = "run = fmstune.run('run'); print(run.status, run.summary['error']['kind'])"
        assert client.execute_interactive(asked, timeout=300, output_hook=look)["content"]["status"] == "ok"
    finally:
        ended.set()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "".join(said) == "interrupted interrupted\n"
    assert [*(tmp_path / "run").glob("checkpoint-*/complete.json")]
    assert not os.path.exists(tmp_path / "run" / "model")


@pytest.mark.slow
def test_a_run_from_python_is_the_run_of_the_command_bit_for_bit(
    fmstune: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("peft=lora", "training.max_steps=2", "data.max_rows=16", "evaluation=none", "launcher.threads=1")
    run = python.compose(*words, "output_dir=python").train()
    assert "step 2/2" in capfd.readouterr().err
    typed = fmstune(*words, "output_dir=typed")
    assert typed.code == 0, typed.err
    same = ("weights_sha256", "train_loss", "tokens_trained_on")
    assert {name: run.summary[name] for name in same} == {name: typed.summary[name] for name in same}
    recorded, by_command = (json.loads((folder / "sources.json").read_text()) for folder in (run.folder, typed.folder))
    assert recorded["words"] == [*words, "output_dir=python"] and recorded["sources"] == by_command["sources"]
    assert run.log.read_text().count("step 2/2") == 1
