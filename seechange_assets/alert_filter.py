"""Conditions on alerts, as a person writes them: ``snr > 10 and rb > 0.8``.

The expression is parsed by Python's own grammar and walked by hand: comparisons, arithmetic, ``and``, ``or``, ``not``,
``in``, names of fields, numbers and text. Nothing is ever evaluated by the interpreter, so there are no calls,
attributes, subscripts or comprehensions that could do anything else.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from seechange_assets.errors import ParameterError

#: Short names, and those of other surveys, for fields of ours.
ALIASES = {
    "rb": "reliability",
    "drb": "reliability",
    "reliability": "rb",
    "flux": "psfFlux",
    "mjd": "midpointMjdTai",
    "filter": "band",
    "exposure": "visit",
    "ccd": "detector",
    "ndet": "nDiaSources",
}
MAX_LENGTH, MAX_DEPTH = 1000, 50

_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_COMBINE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LEAVES = (ast.Name, ast.Load, ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd, *_COMPARE, *_COMBINE)
_BRANCHES = (ast.Expression, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Tuple, ast.List)


class AlertFilter:
    """A condition on alerts; a field that is null or absent makes a comparison false.

    Parameters
    ----------
    text : str
        Names are fields of ``diaSource``, then of ``diaObject``, then of the alert, or `ALIASES`; ``abs`` is not
        needed: write ``snr > 5 or snr < -5``.

    Raises
    ------
    ParameterError
        For what is no such expression, naming the part.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ParameterError(f"filter: {len(text)} characters, at most {MAX_LENGTH}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ParameterError(f"filter {text!r:.80}: not an expression such as 'snr > 10 and rb > 0.8'") from error
        _check(self._tree, text, 0)

    def __call__(self, alert: Mapping[str, Any]) -> bool:
        """Whether an alert meets the condition."""
        try:
            return bool(_value(self._tree, alert))
        except (TypeError, ZeroDivisionError):  # null in arithmetic, text against a number
            return False


def _check(node: ast.AST, text: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ParameterError(f"filter {text!r:.80}: nested more than {MAX_DEPTH} deep")
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool, type(None)))
    if not is_constant and not isinstance(node, _LEAVES + _BRANCHES):
        part = ast.get_source_segment(text.strip(), node) if isinstance(node, ast.expr) else None
        raise ParameterError(
            f"filter {text!r:.80}: {part or type(node).__name__!r} is not allowed; use fields, numbers, text, "
            "comparisons, + - * /, and, or, not, in"
        )
    for child in ast.iter_child_nodes(node):
        _check(child, text, depth + 1)


def _value(node: ast.AST, alert: Mapping[str, Any]) -> Any:  # noqa: PLR0911  (one line for each kind of node)
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return field(alert, name)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(item, alert) for item in items]
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_truth(part, alert) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_truth(part, alert) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _truth(part, alert)
        case ast.UnaryOp(op=sign, operand=part):
            value = _value(part, alert)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=combine, right=right):
            return _product(_COMBINE[type(combine)], _value(left, alert), _value(right, alert))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, alert) for part in (left, *others)]
            return all(_COMPARE[type(op)](values[i], values[i + 1]) for i, op in enumerate(ops))
    raise ParameterError(f"filter: {type(node).__name__} is not allowed")


def _product(combine: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Arithmetic is for numbers: text times a large number would fill the memory."""
    if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
        raise TypeError("arithmetic on what is no number")
    return combine(float(left), float(right))


def _truth(node: ast.AST, alert: Mapping[str, Any]) -> bool:
    """A part of a condition; a comparison with null is false, also inside ``or``."""
    try:
        return bool(_value(node, alert))
    except (TypeError, ZeroDivisionError):
        return False


def field(alert: Mapping[str, Any], name: str) -> Any:
    """A field of an alert by its name or alias; None if it is null or absent."""
    places = (alert.get("diaSource") or {}, alert.get("diaObject") or {}, alert)
    for known in (name, ALIASES.get(name, name)):
        for place in places:
            if known in place:
                return place[known]
    return None
