"""The wheel holds all that it needs: groups, assets; installed elsewhere, it composes and trains."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = folder.glob("*.whl")
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
    assert len(groups) > 20
    assert len(assets) >= 7
    assert (groups | assets) - names == set()
    assert not [name for name in names if "test" in name]
    assert wheel.stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment that holds the wheel and what it requires, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, script = (tmp_path / "env" / "bin" / name for name in ("python", "fmstune"))
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    # torch by itself first: asked for by another package, pip may take a build with CUDA
    subprocess.run([*install, "torch"], check=True)
    subprocess.run([*install, str(wheel)], check=True)
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
