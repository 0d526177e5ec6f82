"""TRL's fused LM head and loss, fast on a CPU too."""

import trl.trainer.utils


def score_supervised_positions_on_cpu() -> None:
    """Let TRL's fused LM head skip masked positions on the CPU, as it does on a GPU.

    TRL 1.16 (trainer/utils.py, `_fused_forward`) compacts the positions only where Triton runs, because a changing
    shape would recompile on Neuron; on a CPU scoring every position costs 5 to 15 times as much.
    """
    triton = trl.kernels.chunked_logprob._use_triton
    trl.trainer.utils._use_triton = lambda device: device.type == "cpu" or triton(device)
