# SPDX-License-Identifier: Apache-2.0
"""Trackers beside a run: what real stores hold afterwards, and that none of them can disturb the training."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.training import tracking
from fmstune.training.trackers import aim
from fmstune.training.trackers.base import Outcome, Subject, Tracker
from tests.cli.test_main import SCRIPT, wait_for
from tests.config.test_freeze import tree
from tests.conftest import Result
from tests.end_to_end.test_resume import QUICK, interrupted_after

Run = Callable[..., Result]
EVALUATED = (
    *("training.eval_strategy=steps", "training.eval_steps=2", "training.per_device_eval_batch_size=32"),
    "peft.r=4",
)

Points = dict[str, list[tuple[int, float]]]
"""Steps and values of each metric."""


def store() -> str:
    """The database of this test; MLflow keeps its connections by the address, so that is a full path."""
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def aim_repo(place: str) -> Any:
    """Aim's own view of a folder; imported here, as trackers take seconds."""
    from aim import Repo

    return Repo(place)


def mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def all_of_them() -> tuple[str, ...]:
    return (
        "tracking=[aim,tensorboard,mlflow,wandb,trackio]",
        f"tracking.mlflow.tracking_uri={store()}",
        "tracking.wandb.mode=offline",
        f"tracking.trackio.project={Path.cwd().name}",
    )


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trackio reads its place once, when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield Path(os.environ["TRACKIO_DIR"])


def in_the_file() -> Points:
    """What metrics.jsonl holds."""
    found: Points = {}
    for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()):
        for name in line.keys() - {"step", "epoch"}:
            found.setdefault(name, []).append((line["step"], line[name]))
    return found


def aim_run() -> Any:
    """The only run of the Aim repository here, as a query finds it."""
    (one,) = [found.run for found in aim_repo(str(Path.cwd())).query_runs("run.job.peft.r == 4").iter_runs()]
    return one


def in_aim(run: Any, subset: str) -> Points:
    return {
        metric.name: [(step, value) for step, (value, _, _) in metric.data]
        for metric in run.metrics()
        if metric.context.to_dict() == {"subset": subset}
    }


def in_tensorboard() -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("run/tensorboard")
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def mlflow_run() -> Any:
    client = mlflow_client(store())
    (experiment,) = client.search_experiments(filter_string="name = 'fmstune'")
    (one,) = client.search_runs([experiment.experiment_id])
    return one


