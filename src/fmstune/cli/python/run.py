"""A run folder as an object: its results, and what can be asked of its model."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmstune.cli.python.command import Answer, ShownError, call_command
from fmstune.cli.python.values import Values
from fmstune.errors import Problem
from fmstune.exit_codes import USER_ERROR
from fmstune.files import as_value, did_you_mean_beside, shown_place, user_path
from fmstune.launch.preemption import CODE as PREEMPTED
from fmstune.runs import run_folder
from fmstune.runs.listing import list_runs, run_status
from fmstune.runs.log import LOG
from fmstune.runs.report import run_data


class RunError(Exception):
    """A run failed, or was stopped before its end; `run` is its folder with all that it has left."""

    def __init__(self, run: "Run", text: str) -> None:
        super().__init__(run, text)
        self.run, self.text = run, text

    def __str__(self) -> str:
        return self.text


class Run:
    """A run folder. What it says is read from the files each time, so it is up to date while the run trains."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(os.path.abspath(user_path(os.fspath(folder))))
        if not (self.folder / run_folder.JOB).is_file():
            found = "is not the folder of a run: it has no job.yaml" if self.folder.is_dir() else ": no such folder"
            raise ShownError([Problem(str(folder), f"{found}{did_you_mean_beside(self.folder)}")])

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: status, plan and results; empty before the run has written it."""
        return run_folder.read_summary(self.folder)

    @property
    def status(self) -> str:
        """How it stands, as `fmstune runs` says it: `running`, `finished`, `failed`, `stopped` and so on."""
        return run_status(self.folder).value

    @property
    def log(self) -> Path:
        """The file of what its processes have printed."""
        return self.folder / LOG

    @property
    def job(self) -> Values:
        """The values of its `job.yaml`, by attribute: `run.job.training.learning_rate`."""
        return Values(run_data.read_job_tree(self.folder))

    @property
    def model(self) -> Path:
        """The folder of the tuned model, or of its adapter."""
        return self.folder / run_folder.MODEL

    def metrics(self) -> Any:
        """The logged lines of `metrics.jsonl`: a pandas DataFrame where pandas is installed, else a list of dicts."""
        return as_table(run_data.read_run(self.folder).metrics)

    def resume(self) -> "Run":
        """Resume the run from its newest checkpoint, in its folder, unless it has finished; raises as `train`."""
        words = ["train", f"--from={self.folder}", *self._trust(), f"output_dir={as_value(self.folder)}"]
        return run_of(call_command(words))

    def generate(self, prompt: str, **flags: Any) -> str:
        """Let the tuned model answer a text, as `fmstune generate`, whose flags are arguments: `max_new_tokens=20`.

        The answer alone is returned, without the prompt; `out_file` also keeps it. Raises UserError with all problems.
        """
        answers = self._ask("generate", ["--only_new_text", *self._trust(), f"--text={prompt}"], flags)
        return str(answers[0]["output"])

    def generate_all(self, prompts: Sequence[str], **flags: Any) -> list[str]:
        """Let the tuned model answer several texts; the model is read once for all of them."""
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ShownError([Problem("generate_all", f"takes a list of texts, got {prompts!r:.60}")])
        if not prompts:
            return []
        with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
            file = Path(folder) / "prompts.jsonl"
            file.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts), encoding="utf-8")
            answers = self._ask("generate", ["--only_new_text", *self._trust(), f"--text_file={file}"], flags)
        return [str(one["output"]) for one in answers]

    def evaluate(self, *words: str, **flags: Any) -> dict[str, Any]:
        """Compare the tuned model with its base on the held-out rows, as `fmstune evaluate`; what it writes as JSON.

        The words are those of the command, such as `data.eval=rows.jsonl`. Raises UserError with all problems.
        """
        return dict(self._ask("evaluate", [*words, *self._trust()], flags))

    def push(self, repo: str, **flags: Any) -> None:
        """Share the model on the hub as USER/NAME, as `fmstune push`, whose flags are arguments: `dry_run=True`.

        It prints what is left out, and what is sent. Raises UserError with all problems, before anything is sent.
        """
        spelt = {"dry-run" if name == "dry_run" else name: value for name, value in flags.items()}
        call_command(["push", str(self.folder), f"--repo={repo}", *_flags(spelt)]).raise_if_failed()

    def _ask(self, verb: str, words: Sequence[str], flags: Mapping[str, Any]) -> Any:
        with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
            out = Path(flags.get("out_file") or Path(folder) / "answer.json")
            own = [f"--model={self.folder}", *_flags({**flags, "out_file": out})]
            # what it prints is in the answer; its notes and its progress are shown
            call_command([verb, *own, *words], keep=True).raise_if_failed()
            text = user_path(str(out)).read_text(encoding="utf-8")
            lines = text.removesuffix("\n").split("\n") if out.suffix == ".jsonl" else None
            return json.loads(text) if lines is None else [json.loads(line) for line in lines]

    def _trust(self) -> list[str]:
        """The flags of the run's command that allow packages of the user's own."""
        words = run_folder.read_own(self.folder / run_folder.SOURCES).get("words") or []
        return [word for word in words if word.startswith("--trust=")]

    def __fspath__(self) -> str:
        return str(self.folder)

    def __eq__(self, other: object) -> bool:
        return self.folder == other.folder if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.folder)

    def __repr__(self) -> str:
        return f"Run({shown_place(self.folder)!r}, {self.status})"


def run(folder: str | os.PathLike[str]) -> Run:
    """The run in this folder; raises UserError where there is none."""
    return Run(folder)


def runs(folder: str | os.PathLike[str] = run_folder.RUNS) -> Any:
    """The runs and sweeps of a folder, as `fmstune runs` lists them: a pandas DataFrame, else a list of dicts.

    A row has the fields of `fmstune.runs.listing.ListedRun`; the newest is last.
    """
    rows = list_runs(user_path(os.fspath(folder)))
    return as_table([{**dataclasses.asdict(row), "status": row.status.value} for row in rows])


def run_of(answer: Answer) -> Run:
    """The run of a command that has trained; raises as `Job.train` says."""
    folder = answer.place
    if folder is None or not (folder / run_folder.JOB).is_file():  # refused before it began
        answer.raise_if_failed()
        raise ShownError([Problem("", "the configuration is of a sweep; fmstune.sweep runs it")])
    if answer.code == 0:
        return Run(folder)
    if answer.code == USER_ERROR and not (folder / run_folder.SUMMARY).is_file():
        answer.raise_if_failed()
    raise RunError(Run(folder), _failure(answer, folder))


def _failure(answer: Answer, folder: Path) -> str:
    """How the run ended, its folder, and what to do."""
    error = run_folder.read_summary(folder).get("error") or {}
    message = str(error.get("message") or f"it ended with exit code {answer.code}")
    how = "was stopped" if answer.code == PREEMPTED or error.get("kind") == "interrupted" else "failed"
    again = f"fmstune.run({shown_place(folder)!r}).resume() resumes it"
    return f"the run in {shown_place(folder)} {how}: {message}\nits log is {shown_place(folder / LOG)}; {again}"


def as_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a pandas DataFrame where pandas is installed, else as a list of dicts."""
    try:
        import pandas
    except ImportError:
        return [dict(row) for row in rows]
    return pandas.DataFrame(list(rows))


def _flags(given: Mapping[str, Any]) -> list[str]:
    """Arguments as flags: `max_new_tokens=20` as `--max_new_tokens=20`, `do_sample=True` as `--do_sample`."""
    words: list[str] = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}={one}" for one in (value if isinstance(value, list | tuple) else (value,))]
    return words
