"""The wheel holds all that it needs: groups, assets; installed elsewhere, it composes and trains."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from tests import ROOT
from tests.conftest import MadeOnce

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_sub_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {*find_packages(str(ROOT / "src")), "fmstune.conf"}


def test_the_version_is_said_once_more_in_the_package() -> None:
    import fmstune

    assert fmstune.__version__ == PROJECT["project"]["version"]


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]]
    assert {name for name in names if name not in pins} == set()
    assert pins["torch"] == "2.13.0"


NOT_RUN_WITHOUT_A_GPU = {"bitsandbytes", "flash-attn", "liger-kernel"}


def test_every_floor_is_a_version_that_the_tests_run_with() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").splitlines()
    pins = {Requirement(line).name: Requirement(line).specifier for line in lines if not line.startswith("#")}
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [Requirement(text) for texts in (PROJECT["project"]["dependencies"], *extras) for text in texts]
    floors = {
        (canonicalize_name(one.name), bound.version)
        for one in required
        for bound in one.specifier
        if bound.operator == ">=" and one.name not in NOT_RUN_WITHOUT_A_GPU
    }
    assert len(floors) > 30
    assert {name: floor for name, floor in floors if not pins[name].contains(floor)} == {}


def test_accelerate_that_saves_one_slice_of_an_adapter_is_refused() -> None:
    """Releases before 1.15 lack huggingface/accelerate pull request 4206."""
    (accelerate,) = (text for text in PROJECT["project"]["dependencies"] if text.startswith("accelerate"))
    assert not Requirement(accelerate).specifier.contains("1.14.0")
    assert Requirement(accelerate).specifier.contains("1.15.0")


@pytest.fixture(scope="session")
def wheel(made_once: MadeOnce) -> Path:
    def build(folder: Path) -> None:
        words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        subprocess.run(words, check=True, capture_output=True, text=True)

    (built,) = made_once("wheel", build).glob("*.whl")
    return built


@pytest.mark.slow
def test_every_yaml_and_asset_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    groups = {f"fmstune/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    assets = {
        str(p.relative_to(ROOT / "src"))
        for p in (ROOT / "src/fmstune/assets").rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    assets |= {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.jinja")}
    assert len(groups) > 20
    assert len(assets) >= 7
    assert (groups | assets) - names == set()
    assert not [name for name in names if "test" in name]
    assert wheel.stat().st_size < 5_000_000


def requirements(wheel: Path) -> list[str]:
    """What the wheel says that it requires."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def needed(texts: Sequence[str]) -> Iterator[metadata.Distribution]:
    """The distributions of this environment that requirements come to, and what those require; raises if one is not."""
    waiting, seen = [(text, "") for text in texts], set[tuple[str, str]]()
    while waiting:
        text, wanted_by = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted_by}):
            continue
        distribution = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version, prereleases=True), text
        for extra in {"", *requirement.extras}:
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                waiting += [(text, extra) for text in distribution.requires or ()]
                if not extra:
                    yield distribution


def link(distributions: Iterable[metadata.Distribution], place: Path) -> None:
    """Lay links to all files of these, as pip would have laid the files: one to a package, which is of one alone."""
    for distribution in distributions:
        names = [str(file) for file in distribution.files or () if ".." not in file.parts]  # no scripts
        packages = {top for name in names if (top := name.partition("/")[0]) + "/__init__.py" == name}
        for name in (*packages, *(name for name in names if name.partition("/")[0] not in packages)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(Path(str(distribution.locate_file(name))))


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment that holds the wheel and what it says that it requires, and nothing else.

    Both environments of the Makefile are installed by pip from an index; this one takes their files.
    """
    venv.create(tmp_path / "env", symlinks=True)
    python, script = (tmp_path / "env" / "bin" / name for name in ("python", "fmstune"))
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    found = list(needed(requirements(wheel)))
    assert 40 < len(found) < 90
    link(found, packages)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    assert "pytest" not in {path.name for path in packages.iterdir()}
    away = tmp_path / "away"
    away.mkdir()

    def run(*words: str | Path) -> str:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(words, cwd=away, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import fmstune, fmstune.conf; print(fmstune.__file__, fmstune.conf.__path__[0])").split()
    assert all(Path(place).is_relative_to(tmp_path / "env") for place in where)
    assert "path: package:tiny_llama" in run(script, "--cfg", "job")
    assert "prompt_tuning" in run(script, "--help")
    words = ("training.max_steps=2", "data.max_rows=16", "evaluation.max_rows=4", "output_dir=run")
    assert "exact match" in run(script, *words)
    assert (away / "run" / "model" / "model.safetensors").is_file()
