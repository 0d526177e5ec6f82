"""TRL's names that it does not promise to keep, and the change that makes its fused LM head fast on a CPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedConfig
from trl import SFTTrainer

from fmstune.upstream import explain_missing_names, require_attributes

OVERRIDDEN = ("_prepare_dataset", "_set_signature_columns_if_needed", "_metrics", "_total_train_tokens")
"""Private names of SFTTrainer that fmstune's trainer overrides or reads."""

with explain_missing_names("trl"):
    import trl.kernels.chunked_logprob
    import trl.trainer.utils
    from trl.data_utils import _pack_bfd
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
    from trl.trainer.utils import add_fused_lm_head as add_fused_lm_head
    from trl.trainer.utils import global_then_local_main_first as global_then_local_main_first

    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE  # noqa: B018 (replaced below)
    trl.trainer.utils._use_triton  # noqa: B018 (replaced below)
    for _name in ("_forward_kernel", "_backward_kernel", "_addmm_fp32"):
        getattr(trl.kernels.chunked_logprob, _name)
    require_attributes(SFTTrainer, *OVERRIDDEN)

pack_best_fit = _pack_bfd
"""TRL's packing of one table of lists, which `trl.pack_dataset` maps over a data set."""


def score_supervised_positions_on_cpu() -> None:
    """Let TRL's fused LM head skip masked positions on the CPU, as it does on a GPU.

    TRL 1.16 (trainer/utils.py, `_fused_forward`) compacts the positions only where Triton runs, because a changing
    shape would recompile on Neuron; on a CPU scoring every position costs 5 to 15 times as much.
    """
    trl.trainer.utils._use_triton = lambda device: device.type == "cpu" or _use_triton(device)


def name_experts(config: PreTrainedConfig) -> None:
    """Let TRL read the number of experts from a configuration that has another name for it, as Granite 4's has.

    TRL 1.16 (trainer/utils.py, `_fused_forward`) reads `num_experts` alone for the router's auxiliary loss.
    """
    if not hasattr(config, "num_experts") and getattr(config, "num_local_experts", None):
        kind = type(config)
        kind.attribute_map = {**kind.attribute_map, "num_experts": "num_local_experts"}


@contextmanager
def touched_logits(vocabulary: int) -> Iterator[None]:
    """Let the tile of TRL's fused LM head have the columns that are written to: a CPU gives no page for the others."""
    whole = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
    with patch.object(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", min(whole, vocabulary)):
        yield


class _NoKernel:
    """Stands for a kernel of Triton where nothing is computed."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def without_triton_kernels() -> Iterator[None]:
    """Let TRL's fused LM head on tensors without numbers hold what it holds on CUDA, whose kernels keep nothing."""
    module = trl.kernels.chunked_logprob
    names = {
        "_use_triton": lambda device: True,
        "_forward_kernel": _NoKernel(),
        "_backward_kernel": _NoKernel(),
        "_addmm_fp32": lambda acc, a, b: None,
        # for the size of a grid; not there without the package
        "triton": SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
    }
    with ExitStack() as until_the_end:
        for name, stand_in in names.items():
            until_the_end.enter_context(patch.object(module, name, stand_in, create=True))
        yield
