"""The parts of Hydra 1.3 and of OmegaConf 2.3 that are not their public interface; an import names what is missing."""

import contextlib
import copy
import os
import pickle
import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from fmstune.config.defaults import PROVIDER
from fmstune.config.overrides import choice_as_name
from fmstune.errors import UserError, first_line
from fmstune.upstream import explain_missing_names, require_attributes

with explain_missing_names("hydra-core"):
    from hydra._internal import defaults_list
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_automatic_config_search_path

    require_attributes(ConfigLoaderImpl, "_load_single_config", "_parse_overrides_and_create_caching_repo")
    require_attributes(
        ConfigLoaderImpl, "_process_config_searchpath", "_compose_config_from_defaults_list", "repository"
    )
    require_attributes(ConfigRepository, "_find_object_source")
    _create_interpolation_map = defaults_list._create_interpolation_map

with explain_missing_names("omegaconf"):
    from omegaconf.base import Metadata

__all__ = ["Callbacks", "Hydra", "Part", "RecordingLoader"]


class Part(NamedTuple):
    """One file or override of a composition, as Hydra merges it."""

    name: str  # of the file without its suffix, such as `peft/lora`; empty for an override
    provider: str  # Hydra's name of the place that the file is from
    folder: str  # the folder or package of the file, as a URL; empty for the shipped ones
    tree: Any  # the values that it sets, references not resolved


_NOTHING = OmegaConf.create()
"""What no reference leads to; Hydra only reads it."""


def _map_for_interpolations(overrides: Any, defaults_list: list[Any], self_added: bool) -> DictConfig:
    """What `${…}` in a defaults list may refer to; Hydra makes it for every file, which is a sixth of composing."""
    if any(one.is_interpolation() for one in defaults_list):
        return _create_interpolation_map(overrides, defaults_list, self_added)
    return _NOTHING


defaults_list._create_interpolation_map = _map_for_interpolations


