"""The files that ship with fmstune, named `package:NAME`: the tiny model, the complaints rows."""

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


def _suggestion(name: str, shipped: list[str]) -> str:
    return did_you_mean(name, shipped) or "; what ships is " + ", ".join(s for s in shipped if "/" not in s)
