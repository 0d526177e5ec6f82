"""`fmstune serve --engine vllm` prints the commands for this model, and runs them where vLLM is installed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig

from fmstune.config.after_training.serving import Serving, ServingEngine
from fmstune.errors import UserError
from fmstune.models.tuned import Place
from fmstune.serving.vllm_command import vllm_commands
from tests.conftest import Result
from tests.fixtures import forked

ASKED = Serving(model="run/model", engine=ServingEngine.vllm, port=8001)
LISTENS = ["--host", "127.0.0.1", "--port", "8001", "--dtype", "auto"]


def adapter(**settings: object) -> str:
    LoraConfig(task_type="CAUSAL_LM", r=12, target_modules=["q_proj"], **settings).save_pretrained("run/model")
    Path("run/model/adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return "run/model"


def test_an_adapter_is_exported_and_served_on_its_base() -> None:
    found = vllm_commands(ASKED, Place(adapter(), "org/base", "abc"))
    assert found.export is not None and (found.export.model, found.export.out) == (("run/model",), "run/vllm_lora")
    lora = ["--tokenizer", "run/vllm_lora", "--enable-lora", "--max-lora-rank", "16"]
    lora += ["--lora-modules", "tuned=run/vllm_lora", "--served-model-name", "base", "--revision", "abc"]
    assert found.serve == ["vllm", "serve", "org/base", *lora, *LISTENS]
    # what its answers end with, where its base does not know it
    Path("run/model/generation_config.json").write_text("{}")
    told = vllm_commands(ASKED, Place("run/model", "org/base")).serve
    assert told[3:7] == ["--tokenizer", "run/vllm_lora", "--generation-config", "run/vllm_lora"]
    Path("run/vllm_lora").mkdir()
    assert vllm_commands(ASKED, Place("run/model", "org/base", "abc")).export is None


def test_a_whole_model_is_served_as_it_is() -> None:
    found = vllm_commands(ASKED, Place("merged", None))
    assert found == (None, ["vllm", "serve", "merged", "--served-model-name", "tuned", *LISTENS])


def test_an_adapter_that_vllm_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="--engine vllm_lora: run/model is DoRA; merge it instead"):
        vllm_commands(ASKED, Place(adapter(use_dora=True), "org/base"))


@pytest.mark.slow
def test_where_vllm_is_not_installed_the_commands_are_printed(fmstune: Callable[..., Result], tuned: Path) -> None:
    done = fmstune("serve", str(tuned), "--engine=vllm")
    assert done.code == 0
    merge, serve = done.out.splitlines()
    assert merge == f"fmstune merge --model {tuned}/model --export vllm_lora --out {tuned}/vllm_lora"
    assert serve.startswith("vllm serve ") and f"tuned={tuned}/vllm_lora" in serve
    assert "vLLM is not installed here" in done.err


@pytest.mark.slow
def test_where_vllm_is_installed_it_serves_the_exported_adapter_with_the_key(tuned: Path) -> None:
    """A program of that name stands in for vLLM, which does not run here."""
    Path("vllm").mkdir()
    Path("vllm/__init__.py").touch()
    Path("bin").mkdir()
    program = Path("bin/vllm")
    program.write_text('#!/bin/sh\necho "$VLLM_API_KEY $@" > served.txt\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}", "FMSTUNE_API_KEY": "k"}
    Path("own").mkdir()
    for name in ("model", "job.yaml", "summary.json"):
        (Path("own") / name).symlink_to(tuned / name)
    done = forked.run([forked.SCRIPT, "serve", "own", "--engine=vllm"], env)
    assert done.returncode == 0, done.stderr
    assert Path("served.txt").read_text().startswith("k serve ")
    assert "--generation-config own/vllm_lora" in Path("served.txt").read_text()
    ends = [json.loads(Path(f"own/{place}/generation_config.json").read_text()) for place in ("vllm_lora", "model")]
    assert ends[0]["eos_token_id"] == ends[1]["eos_token_id"] and len(ends[0]["eos_token_id"]) == 2
    assert json.loads(Path("own/vllm_lora/adapter_config.json").read_text())["peft_type"] == "LORA"
