"""Functions of a config (`$lambda x: ...`) that are recognised by their syntax trees; nothing of them runs."""

from __future__ import annotations

import ast
from typing import Any

from napari_seg.volume import MAX_LABEL

EXACT_TYPES = {"float", "float32", "float64", "double"}
"""Types that keep a value as it is."""

INTEGER_TYPES = {"byte", "uint8", "uint16", "short", "int16", "int", "int32", "long", "int64"}
"""Types that keep a label as it is."""


def parsed_lambda(text: Any) -> ast.Lambda | None:
    """Return the tree of a lambda with one argument; None for anything else."""
    if not isinstance(text, str) or not text.startswith("$"):
        return None
    try:
        tree = ast.parse(text[1:].strip(), mode="eval").body
    except Exception:  # a text that is no Python, or nested too deep
        return None
    if not isinstance(tree, ast.Lambda):
        return None
    named = tree.args
    is_simple = len(named.args) == 1 and not (
        named.posonlyargs or named.kwonlyargs or named.defaults or named.vararg or named.kwarg
    )
    return tree if is_simple else None


def label_rule(function: ast.Lambda) -> list[tuple[int, int]] | None:
    """Return (channel, label) in ascending order of precedence for a nest of `torch.where`; None for anything else.

    `torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))` gives [(0, 1), (2, 4)].
    """
    found: list[tuple[int, int]] = []
    body = function.body
    while isinstance(body, ast.Call):
        match body:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="where"), args=[_, _, _], keywords=[]):
                pass
            case _:
                return None
        channel = _present_channel(body.args[0], function.args.args[0].arg)
        label = body.args[1].value if isinstance(body.args[1], ast.Constant) else None
        if channel is None or type(label) is not int or not 1 <= label <= MAX_LABEL:
            return None
        found.append((channel, label))
        body = body.args[2]
    ends_with_background = isinstance(body, ast.Constant) and type(body.value) is int and body.value == 0
    channels = [channel for channel, _ in found]
    labels = {label for _, label in found}
    if not found or not ends_with_background or len(set(channels)) < len(found) or len(labels) < len(found):
        return None
    return found[::-1]


def _present_channel(condition: ast.expr, name: str) -> int | None:
    """Return the channel n of the conditions `x[[n]] > 0` and `x[n:n+1] == 1`; None for anything else."""
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1:
        return None
    match condition.ops[0], condition.comparators[0]:
        case ast.Gt(), ast.Constant(value=int() | float() as limit):
            is_presence = 0 <= limit < 1
        case ast.GtE(), ast.Constant(value=int() | float() as limit):
            is_presence = 0 < limit <= 1
        case ast.Eq(), ast.Constant(value=limit):
            is_presence = limit == 1
        case _:
            return None
    part = condition.left
    if not is_presence or not isinstance(part, ast.Subscript) or not _is_name(part.value, name):
        return None
    match part.slice:
        case ast.List(elts=[ast.Constant(value=int(n))]) if type(n) is int and n >= 0:
            return n
        case ast.Slice(lower=ast.Constant(value=int(n)), upper=ast.Constant(value=int(end)), step=None) if end == n + 1:
            return n
    return None


def is_without_first(function: ast.Lambda) -> bool:
    """Return whether a lambda returns all channels but the first."""
    match function.body:
        case ast.Subscript(value=value, slice=ast.Slice(lower=ast.Constant(value=1), upper=None, step=None)):
            return _is_name(value, function.args.args[0].arg)
    return False


def scale_of(function: ast.Lambda) -> float | None:
    """Return the number by which a lambda multiplies labels, 1 if it changes only their type; None for all else."""
    name, scale, body = function.args.args[0].arg, 1.0, function.body
    while True:
        match body:
            case ast.Name(id=found) if found == name:
                return scale
            case ast.BinOp(left=inner, op=ast.Mult(), right=ast.Constant(value=int() | float() as number)) if (
                number >= 1  # below, a change to integers would make labels one
            ):
                scale, body = scale * number, inner
            case ast.Call(func=ast.Attribute(value=inner, attr="to" | "astype" | "type"), args=[dtype], keywords=[]):
                if not isinstance(dtype, ast.Attribute) or dtype.attr not in EXACT_TYPES | INTEGER_TYPES:
                    return None
                body = inner
            case ast.Call(func=ast.Attribute(value=inner, attr=attribute), args=[], keywords=[]):
                if attribute not in {"cpu", "contiguous", "detach", "clone"} | EXACT_TYPES | INTEGER_TYPES:
                    return None
                body = inner
            case _:
                return None


def _is_name(tree: ast.expr, name: str) -> bool:
    return isinstance(tree, ast.Name) and tree.id == name
