"""One of two processes that run many jobs one after the other: the libraries are imported once for all of them.

`torchrun --nproc-per-node=2 -m tests.rank JOB...` writes how each ended into CODE.<rank> beside its job.yaml.
"""

import sys
import traceback
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState

from fmstune import ranks, runner


def run(job_file: Path) -> int:
    """The runner as it is, in a process that has run other jobs before."""
    sharding_of_the_former_job()
    try:
        return runner.main([str(job_file)])
    except BaseException:
        traceback.print_exc()
        raise


def sharding_of_the_former_job() -> None:
    """What a fresh process would not have: accelerate's state, and what its plugins left in the environment."""
    import os

    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


if __name__ == "__main__":
    for job_file in sys.argv[1:]:
        code = run(Path(job_file))
        Path(job_file).with_name(f"CODE.{ranks.here().number}").write_text(str(code))
        dist.barrier()
    dist.destroy_process_group()