def _copy_metadata(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    """Copy the metadata of a node; OmegaConf changes only `flags` and `resolver_cache` in place."""
    copied = object.__new__(type(metadata))
    vars(copied).update(vars(metadata))
    copied.flags = copy.copy(metadata.flags)
    cache = metadata.resolver_cache
    copied.resolver_cache = copy.deepcopy(cache, memo) if cache else defaultdict(dict)
    return copied


# Python would look into each field: two thirds of a copy, and a job is copied several times before it starts
Metadata.__deepcopy__ = _copy_metadata  # type: ignore[attr-defined]


class _Repository(CachingConfigRepository):
    """The files of one composition; a process reads and parses those of fmstune and of Hydra once for all of them."""

    def __init__(self, delegate: ConfigRepository) -> None:
        # Hydra copies it deeply, with all that its store holds; only the list of its sources is ever replaced
        self.delegate = self._sources = copy.copy(delegate)
        self.cache = {}
        self.loaded: list[tuple[str, str]] = []
        """Source and path of each file, in order."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.cache:
            source = self._sources._find_object_source(config_path, ObjectType.CONFIG)
            key = (str(source), config_path)
            self.loaded.append(key)
            if key in _read:
                self.cache[config_path] = pickle.loads(_read[key])
            else:
                self.cache[config_path] = found = self.delegate.load_config(config_path)
                if found is None or _is_shipped(found):
                    # composing changes what it is given; unpickling takes a sixth of a copy
                    _keep(_read, key, found)
        return self.cache[config_path]


def _is_shipped(file: ConfigResult) -> bool:
    """Whether a file, or what a dataclass holds, stays what it is while a process lives."""
    return file.path in _PACKAGES or (file.path == "structured://" and file.provider in ("hydra", PROVIDER))


def _keep(kept: dict[Any, bytes], key: tuple[Any, ...], value: object) -> None:
    """Pickled; not where it holds classes of a plugin that Hydra has imported anew, as in a job of submitit's."""
    with contextlib.suppress(pickle.PicklingError):
        kept[key] = pickle.dumps(value)


_PACKAGES = ("pkg://fmstune.conf", "pkg://hydra.conf")
"""The shipped files are in these."""
_read: dict[tuple[str, str], bytes] = {}
_merged: dict[tuple[Any, ...], bytes] = {}
"""What shipped files make together, and the parts of it."""


def tree_of(field: str, value: Any) -> Any:
    """One value by its dotted name as a tree."""
    tree = OmegaConf.create()
    OmegaConf.update(tree, field, value, force_add=True)
    return OmegaConf.to_container(tree, resolve=False)


class RecordingLoader(ConfigLoaderImpl):
    """Hydra's loader with `hydra.main`'s search path; it keeps the parts of what it composed and reuses `known`."""

    def __init__(self, config_path: str, config_dir: str | None, known: Iterable[Override]) -> None:
        search_path = create_automatic_config_search_path(None, __name__, config_path)
        if config_dir is not None:
            folder = f"file://{os.path.abspath(config_dir)}"
            search_path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
        super().__init__(search_path)
        self._known = {one.input_line: one for one in known}
        self._files: list[Part] = []
        self._fields: list[Part] = []

    def parts(self) -> tuple[Part, ...]:
        """The files and overrides of what was composed last, in the order in which Hydra merged them."""
        return (*self._files, *self._fields)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        found = super()._load_single_config(default, repo)
        if (default.package or "").partition(".")[0] != "hydra":
            tree: Any = OmegaConf.to_container(found.config, resolve=False)
            tree.pop("hydra", None)
            folder = "" if found.provider == "main" else found.path
            self._files.append(Part(str(default.config_path).removesuffix(".yaml"), found.provider, folder, tree))
        return found

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """Merge the files; a process merges the same shipped ones once, which is half of composing."""
        assert isinstance(repo, _Repository)
        chosen = (*repo.loaded, *((one.config_path, one.package, one.primary) for one in defaults))
        config: DictConfig
        if chosen in _merged:
            config, self._files = pickle.loads(_merged[chosen])
            return config
        config = super()._compose_config_from_defaults_list(defaults, repo)
        if all(key in _read for key in repo.loaded):
            _keep(_merged, chosen, (config, self._files))
        return config

    def options(self, group: str, config_name: str, overrides: list[str]) -> list[str]:
        """The files of a group, wherever the overrides and the primary file let Hydra search."""
        _, repository = self._parse_overrides_and_create_caching_repo(config_name, overrides)
        return list(repository.get_group_options(group, ObjectType.CONFIG))

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose; what Hydra does not expect in a word is a HydraException too."""
        try:
            return super().load_configuration(*args, **kwargs)
        except (HydraException, OmegaConfBaseException, UserError) as err:
            of_choice = isinstance(err.__cause__, GrammarParseError) and not err.__cause__.full_key
            if of_choice and (said := self._reference()):
                raise ConfigCompositionException(said) from err
            raise
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as err:
            # as for a reference in place of a choice, which Hydra asserts to be text
            said = self._reference() or f"cannot be composed: {first_line(err)}"
            raise ConfigCompositionException(said) from err

    def _reference(self) -> str | None:
        """Hydra's sentence on a reference in place of a choice, where a word has one."""
        words = (word for word, one in self._known.items() if "${" in str(one.value()))
        return f"Error resolving interpolation '{word}'" if (word := next(words, None)) else None

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is an error here
            super()._process_config_searchpath(config_name, parsed_overrides, repo)
        for source in repo.get_sources():
            if source.provider.startswith("hydra.searchpath") and not source.available():
                raise ConfigCompositionException(f"No folder {source.path} of hydra.searchpath")

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parser, repository = OverridesParser.create(), _Repository(self.repository)
        parsed = [self._known.get(word) or choice_as_name(parser.parse_overrides([word])[0]) for word in overrides]
        self._process_config_searchpath(config_name, parsed, repository)
        self._files, self._fields = [], []
        for one in parsed:
            chooses = not isinstance(one.value(), dict) and repository.group_exists(one.key_or_group)
            if not (chooses or one.is_hydra_override() or one.is_sweep_override() or one.is_delete()):
                self._fields.append(Part("", "", "", tree_of(one.key_or_group, one.value())))
        return parsed, repository
