# SPDX-License-Identifier: Apache-2.0
"""The documents say what is true: their commands run, their tables are fresh, their links lead somewhere."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fmstune.cli import arguments
from fmstune.config.overrides import swept_keys
from fmstune.config.requests import Verb
from fmstune.sweeps.search_files import with_search_files
from tests import ROOT
from tests.conftest import Result
from tests.fixtures import forked
from tests.fixtures.hub import Hub, served, use_in_this_process
from tests.project import test_examples

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXT_SUFFIXES = {".cfg", ".md", ".py", ".svg", ".toml", ".txt", ".yaml", ".yml"}
COMMANDS_AT_LEAST = 40
PIP_LINES = (
    "pip install .",
    *(
        f"pip install '.[{extra}]'"
        for extra in (
            "dev",
            "docs",
            "flash-attn",
            "liger",
            "quant",
            "aim",
            "eval",
            "fms",
            "tensorboard",
            "mlflow",
            "wandb",
            "trackio",
            "slurm",
            "sweep",
            "serve",
            "chat",
            "gguf",
        )
    ),
)
SHELL_LINES = ('eval "$(fmstune --shell-completion install=bash)"',)
SMALL = (
    *("data.max_rows=8", "evaluation.max_rows=2", "evaluation.max_new_tokens=4"),
    # each evaluation goes through all 120 rows
    "training.per_device_eval_batch_size=60",
)
"""Appended to a command that trains, with `training.max_steps`."""
PROBED = (
    *("training.max_steps=40", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=1"),
    "data.max_rows=80",
)
"""Besides, for one with probes, which refuse a shorter run: one epoch, as each is saved."""
ON_THE_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""A model that the documents name by its hub id; the tests have no hub, and use a folder in its place."""


class Block(NamedTuple):
    """A fenced block, and the line of text before it."""

    language: str
    text: str
    before: str


def blocks(path: Path) -> list[Block]:
    found: list[Block] = []
    before, language, inside = "", None, list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if language is not None and line == "```":
            found.append(Block(language, "\n".join(inside) + "\n", before))
            language, inside, before = None, [], ""
        elif language is not None:
            inside.append(line)
        elif line.startswith("```"):
            language = line.removeprefix("```")
        elif line:
            before = line
    return found


