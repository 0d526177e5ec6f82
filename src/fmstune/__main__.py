"""The console script: `fmstune …`, or `python -m fmstune …`."""

import sys
from typing import NoReturn

from fmstune.exit_codes import INTERRUPTED
from fmstune.launch import early


def main() -> NoReturn:
    """Do what the command line says, see `fmstune.cli.main`; what a check needs is imported meanwhile by its runner."""
    try:
        with early.runner_for(sys.argv[1:]):
            # here and not above: it imports Hydra, which takes a process as long as composing a job
            from fmstune.cli.main import main as command

            command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
