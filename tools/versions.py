"""Print the installed version of each library that fmstune requires; --floors prints the lowest that it allows."""

import argparse
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors() -> dict[str, str]:
    """Return the lowest allowed version of each library, from all lists of pyproject.toml."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = {}
    for requirement in (text for texts in lists for text in texts):
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?\s*>=([\w.]+)", requirement)
        if match:
            found[match[1]] = match[2]
    return found


def main() -> None:
    """Print one `name==version` a line, which pip reads as constraints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floors", action="store_true", help="the lowest versions that pyproject.toml allows")
    lowest = floors()
    if not parser.parse_args().floors:
        for name in lowest:
            try:
                lowest[name] = version(name)
            except PackageNotFoundError:
                lowest[name] = "not installed"
    print("\n".join(f"{name}=={number}" for name, number in sorted(lowest.items())))


if __name__ == "__main__":
    main()
