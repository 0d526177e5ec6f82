"""What all tests share: quiet threads, a cache and a working folder of their own, and the two halves of the command."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before torch: threads that spin make a shared machine ten times slower
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that the command named."""
        line = next(line for line in self.err.splitlines() if line.startswith("fmstune: run folder "))
        return Path(line.removeprefix("fmstune: run folder "))

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or left in the user's folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMSTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fmstune(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command: the real parent and the real runner, but in this process, so that torch is imported once.

    tests/test_cli.py runs the same through the console script, with processes and signals.
    """
    from fmstune import cli, launch

    with_processes = launch.start

    def start(argv: Sequence[str], env: Mapping[str, str]) -> int:
        from fmstune import runner

        if argv[1:3] == ["-m", "fmstune.agent"]:
            return with_processes(argv, env)
        assert argv[1:3] == ["-m", "fmstune.runner"]
        return runner.main(argv[3:])

    monkeypatch.setattr(launch, "start", start)

    def run(*words: str) -> Result:
        monkeypatch.setattr("sys.argv", ["fmstune", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 1, captured.out, captured.err)

    return run


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines and give the file."""

    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
