"""Which of the job's processes this one is, from the variables that torch's launchers set; torch-free."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Rank(NamedTuple):
    """One process among those that train together."""

    number: int  # from 0 over all machines
    local: int  # from 0 on this machine
    processes: int  # on all machines
    started: bool  # a launcher of several processes started this one

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.number == 0


def here(env: Mapping[str, str] | None = None) -> Rank:
    """This process; the only one where no launcher started it (torch's documentation, "torchrun", variables)."""
    env = os.environ if env is None else env
    number, local, processes = int(env.get("RANK", 0)), int(env.get("LOCAL_RANK", 0)), int(env.get("WORLD_SIZE", 1))
    return Rank(number, local, processes, started="RANK" in env)
