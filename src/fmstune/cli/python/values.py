"""Values of a job as attributes."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from fmstune.errors import did_you_mean


class Values(Mapping[str, Any]):
    """The values of a group, by attribute or by key: `job.training.learning_rate`, `job.training["learning_rate"]`."""

    _values: dict[str, Any]
    _name: str

    def __init__(self, values: Mapping[str, Any], name: str = "job") -> None:
        self.__dict__["_values"], self.__dict__["_name"] = dict(values), name

    def __getitem__(self, key: str) -> Any:
        found = self._values[key]
        return Values(found, f"{self._name}.{key}") if isinstance(found, dict) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        # a copy that is being made is asked for methods before it has values
        if name.startswith("__") or name in Values.__annotations__:
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(f"{self._name} has no {name}{did_you_mean(name, self._values)}")
        return self[name]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise unchangeable(f"{self._name}.{name}", value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Values({self._values!r})"


def unchangeable(name: str, value: object) -> AttributeError:
    """The error of an assignment to a value, with the word that would set it."""
    field = name.removeprefix("job.")
    return AttributeError(f"a job does not change; compose another one: job.with_('{field}={value}')")
