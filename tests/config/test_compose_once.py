"""A plain job is composed once; what is composed, and how often it runs, is as Hydra alone has it."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fmstune.config import compose as composition
from fmstune.config import compose_once

WORDS = ("peft=lora", "++training.learning_rate=1e-3", "++training.max_steps=3")

SWEEP = """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      ++training.seed: 1,2
"""


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[RunMode]:
    """The mode of each job that Hydra composes."""
    seen: list[RunMode] = []
    load = ConfigLoaderImpl._load_configuration_impl

    def counted(self: ConfigLoaderImpl, *args: Any, **words: Any) -> DictConfig:
        config = load(self, *args, **words)
        seen.append(words["run_mode"])
        return config

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    # Hydra reads the words from there
    monkeypatch.setattr("sys.argv", ["fmstune"])
    return seen


@pytest.fixture
def composed() -> list[dict[str, Any]]:
    """What the task is called with, as plain data."""
    return []


def compose(words: tuple[str, ...], into: list[dict[str, Any]]) -> None:
    def task(config: DictConfig) -> None:
        into.append({**composition.tree(config), "mode": HydraConfig.get().mode})

    composition.compose(words, task)


def test_a_plain_job_is_composed_once_and_as_hydra_composes_it(
    loads: list[RunMode], composed: list[dict[str, Any]]
) -> None:
    compose(WORDS, composed)
    assert loads == [RunMode.RUN]
    with hydra.initialize_config_module("fmstune.conf", version_base="1.3"):
        alone = composition.tree(hydra.compose("job", list(WORDS)))
    assert composed == [{**alone, "mode": RunMode.RUN}]


def test_a_shipped_file_is_parsed_once_and_each_composition_has_its_own_copy(
    composed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parsed: list[str] = []
    load = OmegaConf.load

    def counted(file: Any) -> Any:
        parsed.append(str(file.name))
        return load(file)

    monkeypatch.setattr("sys.argv", ["fmstune"])
    monkeypatch.setattr(OmegaConf, "load", counted)
    monkeypatch.setattr(compose_once, "_files", {})
    composition.compose(WORDS, lambda config: composed.append(composition.tree(config)))
    assert "job.yaml" in {Path(name).name for name in parsed}
    assert len(parsed) == len(set(parsed)) == len(compose_once._files)
    composition.compose((*WORDS, "seed=7"), lambda config: composed.append(composition.tree(config)))
    assert len(parsed) == len(set(parsed))
    assert composed[1] == {**composed[0], "seed": 7} != composed[0]


def test_a_users_file_is_read_anew(composed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for seed in (1, 2):
        file.write_text(f"# @package _global_\nseed: {seed}\n")
        compose(("--config-dir", str(tmp_path / "conf"), "experiment=mine"), composed)
    assert [one["seed"] for one in composed] == [1, 2]


def test_each_point_of_a_sweep_is_composed_with_its_own_values(composed: list[dict[str, Any]], tmp_path: Path) -> None:
    compose(("-m", *WORDS, "++training.seed=1,2", f"hydra.sweep.dir={tmp_path}"), composed)
    assert [one["training"]["seed"] for one in composed] == [1, 2]
    assert {one["mode"] for one in composed} == {RunMode.MULTIRUN}


def test_a_sweep_of_one_point_is_still_a_sweep(composed: list[dict[str, Any]], tmp_path: Path) -> None:
    compose(("-m", *WORDS, f"hydra.sweep.dir={tmp_path}"), composed)
    assert [one["mode"] for one in composed] == [RunMode.MULTIRUN]


def test_a_file_may_say_that_the_job_is_a_sweep(composed: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "seeds.yaml").write_text(SWEEP)
    words = ("--config-dir", str(tmp_path / "conf"), "experiment=seeds", f"hydra.sweep.dir={tmp_path}")
    compose(words, composed)
    assert [one["training"]["seed"] for one in composed] == [1, 2]
