# SPDX-License-Identifier: Apache-2.0
"""Part a of the proof on a GPU: whether everything that fmstune offers runs there, and gives what it must give."""

import importlib.util
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from gpu_jobs import Failed, Place, Skipped, finish, furthest, needs_field, needs_gpu, run, start, summary, train, words

Found = dict[str, Any]
BF16 = ("model.dtype=bfloat16",)
CLOSE = 0.02
"""Relative difference of losses and gradient norms that bfloat16 may make; on a CPU they are float32."""


def _learns(found: Found) -> Found:
    losses = [line["loss"] for line in found["log"]]
    if not all(map(math.isfinite, losses)):
        raise Failed(f"losses are {losses}")
    return {"first_loss": losses[0], "last_loss": losses[-1], "peak_bytes": found["peak_memory_bytes"]}


def bf16_lora(at: Place) -> Found:
    """LoRA on a bfloat16 base."""
    return _learns(train(at, "bf16_lora", "peft=lora", *BF16))


def bf16_full(at: Place) -> Found:
    """Full tuning in bfloat16."""
    return _learns(train(at, "bf16_full", "peft=full", *BF16))


def prompt_tuning(at: Place) -> Found:
    """Prompt tuning in bfloat16."""
    return _learns(train(at, "prompt_tuning", "peft=prompt_tuning", *BF16))


def dora(at: Place) -> Found:
    """DoRA in bfloat16."""
    return _learns(train(at, "dora", "peft=dora", *BF16))


def qlora_and_its_merge(at: Place) -> Found:
    """QLoRA, and the merge of its adapter into the base loaded whole."""
    needs_gpu(at, "bitsandbytes' 4-bit products")
    found = _learns(train(at, "qlora", "peft=lora", "model.quantization={load_in_4bit: true}"))
    run(at, "qlora_merge", ["merge", "--model", str(at.folder / "qlora"), "--out", str(at.folder / "merged")])
    if not list((at.folder / "merged").glob("*.safetensors")):
        raise Failed("the merged folder has no weights")
    return found


def packing_audit_sdpa(at: Place) -> Found:
    """Packed documents do not see each other under SDPA."""
    return _packed(at, "sdpa")


def packing_audit_varlen(at: Place) -> Found:
    """Packed documents do not see each other under torch's varlen attention."""
    return _packed(at, "varlen")


def packing_audit_flash_attention_2(at: Place) -> Found:
    """Packed documents do not see each other under FlashAttention-2."""
    needs_gpu(at, "FlashAttention-2")
    if importlib.util.find_spec("flash_attn") is None:
        raise Skipped("the package flash-attn is not installed")
    return _packed(at, "flash_attention_2")


def _packed(at: Place, attention: str) -> Found:
    precision = BF16 if at.on_gpu else ()
    more = ("peft=lora", "training.packing=true", f"model.attention={attention}", "model.special_tokens={}")
    found = train(at, f"packed_{attention}", *more, *precision)
    audit = found["packing"]
    if audit is None or audit["difference"] > audit["tolerance"]:
        raise Failed(f"the audit found {audit}")
    return {"difference": audit["difference"], "mixed": audit["mixed_difference"]}


def prefix_sharing(at: Place) -> Found:
    """Losses and gradient norms of shared beginnings are those of padded batches."""
    needs_field("data.prefix_sharing")
    # the same rows in the same batches
    same = ("peft=lora", "peft.lora_dropout=0", "training.train_sampling_strategy=sequential")
    return _same(at, "prefix_sharing", (*same, "data.prefix_sharing=true"), same)


def activation_checkpointing(at: Place) -> Found:
    """Losses and gradient norms with recomputed activations are those without."""
    return _same(at, "checkpointing", ("peft=lora", "training.activation_checkpointing=true"), ("peft=lora",))


def compiled(at: Place) -> Found:
    """Losses under torch.compile are those without, and no saved name says that it was compiled."""
    backend = "inductor" if at.on_gpu else "aot_eager"
    more = ("peft=lora", "training.torch_compile=true", f"training.torch_compile_backend={backend}")
    found = _same(at, "compiled", more, ("peft=lora",))
    from safetensors import safe_open

    (file,) = (at.folder / "compiled" / "model").glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        if wrong := [name for name in weights.keys() if "_orig_mod" in name]:  # noqa: SIM118
            raise Failed(f"saved as {wrong[0]}")
    return found


def _same(at: Place, name: str, more: tuple[str, ...], plain: tuple[str, ...]) -> Found:
    own = train(at, name, *more)
    other = train(at, f"{name}_without", *plain)
    found = {key: furthest(own, other, key) for key in ("loss", "grad_norm")}
    if max(found.values()) > CLOSE:
        raise Failed(f"differs by {found}")
    return found


def fsdp2(at: Place) -> Found:
    """FSDP2 of one process."""
    return _learns(train(at, "fsdp2", "peft=lora", "launcher=fsdp", "launcher.num_processes=1"))


def fsdp1(at: Place) -> Found:
    """FSDP1 of one process."""
    needs_gpu(at, "FSDP1")
    return _learns(train(at, "fsdp1", "peft=lora", "launcher=fsdp1", "launcher.num_processes=1"))


def fsdp2_cpu_offload(at: Place) -> Found:
    """FSDP2 with shards and optimizer in the machine's memory."""
    needs_gpu(at, "there is nothing to offload from")
    more = ("peft=full", "launcher=fsdp", "launcher.num_processes=1", "launcher.cpu_offload=true")
    return _learns(train(at, "fsdp2_offload", *more))


def killed_and_resumed(at: Place) -> Found:
    """A run that is killed after its first checkpoint ends with the very weights of one that is not."""
    saves = ("peft=lora", "training.save_strategy=steps", "training.save_steps=4", "training.resume=auto")
    if at.on_gpu:
        # without it two runs of the same job differ in their last bits there
        saves += ("training.full_determinism=true",)
    whole = train(at, "whole", *saves, steps=40)
    argv = words(at, "killed", *saves, steps=40)
    process = start(at, "killed", argv)
    while not list((at.folder / "killed").glob("checkpoint-*/complete.json")) and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        finish(at, "killed", process)
        raise Failed("the run ended before it could be killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(at, "killed", argv)
    resumed = summary(at, "killed")
    if len(resumed["legs"]) != 2:
        raise Failed(f"the run has {len(resumed['legs'])} legs, and was killed once")
    if whole["weights_sha256"] != resumed["weights_sha256"]:
        raise Failed("the weights differ from those of the run that was not killed")
    return {"resumed_from_step": resumed["legs"][1]["from_step"]}


def generate_and_evaluate(at: Place) -> Found:
    """A tuned model answers and is evaluated in bfloat16."""
    train(at, "answers", "peft=lora", *BF16)
    place = ["--model", str(at.folder / "answers"), "--dtype", "bfloat16", "--device", at.device]
    answer = run(at, "generate", ["generate", *place, "--text", "### Text: late again\n\n### Label:"])
    if not answer.strip():
        raise Failed("no answer")
    run(at, "evaluate", ["evaluate", *place, "data=complaints", "--max_rows", "16"])
    return {}


CHECKS: tuple[Callable[[Place], Found], ...] = (
    *(bf16_lora, bf16_full, packing_audit_varlen, packing_audit_sdpa, packing_audit_flash_attention_2, prefix_sharing),
    *(qlora_and_its_merge, killed_and_resumed, activation_checkpointing, fsdp2, fsdp1, fsdp2_cpu_offload),
    *(prompt_tuning, dora, generate_and_evaluate, compiled),
)
"""All checks, in order of worth."""
