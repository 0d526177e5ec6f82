"""Conditions on logged metrics, such as `eval_loss < 0.5 and epoch >= 2`: read part by part, never run as Python.

A name is the last value of a metric. A condition on values that are not logged yet is neither true nor false.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import add, ge, gt, le, lt, mul, sub, truediv
from typing import TypeVar

Logged = Mapping[str, Sequence[float]]
"""The values of each metric, oldest first."""
_Result = TypeVar("_Result")
_Operation = Callable[[float, float], _Result]
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
_COMPARISONS: dict[type[ast.cmpop], _Operation[bool]] = {ast.Lt: lt, ast.LtE: le, ast.Gt: gt, ast.GtE: ge}
_ARITHMETIC: dict[type[ast.operator], _Operation[float]] = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}
_PARTS = (
    "a condition is made of metrics, numbers, < <= > >=, + - * /, and, or, not, "
    f"{', '.join(f'{name}(METRIC, COUNT)' for name in (*_OVER_VALUES, *_TURNS))}"
)


@dataclass(frozen=True)
class Condition:
    """A condition that was read."""

    text: str
    names: tuple[str, ...]  # the metrics that it looks at
    node: ast.expr

    def truth(self, logged: Logged) -> bool | None:
        """Whether it holds; None where that cannot be said yet."""
        return _truth(self.node, logged)


def stop_rules(stop_when: str | list[str] | None) -> list[str]:
    """The conditions of `callbacks.stop_when`, as they were given."""
    return [] if stop_when is None else [stop_when] if isinstance(stop_when, str) else [str(one) for one in stop_when]


def read_condition(text: str) -> Condition:
    """The condition that this text says; raises ValueError with what cannot be read."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters, and {_LONGEST} are the most")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as err:
        raise ValueError(f"it cannot be read ({err.msg}); {_PARTS}") from err
    _truth(node, {})  # visits all of it, and raises for any other part
    return Condition(text.strip(), tuple(dict.fromkeys(_names(node))), node)


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
    """The metric of this name, in quotes where it is not a plain word (`"eval_dev-2_loss"`); None for all else."""
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)):
            return name
    return None


def _truth(node: ast.expr, logged: Logged) -> bool | None:
    match node:
        case ast.BoolOp(op=op, values=parts):
            # true decides `or`, false `and`; the others count only when none is unknown (Kleene's logic)
            truths, decisive = [_truth(part, logged) for part in parts], isinstance(op, ast.Or)
            return decisive if decisive in truths else None if None in truths else not decisive
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return None if (value := _truth(operand, logged)) is None else not value
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            numbers = [_number(part, logged) for part in (left, *others)]
            known = [number for number in numbers if number is not None]
            tests = zip(ops, pairwise(known), strict=False)
            return None if len(known) < len(numbers) else all(_COMPARISONS[type(op)](*pair) for op, pair in tests)
        case ast.Call(func=ast.Name(id=name)) if name in _TURNS:
            metric, count = _call(node)
            values = logged.get(metric, ())
            return _TURNS[name](values[:-count], values[-count:]) if len(values) > count else None
    _number(node, logged)  # says what is wrong with it, if it is not a number either
    raise ValueError(f"{ast.unparse(node)} is a number; compare it, as in {ast.unparse(node)} < 0.5")


def _number(node: ast.expr, logged: Logged) -> float | None:
    if (metric := _metric(node)) is not None:
        return logged[metric][-1] if logged.get(metric) else None
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return None if (value := _number(operand, logged)) is None else -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            one, other = _number(left, logged), _number(right, logged)
            if one is None or other is None or (isinstance(op, ast.Div) and other == 0):
                return None
            return _ARITHMETIC[type(op)](one, other)
        case ast.Call(func=ast.Name(id=name)) if name in _OVER_VALUES:
            metric, count = _call(node)
            values = logged.get(metric, ())
            return None if len(values) < max(count, 1) else _OVER_VALUES[name](values[-count:])
    raise ValueError(f"{ast.unparse(node)} has no place in a condition; {_PARTS}")


def _call(node: ast.Call) -> tuple[str, int]:
    """The metric that a function looks at, and over how many of its last values; 0 is all of them."""
    name = ast.unparse(node.func)
    match node:
        case ast.Call(args=[metric], keywords=[]) if name in _OVER_VALUES and _metric(metric):
            return str(_metric(metric)), 0
        case ast.Call(args=[metric, ast.Constant(value=int(count))], keywords=[]) if count > 0 and _metric(metric):
            return str(_metric(metric)), count
    form = "METRIC, COUNT" if name in _TURNS else "METRIC or METRIC, COUNT"
    raise ValueError(f"{ast.unparse(node)}: the function takes {form}, a count of at least 1")
