"""TRL's names that it does not promise to keep, and the change that makes its fused LM head fast on a CPU."""

from transformers import PreTrainedConfig
from trl import SFTTrainer

from fmstune.upstream import explain_missing_names, require_attributes

OVERRIDDEN = ("_prepare_dataset", "_metrics", "_total_train_tokens")
"""Private names of SFTTrainer that fmstune's trainer overrides or reads."""

with explain_missing_names("trl"):
    import trl.trainer.utils
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
    from trl.trainer.utils import add_fused_lm_head as add_fused_lm_head
    from trl.trainer.utils import global_then_local_main_first as global_then_local_main_first

    trl.trainer.utils._use_triton  # noqa: B018 (replaced below)
    require_attributes(SFTTrainer, *OVERRIDDEN)


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
