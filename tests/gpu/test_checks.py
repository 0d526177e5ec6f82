"""What must run on a GPU, and give there what it must give; the proof (`make gpu-proof`) measures speed besides."""

import time
from pathlib import Path

import pytest
import torch

import gpu_checks
from gpu_jobs import Place, Skipped


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", gpu_checks.CHECKS, ids=lambda check: check.__name__)
def test_on_a_gpu(check, tmp_path: Path) -> None:
    try:
        check(Place("cuda", tmp_path, time.monotonic() + 500))
    except Skipped as err:
        pytest.skip(str(err))