def lines(path: Path) -> list[str]:
    """The command lines of the bash blocks, in order."""
    code = [block.text for block in blocks(path) if block.language == "bash"]
    return [line for text in code for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def commands(path: Path) -> list[str]:
    return [line for line in lines(path) if line.startswith("fmstune")]


def is_an_example(line: str) -> bool:
    """Whether the script of an example holds these words and more: tests/project/test_examples.py runs it."""
    examples = [test_examples.commands(test_examples.PLACE / name) for name in test_examples.NAMES]
    return any({*shlex.split(line)} <= {*words} for example in examples for words in example)


def python_blocks(path: Path) -> list[str]:
    return [block.text for block in blocks(path) if block.language == "python"]


WITH_COMMANDS = [path for path in DOCUMENTS if commands(path)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name; those that they show are taken from them."""
    for path in DOCUMENTS:
        for block in blocks(path):
            named = re.search(r"`([\w./]+)`:$", block.before)
            if named and block.language in ("yaml", "json", "python", "jinja", "text"):
                file = tmp_path / named[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text, encoding="utf-8")
    alpaca = [{"instruction": f"Add 1 to {n}.", "input": "", "output": str(n + 1)} for n in range(100)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    (tmp_path / "tweets.csv").write_text("Tweet text,text_label\nlate again,complaint\nthanks,no complaint\n")
    shutil.copytree(ROOT / "src" / "fmstune" / "assets" / "tiny_llama", tmp_path / "my_model")
    # the runner of a real command imports a format from the folder that it starts in
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def until_the_end() -> Iterator[contextlib.ExitStack]:
    """What is left when the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def small(line: str) -> list[str]:
    """The words of a command, made to take seconds.

    A command that would train a model of gigabytes is run as `check`: its weights are not here.
    """
    words = [word.replace(ON_THE_HUB, "./my_model") for word in shlex.split(line)[1:]]
    typed = arguments.parse_command_line(words)
    if isinstance(typed, arguments.HelpOrVersion) or typed.verb is not Verb.train or typed.hydra.cfg:
        return words
    if any(name in line for name in ("llama2_", "model=gpt_bigcode", "model=santacoder")):
        return ["check", *words]
    # a checkpoint of a short run is after its first step
    words = [re.sub(r"checkpoint-\d+", "checkpoint-1", word) for word in words]
    if "learning_rate=auto" in line:
        return [*words, *SMALL, *PROBED]
    steps = 5 if "debug=profile" in line else 2 if "training.resume" in line else 1
    return [*words, f"training.max_steps={steps}", *SMALL]


def is_sweep(line: str) -> bool:
    return "-m" in shlex.split(line)


def outputs(path: Path) -> Iterator[tuple[str, str]]:
    """The blocks after `<!-- output -->`, each with the command before it."""
    last = ""
    for block in blocks(path):
        if block.language == "bash":
            last = block.text.strip().splitlines()[-1]
        elif block.before == "<!-- output -->":
            yield last, block.text


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_commands_of_a_document_run(
    path: Path,
    folder: Path,
    fmstune: Callable[..., Result],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    until_the_end: contextlib.ExitStack,
) -> None:
    shown = dict(outputs(path))
    if path.name == "serving.md":
        hub = until_the_end.enter_context(served(Hub({}, writers={"hf_me": "me"})))
        use_in_this_process(hub, folder / "hf", monkeypatch, "hf_me")
    if path.name == "tracking.md":
        stores = request.getfixturevalue("empty_stores")
        shutil.copytree(stores, folder, dirs_exist_ok=True)
        shutil.copytree(stores / ".aim", folder / "experiments" / ".aim")
    if path.name == "models.md":
        run_python(path)
    for line in commands(path):
        if is_sweep(line) or ("launcher.num_processes=2" in line and is_an_example(line)):
            continue
        # what a chat is told from a pipe
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        if shlex.split(line)[1] == "serve" and "--engine" not in line:
            serve_and_stop(line)
            continue
        result = doctor(line, request) if "doctor" in line else fmstune(*small(line))
        assert result.code == 0, f"{line}\n{result.out}\n{result.err}"
        if line in shown:
            assert result.out == shown.pop(line), line
    assert not shown
    if path.name == "runs.md":
        run_python(path)
        assert (folder / "merged" / "model.safetensors").is_file()


def serve_and_stop(line: str) -> None:
    """Run a server until it listens, and interrupt it."""
    out = Path("serve.out")
    with out.open("w") as file:
        process = forked.Process([*shlex.split(line), "--port=0"], os.environ, dict.fromkeys((1, 2), file.fileno()))
    while "  page http" not in out.read_text():
        assert process.poll() is None, out.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130, out.read_text()


def run_python(path: Path) -> None:
    """The Python of a document, as one program."""
    names: dict[str, Any] = {}
    for code in python_blocks(path):
        exec(compile(code, str(path), "exec"), names)


def doctor(line: str, request: pytest.FixtureRequest) -> Result:
    """`doctor` has no runner: it is a module of its own, and without flags says the same wherever it stands."""
    if line == "fmstune doctor":
        return Result(0, request.getfixturevalue("doctor_said"), "")
    done = forked.run([sys.executable, "-m", "fmstune.cli.doctor", *shlex.split(line)[2:]])
    return Result(done.returncode, done.stdout, done.stderr)


def test_the_documents_hold_as_many_commands_as_they_did() -> None:
    assert sum(len(commands(path)) for path in DOCUMENTS) >= COMMANDS_AT_LEAST


def test_the_sweeps_of_the_documents_are_these_and_are_read_as_sweeps() -> None:
    sweeps = [line for path in DOCUMENTS for line in commands(path) if is_sweep(line)]
    assert sweeps == [
        "fmstune -m peft=lora,full training.learning_rate=1e-3,1e-2",
        "fmstune -m peft=lora,full training.learning_rate=1e-3,1e-2 output_dir=sweep",
        "fmstune -m peft=lora training.learning_rate=1e-3,5e-3,1e-2 seed=1,2,3 output_dir=rates",
        "fmstune -m --resume rates",
        "fmstune -m peft=lora peft.r=4,16 training.learning_rate=3e-4,1e-3,3e-3,1e-2 training.eval_strategy=steps"
        " training.eval_steps=10 sweep.stop_losers=true output_dir=short",
        "fmstune -m hydra/sweeper=optuna hydra.sweeper.n_trials=8 peft=lora"
        " 'training.learning_rate=tag(log,interval(1e-4,1e-1))' 'peft.r=choice(4,8,16)' output_dir=search",
        "fmstune -m --resume search hydra.sweeper.n_trials=12",
        "fmstune -m search=lora_capacity output_dir=capacity",
        "fmstune -m hydra/sweeper=optuna search=lora_rates output_dir=lora_rates",
        "fmstune -m hydra/launcher=joblib hydra.launcher.n_jobs=2 peft=lora seed=1,2,3,4 output_dir=seeds",
    ]
    for line in sweeps:
        typed = arguments.parse_command_line(shlex.split(line)[1:])
        swept = swept_keys(with_search_files(typed.overrides, typed.hydra))
        assert swept <= {"peft", "peft.r", "peft.target_modules", "seed", "training.learning_rate"}
        assert swept or "--resume" in line


def test_other_command_lines_are_targets_of_the_makefile_or_listed_here() -> None:
    makefile = (ROOT / "Makefile").read_text()
    others = [line for path in DOCUMENTS for line in lines(path) if not line.startswith("fmstune")]
    assert others
    for line in others:
        if line.startswith("make "):
            assert re.search(rf"^{line.removeprefix('make ')}:", makefile, re.MULTILINE), line
        else:
            assert line in PIP_LINES + SHELL_LINES


def test_the_extras_of_the_install_lines_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {found for line in PIP_LINES for found in re.findall(r"\[([\w-]+)\]", line)} == set(extras)


def test_the_page_on_installing_has_every_extra() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("```")[0]
    first_column = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert {name for cell in first_column for name in re.findall(r"`([\w-]+)`", cell)} == set(extras)


def test_python_of_the_documents_compiles() -> None:
    codes = [(path, code) for path in DOCUMENTS for code in python_blocks(path)]
    assert len(codes) >= 5
    for path, code in codes:
        compile(code, str(path), "exec")


@pytest.mark.slow
def test_generated_tables_are_fresh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    assert importlib.import_module("make_docs").main() == 0, capsys.readouterr().out


def test_relative_links_resolve() -> None:
    count = 0
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            count += 1
            file, _, anchor = target.partition("#")
            place = path.parent / file if file else path
            assert place.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(place), f"{path.name}: {target}"
    assert count >= 14


def anchors(path: Path) -> set[str]:
    """The anchors that a renderer gives the headings."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_no_text_of_the_repository_holds_a_path_of_this_machine() -> None:
    general = {"/", "/home", "/opt", "/srv", "/tmp", "/usr"}
    places = {str(ROOT), str(ROOT.parent), str(Path.home())} - general
    files = [path for path in repository_files() if path.suffix in TEXT_SUFFIXES or path.name == "Makefile"]
    assert len(files) > 50
    holding = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in files
        for place in places
        if re.search(rf"{re.escape(place)}(?![\w-])", path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert holding == []


def repository_files() -> list[Path]:
    """The project's own folders; environments, caches and builds are not its text."""
    folders = ("benchmarks", "conf", "docs", "examples", "scripts", "src", "tests", "tools")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in (*ROOT.iterdir(), *inside) if path.is_file() and "egg-info" not in str(path)]


def test_a_shipped_name_wins_over_the_same_name_in_a_users_folder(
    tmp_path: Path, fmstune: Callable[..., Result]
) -> None:
    """As docs/extending.md and docs/job.md say."""
    for name in ("tiny_llama", "mine"):
        file = tmp_path / "my_conf" / "model" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# A user's own.\npath: ./elsewhere\n")
    shown = ("--config-dir", "my_conf", "--cfg", "job", "--package", "model.path")
    assert fmstune(*shown, "model=tiny_llama").out.splitlines()[-1] == "package:tiny_llama"
    assert fmstune(*shown, "model=mine").out.splitlines()[-1] == "./elsewhere"
