"""The console script: `fmstune …`, or `python -m fmstune …`."""

import sys
from typing import NoReturn

from fmstune.launch import head_start


def main() -> NoReturn:
    """Do what the command line says; where it asks for several processes, their launcher is imported meanwhile."""
    if head_start.is_likely(sys.argv[1:]):
        head_start.give()
    # here and not above: its own imports take a while too
    from fmstune.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