def in_mlflow(run: Any) -> Points:
    client = mlflow_client(store())
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def in_wandb() -> Points:
    """The history in wandb's offline files, which are LevelDB logs of its messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Points = {}
    for file in sorted(Path("run/wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            items = Record.FromString(data).history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            for name in row.keys() - {"epoch"}:
                found.setdefault(name, []).append((row["_step"], row[name]))
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format after wandb's 7 bytes: blocks of 32 KiB; checksum, length, and 1 whole, 2 to 4 in parts."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def in_trackio(database: Path) -> Points:
    found: Points = {}
    with contextlib.closing(sqlite3.connect(database)) as store:
        for step, row in store.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall():
            for name, value in json.loads(row).items():
                found.setdefault(name, []).append((step, value))
    return found


@pytest.mark.slow
def test_every_tracker_holds_what_the_metrics_file_holds(fmstune: Run, trackio_folder: Path) -> None:
    from aim.storage.context import Context

    run = fmstune(*QUICK, *EVALUATED, *all_of_them(), "output_dir=run")
    assert run.code == 0, run.err
    assert "note:" not in run.err
    file, one, other = in_the_file(), aim_run(), mlflow_run()
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_second", "eval_loss"} <= file.keys()
    assert len(file["loss"]) == 4 and len(file["eval_loss"]) == 2
    aim = in_aim(one, "train") | in_aim(one, "eval")
    assert "eval_loss" in in_aim(one, "eval") and "loss" in in_aim(one, "train")
    stores = (aim, in_mlflow(other), in_wandb(), in_trackio(trackio_folder / f"{Path.cwd().name}.db"))
    for name, points in file.items():
        assert [store[name] for store in stores] == [points] * len(stores), name
        assert in_tensorboard()[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points], name

    for seconds in ("load_seconds", "preparation_seconds"):
        assert [store[seconds] for store in stores] == [[(0, run.summary[seconds])]] * len(stores)
    job = yaml.safe_load(Path("run/job.yaml").read_text())
    assert one["job"] == job
    # as it was at the start: the hashes of files come a moment later
    later = {"data_files": None, "model_files": None}
    assert one["provenance"] == {**json.loads(Path("run/lock.json").read_text()), **later}
    assert other.data.params["training.learning_rate"] == str(job["training"]["learning_rate"])
    assert one.name == one.experiment == "fmstune"
    assert {"__system__cpu", "__system__p_memory_percent"} <= {metric.name for metric in one.metrics()}

    assert one["summary", "status"] == "finished"
    assert one["summary", "tuned", "eval_loss"] == run.summary["tuned"]["eval_loss"]
    assert in_mlflow(other)["final.tuned.exact_match"] == [(4, run.summary["tuned"]["exact_match"])]
    assert other.info.status == "FINISHED"
    table = "loss on the answer"
    assert table in run.out and table in other.data.tags["mlflow.note.content"]
    assert [table in text.data for _, (text, *_) in one.get_text_sequence("final table", Context({})).data] == [True]
    assert run.summary["tracking"]["aim"] == {"run": one.hash, "place": ".", "error": None}
    assert f"  aim         run {one.hash} in ." in run.out


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_runs(fmstune: Run, empty_stores: Path) -> None:
    shutil.copytree(empty_stores, Path(), dirs_exist_ok=True)
    first = fmstune(*QUICK, *EVALUATED, *all_of_them(), "output_dir=run")
    assert first.code == 0, first.err
    interrupted_after(2)
    again = fmstune(*QUICK, *EVALUATED, *all_of_them(), "output_dir=run")
    assert again.code == 0, again.err
    assert again.summary["steps_here"] == 2
    for tracked in (first.summary["tracking"], json.loads(Path("run/tracking.json").read_text())):
        assert {name: one["run"] for name, one in tracked.items()} == {
            name: one["run"] for name, one in again.summary["tracking"].items()
        }
    one = aim_run()
    assert one.hash == again.summary["tracking"]["aim"]["run"]
    assert in_aim(one, "train")["loss"] == in_the_file()["loss"]
    assert in_tensorboard()["loss"] == [(step, pytest.approx(value)) for step, value in in_the_file()["loss"]]
    other = mlflow_run()
    assert other.info.run_id == first.summary["tracking"]["mlflow"]["run"]
    # MLflow takes nothing back: steps that were taken again are there twice
    assert sorted(step for step, _ in in_mlflow(other)["loss"]) == [1, 2, 3, 3, 4, 4]
    assert other.info.status == "FINISHED"


@pytest.mark.slow
def test_a_tracker_that_cannot_begin_is_left_out_and_the_others_go_on(fmstune: Run, empty_stores: Path) -> None:
    shutil.copytree(empty_stores / ".aim", ".aim")
    Path("mlflow.db").write_text("no database\n" * 100)
    run = fmstune(*QUICK, *EVALUATED, *all_of_them(), "output_dir=run")
    assert run.code == 0, run.err
    assert (
        run.err.count(
            "fmstune: note: tracking.mlflow failed and is off for the rest of this run (metrics.jsonl is unaffected): "
        )
        == 1
    )
    assert "file is not a database" in run.summary["tracking"]["mlflow"]["error"]
    assert run.summary["status"] == "finished"
    assert in_aim(aim_run(), "train")["loss"] == in_the_file()["loss"]


@dataclasses.dataclass(kw_only=True)
class Recorder(Tracker):
    """A tracker that keeps what it is told; it has room for one step."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def __post_init__(self) -> None:
        self.place = "memory"

    def start(self, former: str | None) -> str:
        self.told.append(("start", former, self.subject.name, self.subject.provenance))
        return "run-1"

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        if step > 1:
            raise OSError("no room at http://me:hunter2@host")
        self.told.append(("log", metrics, step, epoch))

    def close(self, outcome: Outcome) -> None:
        self.told.append(("close", outcome.status, outcome.figures()))


@pytest.fixture
def recorded(tmp_path: Path) -> Job:
    """A job that tracks its run in memory, and the folder of that run."""
    Recorder.told.clear()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock.json").write_text('{"seed": 42}')
    (tmp_path / "run" / "summary.json").write_text('{"status": "running", "steps": 2}')
    made = freeze.freeze({**tree(), "name": "fmstune"}).job
    return dataclasses.replace(made, tracking={"mine": {"_target_": f"{__name__}.Recorder"}})


@pytest.mark.parametrize(
    ("ended", "status"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("broken"), "failed"), (None, "finished")]
)
def test_a_tracker_is_told_of_its_run_from_start_to_end(
    recorded: Job, ended: BaseException | None, status: str
) -> None:
    with (
        pytest.raises(type(ended)) if ended else contextlib.nullcontext(),
        tracking.tracked(recorded, Path("run"), 0, writes=True) as trackers,
    ):
        trackers.log({"loss": 1, "epoch": 0.5, "note": "text"}, 1, 0.5)
        if ended:
            raise ended
    assert Recorder.told == [
        ("start", None, "fmstune", {"seed": 42}),
        ("log", {"loss": 1.0}, 1, 0.5),
        ("close", status, {"steps": 2}),
    ]
    noted = json.loads(Path("run/summary.json").read_text())["tracking"]
    assert noted == {"mine": {"run": "run-1", "place": "memory", "error": None}}


