"""The house itself: sizes of rooms and modules, names that grep finds once, tests that stand where the code does."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests import ROOT

SOURCE, TESTS = ROOT / "src/fmstune", ROOT / "tests"
MODULES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE)
AT_TOP, IN_ROOM, LINES = 12, 20, 350

ENTRY = "main"
"""What each program of its own starts with."""

SMALL = 60
"""Lines up to which a module needs no file of tests of its own."""

TESTED_IN = {
    "checks/callbacks.py": "bad_inputs",
    "checks/data.py": "bad_inputs",
    "checks/fms.py": "bad_inputs",
    "checks/memory.py": "checks/test_memory_plan.py",
    "checks/model.py": "bad_inputs",
    "checks/peft.py": "bad_inputs",
    "checks/plan_inputs.py": "checks/test_memory_plan.py",
    "checks/requests.py": "bad_inputs",
    "checks/resume.py": "bad_inputs",
    "checks/training.py": "bad_inputs",
    "cli/composed.py": "cli/test_main.py",
    "cli/doctor.py": "cli/test_main.py",
    "cli/help.py": "cli/test_main.py",
    "cli/repeat.py": "cli/test_main.py",
    "cli/after_training.py": "bad_inputs",
    "cli/start_job.py": "cli/test_main.py",
    "cli/sweep.py": "cli/test_main.py",
    "config/after_training/serving.py": "config/test_requests.py",
    "config/first_aid/verbs.py": "cli/test_run_care.py",
    "config/groups.py": "config/first_aid/test_recipes.py",
    "config/hydra_internals.py": "config/test_compose.py",
    "config/choices.py": "config/test_freeze.py",
    "config/job.py": "config/test_freeze.py",
    "config/renamed_fields.py": "config/test_freeze.py",
    "evaluation/harness.py": "evaluation/test_score.py",
    "fork_server.py": "sweeps/test_warm.py",
    "launch/parent.py": "cli/test_main.py",
    "migrate/inference.py": "migrate/test_translate.py",
    "migrate/flags.py": "migrate/test_translate.py",
    "migrate/launcher.py": "migrate/test_translate.py",
    "migrate/tuning.py": "migrate/test_translate.py",
    "migrate/words.py": "migrate/test_translate.py",
    "models/adapter_targets.py": "models/test_shapes.py",
    "models/torch_internals.py": "models/memory_count/test_step.py",
    "models/trl_internals.py": "models/memory_count/test_step.py",
    "models/experts.py": "end_to_end/test_families.py",
    "models/tuned.py": "evaluation/test_ask.py",
    "serving/parity/endpoint.py": "serving/parity/test_prove.py",
    "serving/parity/plain.py": "serving/parity/test_prove.py",
    "serving/parity/reference.py": "serving/parity/test_prove.py",
    "serving/parity/training_rows.py": "serving/parity/test_prove.py",
    "training/objectives/base.py": "training/test_objectives.py",
    "training/objectives/sft.py": "training/test_objectives.py",
    "training/planning.py": "training/test_preflight.py",
    "training/row_checks.py": "training/test_preflight.py",
    "serving/api_answers.py": "serving/test_serve.py",
    "serving/app.py": "serving/test_serve.py",
    "serving/questions.py": "serving/test_serve.py",
    "serving/served_models.py": "serving/test_serve.py",
    "serving/typed_lines.py": "serving/test_talk.py",
    "runs/manifest.py": "runs/test_checkpoints.py",
    "runs/differences.py": "training/test_reproduce.py",
    "runs/report/document.py": "runs/report",
    "runs/report/run_report.py": "runs/report",
    "training/figures.py": "training/test_run.py",
    "training/pipeline.py": "training/test_run.py",
    "training/trackers/aim.py": "training/test_tracking.py",
    "training/trackers/base.py": "training/test_tracking.py",
    "training/trackers/mlflow.py": "training/test_tracking.py",
}
"""Modules whose tests stand elsewhere, as they are of several modules at once."""


OF_OTHER_SCOPE = {
    "data/test_imports.py",
    "data/test_show_html.py",
    "training/test_arguments.py",
    "runs/report/test_reports.py",
    "runs/report/test_html_page.py",
}
"""Tests of a whole room, or of one function with many cases."""


def inside(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_there_are_few_rooms_and_few_modules_outside_of_them() -> None:
    assert len([room for room in ROOMS if room.parent == SOURCE]) <= AT_TOP
    modules = {path.name for path in SOURCE.glob("*.py")} - {"__init__.py"}
    assert len(modules) <= AT_TOP, modules


@pytest.mark.parametrize("room", ROOMS, ids=inside)
def test_a_room_holds_few_modules_and_says_in_one_sentence_what_it_is_for(room: Path) -> None:
    assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= IN_ROOM
    (sentence,) = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(sentence, ast.Expr) and isinstance(sentence.value, ast.Constant)
    said = sentence.value.value
    assert isinstance(said, str) and said.endswith(".") and ". " not in said


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {inside(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_a_public_function_is_found_by_its_name() -> None:
    """No two of them share one; methods are named beside their class."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != ENTRY:
                places[node.name].append(inside(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_tests_of_a_room_are_named_after_its_modules() -> None:
    homeless = []
    for path in TESTS.rglob("test_*.py"):
        folder, module = path.relative_to(TESTS).parent, path.name.removeprefix("test_")
        if folder.parts[:1] in ((), ("project",), ("end_to_end",), ("bad_inputs",), ("gpu",)) and folder.parts:
            continue
        # a package, such as a room within a room, may have one too
        if not (SOURCE / folder / module).is_file() and not (SOURCE / folder / module.removesuffix(".py")).is_dir():
            homeless.append(path.relative_to(TESTS).as_posix())
    assert [name for name in homeless if name not in OF_OTHER_SCOPE] == []


def test_a_module_has_tests_under_its_name_or_it_is_said_where() -> None:
    without = [
        inside(path)
        for path in MODULES
        if len(path.read_text(encoding="utf-8").splitlines()) > SMALL
        and not (TESTS / path.relative_to(SOURCE).parent / f"test_{path.name}").is_file()
    ]
    assert [name for name in without if name not in TESTED_IN] == []
    assert [place for place in TESTED_IN.values() if not (TESTS / place).exists()] == []
