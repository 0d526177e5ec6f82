"""Conditions on logged metrics, such as `eval_loss < 0.5 and epoch >= 2`: read part by part, never run as Python.

A name is the last value of a metric. What needs values that are not logged yet is neither true nor false.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Logged = Mapping[str, Sequence[float]]
"""The values of each metric, oldest first."""
_Number = Callable[[Logged], float | None]
_Truth = Callable[[Logged], bool | None]

_LONGEST = 250
"""Characters; few enough that no nesting is too deep for Python."""

_OVER_VALUES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
    "first": lambda values: values[0],
}
"""`min(loss)` is of all values, `min(loss, 10)` of the last ten."""
_TURNS: dict[str, Callable[[Sequence[float], Sequence[float]], bool]] = {
    "fallen": lambda before, last: min(last) < min(before),
    "risen": lambda before, last: max(last) > max(before),
}
"""`fallen(eval_loss, 3)`: one of the last three values is below all that came before."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PARTS = (
    "a condition is made of metrics, numbers, < <= > >=, + - * /, and, or, not, "
    f"{', '.join(f'{name}(METRIC, COUNT)' for name in (*_OVER_VALUES, *_TURNS))}"
)


@dataclass(frozen=True)
class Condition:
    """A condition that was read."""

    text: str
    names: tuple[str, ...]
    """The metrics that it looks at."""
    truth: _Truth
    """Whether it holds; None where that cannot be said yet."""


class _Call(NamedTuple):
    """A function, the metric that it looks at, and over how many of the last values."""

    function: str
    metric: str
    most: int | None
    """All of them where it is None."""


def read(text: str) -> Condition:
    """The condition that this text says; raises ValueError with what cannot be read."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters, and {_LONGEST} are the most")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as err:
        raise ValueError(f"it cannot be read ({err.msg}); {_PARTS}") from err
    return Condition(text.strip(), tuple(dict.fromkeys(_names(node))), _truth(node))


def figures(condition: Condition, logged: Logged) -> str:
    """The last values of the metrics that it looks at, for a sentence."""
    known = [(name, logged[name][-1]) for name in condition.names if logged.get(name)]
    return ", ".join(f"{name} is {value:.6g}" for name, value in known)


def _names(node: ast.expr) -> Iterator[str]:
    functions = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    for part in ast.walk(node):
        if isinstance(part, ast.expr) and part not in functions and (name := _metric(part)) is not None:
            yield name


def _metric(node: ast.expr) -> str | None:
    """The metric of this name, in quotes where it is no plain word (`"eval_dev-2_loss"`); None for all else."""
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)):
            return name
    return None


def _truth(node: ast.expr) -> _Truth:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts, decisive = [_truth(value) for value in values], isinstance(op, ast.Or)
            return lambda logged: _joined([part(logged) for part in parts], decisive)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _truth(operand)
            return lambda logged: None if (value := inner(logged)) is None else not value
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            tests, numbers = [_COMPARISONS[type(op)] for op in ops], [_number(part) for part in (left, *others)]
            return lambda logged: _compared(tests, [number(logged) for number in numbers])
        case ast.Call(func=ast.Name(id=name)) if name in _TURNS:
            return _turn(_call(node))
    _number(node)  # says what is wrong with it, if it is no number either
    raise ValueError(f"{ast.unparse(node)} is a number; compare it, as in {ast.unparse(node)} < 0.5")


def _joined(values: Sequence[bool | None], decisive: bool) -> bool | None:
    """`or` where true decides, `and` where false does; what is not known yet may still decide (Kleene's logic)."""
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def _compared(tests: Sequence[Callable[[float, float], bool]], values: Sequence[float | None]) -> bool | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return all(test(one, other) for test, one, other in zip(tests, known, known[1:], strict=False))


def _number(node: ast.expr) -> _Number:
    if (metric := _metric(node)) is not None:
        return lambda logged: logged[metric][-1] if logged.get(metric) else None
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return lambda _logged: float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return lambda logged: None if (value := inner(logged)) is None else -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            operation, numbers = _ARITHMETIC[type(op)], (_number(left), _number(right))
            return lambda logged: _computed(operation, *(number(logged) for number in numbers))
        case ast.Call(func=ast.Name(id=name)) if name in _OVER_VALUES:
            return _over_values(_call(node))
    raise ValueError(f"{ast.unparse(node)} has no place in a condition; {_PARTS}")


def _computed(operation: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    if one is None or other is None or (operation is operator.truediv and other == 0):
        return None
    return operation(one, other)


def _call(node: ast.Call) -> _Call:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[metric], keywords=[]) if _metric(metric) and name in _OVER_VALUES:
            return _Call(name, _metric(metric) or "", None)
        case ast.Call(func=ast.Name(id=name), args=[metric, ast.Constant(value=int(count))], keywords=[]) if (
            _metric(metric) and count > 0
        ):
            return _Call(name, _metric(metric) or "", count)
    form = "METRIC, COUNT" if ast.unparse(node.func) in _TURNS else "METRIC or METRIC, COUNT"
    raise ValueError(f"{ast.unparse(node)}: the function takes {form}, a count of at least 1")


def _over_values(call: _Call) -> _Number:
    function, count = _OVER_VALUES[call.function], call.most

    def number(logged: Logged) -> float | None:
        values = logged.get(call.metric, ())
        if len(values) < (count or 1):
            return None
        return function(values if count is None else values[-count:])

    return number


def _turn(call: _Call) -> _Truth:
    turned, count = _TURNS[call.function], call.most or 1

    def truth(logged: Logged) -> bool | None:
        values = logged.get(call.metric, ())
        return turned(values[:-count], values[-count:]) if len(values) > count else None

    return truth