def test_a_run_that_resumes_hands_its_tracker_the_former_one(recorded: Job) -> None:
    for _ in range(2):
        with tracking.tracked(recorded, Path("run"), 0, writes=True):
            pass
    assert [told[1] for told in Recorder.told if told[0] == "start"] == [None, "run-1"]


def test_a_tracker_that_fails_is_off_from_then_on_and_its_password_is_not_shown(
    recorded: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    with tracking.tracked(recorded, Path("run"), 0, writes=True) as trackers:
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0}, step)
    assert [told[0] for told in Recorder.told] == ["start", "log"]
    said = capfd.readouterr().err
    assert said.count("tracking.mine failed") == 1
    noted = json.loads(Path("run/summary.json").read_text())["tracking"]["mine"]["error"]
    assert noted == "OSError: no room at http://…@host" and noted in said


def test_a_process_that_does_not_write_tracks_nothing(recorded: Job) -> None:
    with tracking.tracked(recorded, Path("run"), 0, writes=False) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert Recorder.told == []
    assert sorted(path.name for path in Path("run").iterdir()) == ["lock.json", "summary.json"]


@pytest.fixture
def job(tmp_path: Path, empty_stores: Path) -> Job:
    """A job that tracks its run in MLflow, and the folder of that run."""
    shutil.copy(empty_stores / "mlflow.db", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock.json").write_text('{"seed": 42}')
    (tmp_path / "run" / "summary.json").write_text('{"status": "running", "steps": 2}')
    made = freeze.freeze({**tree(), "name": "fmstune"}).job
    return _with(made, store())


def _with(job: Job, address: str | None) -> Job:
    mlflow = {"_target_": "fmstune.training.trackers.mlflow.MlflowTracker", "tracking_uri": address}
    return dataclasses.replace(job, tracking={"mlflow": mlflow})


def error() -> str | None:
    noted: dict[str, Any] = json.loads(Path("run/summary.json").read_text())["tracking"]["mlflow"]
    return noted["error"]


@pytest.mark.slow
def test_a_tracker_that_fails_while_training_warns_once(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    with tracking.tracked(job, Path("run"), 0, writes=True) as trackers:
        trackers.log({"loss": 1.0}, 1)
        wait_for(lambda: _holds_a_metric("mlflow.db"), "the first metric")
        with contextlib.closing(sqlite3.connect("mlflow.db")) as store:
            store.execute("DROP TABLE metrics")
        for step in (2, 3):
            trackers.log({"loss": 0.5}, step)
    assert "no such table: metrics" in (error() or "")
    assert capfd.readouterr().err.count("tracking.mlflow failed") == 1


def _holds_a_metric(file: str) -> bool:
    with contextlib.closing(sqlite3.connect(file)) as store:
        try:
            return bool(store.execute("SELECT * FROM metrics").fetchall())
        except sqlite3.OperationalError:
            return False  # the table is not made yet


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A server that takes every call and answers none; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
def test_a_tracker_that_does_not_answer_does_not_hold_up_the_run(
    job: Job, silent_server: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LONGEST_WAIT", 0.5)
    # the thread that waits ends with the server, and writes nothing into the tests that follow
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    silent = _with(job, f"http://127.0.0.1:{silent_server}")
    with tracking.tracked(silent, Path("run"), 0, writes=True) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert error() == "it has not answered for 0.5 seconds"
    assert "tracking.mlflow failed" in capfd.readouterr().err


@pytest.mark.slow
def test_a_password_in_the_address_of_a_tracker_is_not_shown(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow puts the whole address into its errors."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.tracked(_with(job, None), Path("run"), 0, writes=True):
        pass
    assert f"http://…@127.0.0.1:{port}" in (error() or "")
    shown = capfd.readouterr()
    left = [path.read_text() for path in Path("run").iterdir()]
    assert not [text for text in (shown.out, shown.err, *left) if "hunter2" in text]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ended", "status"), [(KeyboardInterrupt(), "KILLED"), (RuntimeError("broken"), "FAILED"), (None, "FINISHED")]
)
def test_a_tracker_is_told_how_the_run_ended(job: Job, ended: BaseException | None, status: str) -> None:
    with (
        pytest.raises(type(ended)) if ended else contextlib.nullcontext(),
        tracking.tracked(job, Path("run"), 0, writes=True),
    ):
        if ended:
            raise ended
    assert mlflow_run().info.status == status


@pytest.mark.slow
def test_a_point_of_a_sweep_is_called_by_what_sets_it_apart(job: Job) -> None:
    with tracking.tracked(job, Path("run"), 0, writes=True):
        pass
    assert mlflow_run().info.run_name == "fmstune"
    mlflow_client(store()).delete_run(mlflow_run().info.run_id)
    Path("command.json").write_text('["-m", "seed=1,2"]')
    Path("run").rename("0-seed=1")
    with tracking.tracked(job, Path("0-seed=1"), 0, writes=True):
        pass
    assert mlflow_run().info.run_name == "fmstune 0-seed=1"


def shared_aim(job: Job) -> aim.AimTracker:
    return aim.AimTracker(subject=Subject(job, Path("run"), {}, 0), repo="shared", system_tracking_interval=None)


@pytest.mark.slow
def test_a_repository_that_another_point_is_just_making_is_waited_for(job: Job) -> None:
    half_made = Path("shared/.aim")
    half_made.mkdir(parents=True)
    tracker = shared_aim(job)
    with ThreadPoolExecutor() as pool:
        with aim.alone_at("shared"):
            began = pool.submit(tracker.start, None)
            assert not wait([began], timeout=3).done
            half_made.rmdir()
        run = began.result(timeout=60)
    assert aim_repo("shared").list_all_runs() == [run]


HOLDS = """
import sys, aimrocks
held = aimrocks.DB(sys.argv[1], aimrocks.Options())
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holds_the_index(repo: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the index of an Aim repository open until it is told to end."""
    argv = [sys.executable, "-c", HOLDS, str((repo / ".aim" / "meta" / "index").resolve())]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("until_it_ends", [False, True])
def test_an_index_that_another_process_holds_is_waited_for_and_no_error(
    job: Job,
    empty_stores: Path,
    until_it_ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a point that ends at the same moment does, or `aim up`."""
    shutil.copytree(empty_stores / ".aim", "shared/.aim")
    monkeypatch.setattr(aim.AimTracker, "LONGEST_WAIT_FOR_INDEX", 1.0 if until_it_ends else 60.0)
    tracker = shared_aim(job)
    run = tracker.start(None)
    with holds_the_index(Path("shared")) as holder, ThreadPoolExecutor() as pool:
        closed = pool.submit(tracker.close, Outcome("finished", {"steps": 1}, ""))
        assert bool(wait([closed], timeout=4).done) is until_it_ends
        holder.communicate()
        closed.result(timeout=60)
    noted = "another process holds the index of shared" in capfd.readouterr().err
    assert noted is until_it_ends
    assert [one.hash for one in aim_repo("shared").iter_runs()] == ([] if until_it_ends else [run])


@pytest.mark.slow
def test_a_run_that_was_deleted_in_the_tracker_is_begun_anew(job: Job) -> None:
    with tracking.tracked(job, Path("run"), 0, writes=True):
        pass
    former = mlflow_run().info.run_id
    mlflow_client(store()).delete_run(former)
    with tracking.tracked(job, Path("run"), 0, writes=True):
        pass
    assert mlflow_run().info.run_id != former
    assert error() is None


@pytest.mark.slow
def test_only_one_process_writes(job: Job) -> None:
    with tracking.tracked(job, Path("run"), 0, writes=False) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert sorted(path.name for path in Path("run").iterdir()) == ["lock.json", "summary.json"]
    assert mlflow_client(store()).search_experiments(filter_string="name = 'fmstune'") == []


@pytest.mark.soak
@pytest.mark.parametrize("dies", [False, True])
def test_a_run_ends_in_order_whether_its_aim_server_lives_or_dies(dies: bool) -> None:
    """Aim's client waits without limit for a server that has died, and so would the process at its end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    Path("served").mkdir()
    words = [SCRIPT.with_name("aim"), "server", "--repo=served", "--host=127.0.0.1", f"--port={port}", "-y"]
    server = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        wait_for(answers, "the server")
        steps = ("training.max_steps=40", "training.save_strategy=no", "evaluation=none", "launcher.threads=1")
        address = f"tracking.aim.repo=aim://127.0.0.1:{port}"
        run = subprocess.Popen([SCRIPT, *steps, "tracking=aim", address, "output_dir=run", "peft=lora"])
        wait_for(lambda: Path("run/metrics.jsonl").exists(), "the first step")
        if dies:
            os.killpg(server.pid, signal.SIGKILL)
        assert run.wait(timeout=120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    noted = json.loads(Path("run/summary.json").read_text())["tracking"]["aim"]
    assert (noted["error"] is not None) is dies
    assert aim_repo(str(Path("served").resolve())).list_all_runs() == [noted["run"]]
    assert len(in_the_file()["loss"]) == 40
