"""Places that a user names: files of their own, and those that ship with fmstune as `package:NAME`."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from fmstune.errors import UserError, did_you_mean

PREFIX = "package:"


def resolve(place: str) -> str:
    """The path of what `package:NAME` names; any other place comes back as it is."""
    if not place.startswith(PREFIX):
        return place
    name = place.removeprefix(PREFIX).strip("/")
    # a wheel is unpacked on installation, so the assets are plain files
    assets = Path(str(resources.files("fmstune"))) / "assets"
    shipped = sorted(str(path.relative_to(assets)) for path in assets.rglob("*"))
    if name not in shipped:
        raise UserError(f"{place}: no such file ships with fmstune{_suggestion(name, shipped)}")
    return str(assets / name)


def absent(name: str, place: str) -> Iterator[str]:
    """Why the file that the field or flag `name` needs is not there; nothing where it is."""
    try:
        path = Path(resolve(place)).expanduser()
    except UserError as err:
        yield f"{name}: {err}"
        return
    if not path.is_file():
        yield f"{name}: no file {path}{did_you_mean_beside(path)}"


def did_you_mean_beside(path: Path) -> str:
    """A suggestion from what stands in the same folder."""
    return did_you_mean(path.name, [near.name for near in path.parent.iterdir()] if path.parent.is_dir() else [])


def _suggestion(name: str, shipped: list[str]) -> str:
    return did_you_mean(name, shipped) or "; what ships is " + ", ".join(s for s in shipped if "/" not in s)
