"""What all tests share: quiet threads, a cache and a working folder of their own, and the two halves of the command."""

import gc
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# before torch: threads that spin make a shared machine ten times slower
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# the models are too small for two, and each worker of pytest-xdist has a core
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import filelock
import pytest

from fmstune import hardware, upstream
from tests.fixtures import forked, process_state

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


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


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`: one a core for the fast tests, and two where a worker waits for what it has started."""
    cores = hardware.cores()
    return cores if "not slow" in config.option.markexpr else 2 * cores


def pytest_configure(config: pytest.Config) -> None:
    """The libraries are imported once for all workers, while they collect."""
    starts_workers = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if starts_workers and sys.platform == "linux" and "not slow" not in config.option.markexpr:
        forked.serve_workers()


WAITING = (
    *("end_to_end/test_several_machines", "launch/test_slurm", "launch/test_preemption", "project/test_notebook"),
    *("sweeps/test_callback", "sweeps/test_warm", "training/test_tracking"),
)
"""Modules whose tests sleep more than they compute: first, and so all with one worker, while the others compute."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow: tests of `soak`, and of `sampled(n)` all but every n-th; and put those that wait first."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(WAITING))
    seen: Counter[str] = Counter()
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.slow)
        marker = item.get_closest_marker("sampled")
        if marker is None:
            continue
        function = item.nodeid.partition("[")[0]
        if seen[function] % marker.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[function] += 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The test modules import what trains as a runner does; what is there then stays, unseen by the collector."""
    with upstream.quick_imports():
        collected = yield
    _keep_from_collector()
    # most of what a test makes ends with it: looking for cycles less often saves a fortieth
    gc.set_threshold(50_000, 20, 50)
    return collected


_modules = 0
"""How many were imported when the collector was last told to leave what is there."""


def _keep_from_collector() -> None:
    global _modules
    gc.freeze()
    _modules = len(sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """What tests import stays, too: each training looks through the rest, for 0.3 s where a tracker was imported."""
    ran = yield
    if len(sys.modules) > _modules + 50:
        gc.collect()
        _keep_from_collector()
    return ran


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A folder by its name, filled by whichever worker of pytest-xdist needs it first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        place, whole = shared / name, shared / f"{name}.whole"
        with filelock.FileLock(shared / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                fill(place)
                whole.touch()
        return place

    return folder


_numbers = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, which looks through the folders of all tests before for the next number."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return tmp_path_factory.mktemp(f"{name}{next(_numbers)}", numbered=False)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is read from or left in the user's folders, nor in this process."""
    with process_state.kept():
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FMSTUNE_CACHE", str(tmp_path / "cache"))
        yield


Command = Callable[..., Result]


def in_this_process(capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, trained: list[str]) -> Command:
    """The real parent and the real runner, but in this process, which each leaves as it was.

    The words of a command that has trained are added to `trained`. tests/cli/test_main.py runs the same through the
    console script, with processes and signals.
    """
    from hydra.core.plugins import Plugins

    from fmstune.cli import main
    from fmstune.launch import subprocesses
    from fmstune.sweeps import warm

    with_processes = subprocesses.start

    def start(argv: Sequence[str], env: Mapping[str, str], **_: bool) -> int:
        from fmstune import runner

        if argv[1:3] == ["-m", "fmstune.launch.agent"]:
            if sys.platform != "linux":
                return with_processes(argv, env)
            process = forked.Process(argv, env, files={1: 1, 2: 2})
            with subprocesses.handing_on(process.send_signal):
                return process.wait()
        assert argv[1:3] == ["-m", "fmstune.runner"]
        flags = argv[4:]
        if {"--verb=merge", "--verb=parity", "--verb=push"} & {*flags}:
            from fmstune.serving.parity import prove

            # the program of plain transformers, which tests/serving/parity starts as the command does
            patch.setattr(prove, "subprocess", SimpleNamespace(run=lambda argv, **_: forked.run(argv)))
        if not {"--verb=report", "--verb=compare"} & {*flags}:
            # here and not in the run: only what is imported before it can be put back after it
            from fmstune.training import library_noise  # noqa: F401
            from fmstune.training.objectives import sft  # noqa: F401
        with process_state.kept():
            code = runner.main(argv[3:])
        if code == 0 and not any(flag.startswith(("--verb", "--prepare")) for flag in flags):
            trained.append(" ".join(sys.argv))
        return code

    patch.setattr(subprocesses, "start", start)
    patch.setattr(warm, "start_forked", start)
    # Hydra looks for them once in a process
    Plugins.instance()

    def run(*words: str) -> Result:
        capfd.readouterr()
        with process_state.kept():
            sys.argv = ["fmstune", *words]
            with pytest.raises(SystemExit) as ended:
                main.main()
        captured = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 1, captured.out, captured.err)

    return run


@pytest.fixture
def fmstune(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Run a command in this process; a test that trains by it must be marked as slow."""
    trained: list[str] = []
    yield in_this_process(capfd, monkeypatch, trained)
    assert not trained or request.node.get_closest_marker("slow"), f"mark this test as slow, as it trains: {trained}"


@pytest.fixture
def forked_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the test starts are programs of their own, and their runners need not import what trains."""
    if sys.platform == "linux":
        for name, value in forked.environment().items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines and give the file."""

    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


FSDP_JOB = (
    "launcher=fsdp",
    "launcher.device=cpu",
    "launcher.threads=1",
    "launcher.num_processes=2",
    "training.max_steps=24",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=6",
    "training.learning_rate=1e-3",
    "data.max_rows=32",
    "evaluation=none",
    "output_dir=run",
)


@pytest.fixture(scope="session")
def two_processes(made_once: MadeOnce) -> Path:
    """What the console script leaves and says (OUT, ERR) when it trains FSDP_JOB in two processes of one machine."""

    def train(place: Path) -> None:
        script = Path(sys.executable).with_name("fmstune")
        env = {**os.environ, "FMSTUNE_CACHE": str(place / "cache")}
        with (place / "OUT").open("w") as out, (place / "ERR").open("w") as err:
            done = subprocess.run([script, *FSDP_JOB], cwd=place, env=env, stdout=out, stderr=err, timeout=300)
        assert done.returncode == 0, (place / "ERR").read_text()

    return made_once("two_processes", train)


@pytest.fixture(scope="session")
def doctor_said(made_once: MadeOnce) -> str:
    """What the console script says to `doctor`: to import all extras takes five seconds."""

    def ask(place: Path) -> None:
        script = Path(sys.executable).with_name("fmstune")
        done = subprocess.run([script, "doctor"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (place / "OUT").write_text(done.stdout)

    return (made_once("doctor", ask) / "OUT").read_text()


@pytest.fixture(scope="session")
def empty_stores(made_once: MadeOnce) -> Path:
    """A folder with Aim's repository and MLflow's database: making each takes more than a second."""

    def make(place: Path) -> None:
        from aim import Repo
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{place}/mlflow.db").search_experiments()
        Repo.from_path(str(place), init=True)

    return made_once("empty_stores", make)


RECORDED = (
    "model=causal_lm",
    "model.path=m",
    "peft=lora",
    "data=text",
    "data.train=rows.jsonl",
    "data.eval_fraction=0.25",
    "training.max_steps=2",
    "training.warmup_steps=0",
    "training.save_strategy=no",
    "evaluation.max_new_tokens=2",
    "launcher.threads=1",
    "output_dir=first",
)


@pytest.fixture
def recorded_run(
    capfd: pytest.CaptureFixture[str], made_once: MadeOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder `first` of a run, with its model `m` and its rows.jsonl beside it: trained once, a copy for each."""
    from tests import small

    def train(place: Path) -> None:
        monkeypatch.chdir(place)
        small.save(place / "m")
        (place / "m" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        rows = [json.dumps({"output": f"### Text: parcel {n}\n### Response: late"}) + "\n" for n in range(8)]
        (place / "rows.jsonl").write_text("".join(rows))
        with pytest.MonkeyPatch.context() as patch:
            run = in_this_process(capfd, patch, [])(*RECORDED)
        assert run.code == 0, run.err
        monkeypatch.chdir(tmp_path)

    shutil.copytree(made_once("recorded_run", train), tmp_path, dirs_exist_ok=True)
    return Path("first")
