"""How fmstune imports other libraries: quickly, and with an error that names a misfit version."""

import functools
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import FrameType, ModuleType, TracebackType
from typing import Any

from fmstune.errors import UserError

UNUSED = ("boto3", "scipy", "wandb")
"""For SageMaker (accelerate), object detection (transformers), model cards (TRL); a tracker imports wandb later."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without what is not used, and keep the garbage collector from what stays: 15 % of a short run.

    The libraries that train bring a million objects. The collector would look at all of them again and again, while
    they are imported and until the end of the process.
    """
    first, collects = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        with hide_unused_packages(), _few_distributions(), _bare_frames(), _listed_once():
            yield
    finally:
        if first:
            gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def hide_unused_packages() -> Iterator[None]:
    """Make these packages look not installed (None in `sys.modules`), which saves a sixth of the start of a run."""
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in UNUSED if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


class Distributions(Mapping[str, list[str]]):
    """The distributions of each package, as `packages_distributions` of importlib.metadata gives them.

    All are read only where a package has another name than its distribution.
    """

    def __init__(self, read_all: Callable[[], Mapping[str, list[str]]]) -> None:
        self._read_all = read_all

    def __getitem__(self, package: str) -> list[str]:
        from importlib import metadata

        try:
            return [metadata.distribution(package).name]
        except metadata.PackageNotFoundError:  # of another name than the package, or not installed
            return self._all[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _all(self) -> Mapping[str, list[str]]:
        return self._read_all()


@contextmanager
def _few_distributions() -> Iterator[None]:
    """Keep TRL 1.16 (trl/import_utils.py:25) from reading all that is installed, which is 7 % of the start of a run."""
    from importlib import metadata

    read_all = metadata.packages_distributions
    metadata.packages_distributions = lambda: Distributions(read_all)
    try:
        yield
    finally:
        metadata.packages_distributions = read_all


@contextmanager
def _bare_frames() -> Iterator[None]:
    """Keep torch 2.13 from reading the source of each operator's definition, and from searching for its module.

    It asks for a file and a line number (torch/_library/utils.py:45), and takes half a second for the lines around it,
    which it throws away; and for the module of a frame (torch/library.py:333), for which `inspect` looks at the files
    of all modules each time.
    """
    describe, find_module = inspect.getframeinfo, inspect.getmodule

    def describe_bare(frame: FrameType | TracebackType, context: int = 1) -> inspect.Traceback:
        return describe(frame, 0)

    def find_by_name(object: Any, _filename: str | None = None) -> ModuleType | None:
        known = object.f_globals.get("__name__", "") if isinstance(object, FrameType) else ""
        return sys.modules.get(known) or find_module(object, _filename)

    inspect.getframeinfo, inspect.getmodule = describe_bare, find_by_name
    try:
        yield
    finally:
        inspect.getframeinfo, inspect.getmodule = describe, find_module


@contextmanager
def _listed_once() -> Iterator[None]:
    """Let transformers 5 list the 550 folders of its models once, and not twice, and look at the end of each file.

    It keeps the last 128 lists alone (utils/import_utils.py:3162), and so finds none of them again. It looks for the
    last `__all__` of a file in each of its lines (:3120).
    """
    keep, restore = functools.lru_cache, ExitStack()

    def keep_all(maxsize: Any = 128, typed: bool = False) -> Any:
        if getattr(maxsize, "__name__", "") == "create_import_structure_from_path":
            names = maxsize.__globals__
            if (fetch := names.get("fetch__all__")) is not None:
                restore.callback(names.update, fetch__all__=fetch)
                names["fetch__all__"] = lambda text: fetch(text[text.rfind("\n__all__") + 1 :])
            return keep(None)(maxsize)
        return keep(maxsize, typed)

    functools.lru_cache = keep_all
    try:
        with restore:
            yield
    finally:
        functools.lru_cache = keep


@contextmanager
def explain_missing_names(library: str) -> Iterator[None]:
    """Turn a failed import of a library's private names into a UserError with the library's version and range."""
    try:
        yield
    except (ImportError, AttributeError) as err:
        # not at the top: it takes longer than what it is needed for so seldom
        from importlib.metadata import requires, version

        taken = [one for one in requires("fmstune") or () if one.startswith(library)]
        hint = f"install {taken[0] if taken else f'another version of {library}'}"
        text = f"does not have a private name that fmstune needs ({err}); {hint}"
        raise UserError(f"{library} {version(library)}", text) from err


def require_attributes(cls: type, *names: str, method: str = "__init__") -> None:
    """Raise AttributeError for a name that neither the class has nor this method of it sets."""
    codes = [getattr(vars(base).get(method), "__code__", None) for base in cls.__mro__]
    known = {name for code in codes if code is not None for name in code.co_names}
    for name in names:
        if not hasattr(cls, name) and name not in known:
            raise AttributeError(f"class {cls.__module__}.{cls.__qualname__} has no attribute {name!r}")
