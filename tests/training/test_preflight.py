"""What the runner checks of its surroundings; tests/bad_inputs has the messages about a job."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import http_backoff

from fmstune.config.job import Device
from fmstune.errors import UserError
from fmstune.models import load
from fmstune.training import hub_internals, library_noise


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2)])
def test_the_first_number_of_openmp_counts(given: str, threads: int) -> None:
    assert library_noise.first_level(given) == threads


@pytest.mark.parametrize("given", ["abc", "0", "-1", ",2", "1.5"])
def test_a_number_of_threads_that_openmp_would_ignore_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"^OMP_NUM_THREADS must be a number of threads, got '{given}'; unset it, or "):
        library_noise.first_level(given)


def test_a_wrong_number_of_threads_ends_like_any_wrong_input(
    fmstune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    result = fmstune("modules")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "fmstune: error: OMP_NUM_THREADS must be a number of threads, got 'abc'; unset it, or set launcher.threads\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("peft=lora", "peft.rank_pattern={q_proj: 4}", "peft.alpha_pattern={layers.0.self_attn.v_proj: 4}"),
        ("peft=lora", "peft.trainable_token_indices=[1,2]", "peft.layers_to_transform=[0,1]"),
        ("peft=lora", "peft.init_lora_weights=pissa_niter_4", "evaluation.base=false"),
        ("peft=lora", "peft.init_lora_weights=gaussian"),
        ("peft=prompt_tuning", "peft.token_dim=96", "peft.num_transformer_submodules=1"),
        ("training.torch_compile_backend=eager", "training.torch_compile_mode=default"),
        ("training.metric_for_best_model=entropy", "training.greater_is_better=false", "training.eval_strategy=epoch"),
        ("training.save_strategy=best", "training.metric_for_best_model=loss", "training.eval_strategy=epoch"),
        ("training.eval_packing=true", "training.eval_strategy=steps"),
        ("training.dataloader_drop_last=true", "training.per_device_train_batch_size=4", "data.max_rows=4"),
        ("model.special_tokens.extra_special_tokens=['<user>']",),
    ],
)
def test_what_can_be_done_is_not_refused(fmstune: Callable[..., Any], words: tuple[str, ...]) -> None:
    result = fmstune("check", *words)
    assert result.code == 0, result.err
    assert result.out.endswith("no problems found\n")


def test_a_check_without_a_gpu_does_not_pass_what_needs_one(
    fmstune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "find_device", lambda asked: asked.value if asked is not Device.auto else "cpu")
    refused = fmstune("check", "launcher=fsdp1", "launcher.num_processes=2")
    assert (refused.code, refused.out) == (2, "")
    assert "launcher=fsdp1 needs GPUs, and the device is cpu; choose launcher=fsdp, or plan for GPUs" in refused.err
    assert fmstune("check", "launcher=fsdp1", "launcher.num_processes=2", "launcher.device=cuda").code == 0
    assert fmstune("check", "launcher=slurm", "launcher.fsdp_version=1", "launcher.num_processes=2").code == 0


def test_the_hub_is_not_tried_again_where_no_connection_comes_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would wait a second before the second try, and 23 in all; an answer that breaks off is tried again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_internals.fail_at_once_without_a_network()
    began = time.monotonic()
    with pytest.raises(Exception, match="refused") as raised:
        http_backoff("HEAD", "http://127.0.0.1:9/none")
    assert type(raised.value).__name__ == "ConnectError"
    assert time.monotonic() - began < 1
    kept = {kind.__name__ for kind in http_backoff.__kwdefaults__["retry_on_exceptions"]}
    assert {"TimeoutException", "ReadError"} <= kept
