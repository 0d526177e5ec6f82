"""The console script: `fmstune …`, or `python -m fmstune …`."""

from fmstune.cli.main import main

if __name__ == "__main__":
    main()
