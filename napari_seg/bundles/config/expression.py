"""`$` expressions of a config as syntax trees: what they may contain, found without evaluating them.

An expression may use literals, arithmetic, comparisons, indexing, conditionals, comprehensions over small lists,
lambdas, calls, and names that the caller lists. It can't reach a name that begins with "_", define a name outside
itself, or change an object. `evaluate.py` computes the value of such an expression.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_LENGTH = 4000
"""Length limit of an expression, in characters."""

MAX_NESTING = 200
"""Limit for nodes inside each other."""

_REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")

_MARK = "_reference_"

_NODES = (
    *(ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.Call),
)
"""Nodes that are allowed if all inside them is; names, literals, lambdas and loops are checked one by one."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEXT_METHODS = _names(
    "capitalize count endswith find join lower lstrip partition removeprefix removesuffix replace rpartition rsplit "
    "rstrip split startswith strip title upper"
)
TENSOR_VALUES = frozenset(["shape", "dtype", "device", "ndim"])
TENSOR_METHODS = _names(
    "abs all any amax amin argmax bool clamp clip clone ceil contiguous cpu detach dim exp flip float floor int item "
    "log long max mean median min permute round sigmoid size softmax sqrt squeeze std sum t to tolist transpose type "
    "unsqueeze"
)
ARRAY_METHODS = _names("all any argmax astype clip item max mean min round squeeze std sum tolist")
"""Attributes of texts, tensors and NumPy's arrays that an expression may use."""

_ATTRIBUTE_NAMES = (
    TEXT_METHODS
    | TENSOR_VALUES
    | TENSOR_METHODS
    | ARRAY_METHODS
    | {"copy", "eval", "get", "index", "items", "keys", "size", "transforms", "type", "values"}
)


class ExpressionError(ValueError):
    """An expression can't be read, or does something that is not allowed."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: as written, without "$".
        body: its syntax tree, in which names that begin with a mark stand for references.
        references: such a name -> id of the entry.
    """

    text: str
    body: ast.expr
    references: Mapping[str, str]


@lru_cache(maxsize=512)
def parse(text: str) -> Expression:
    """Return a parsed expression.

    Args:
        text: with or without the leading "$".

    Raises:
        ExpressionError: it is no expression, or too long.
    """
    text = text.removeprefix("$").strip()
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression of {len(text)} characters; expected at most {MAX_LENGTH}")
    references: dict[str, str] = {}

    def mark(match: re.Match[str]) -> str:
        name = f"{_MARK}{len(references)}"
        references[name] = match.group()[1:].replace("#", "::")
        return name

    if _MARK in text:
        raise ExpressionError(f"a name that contains {_MARK!r}")
    try:
        body = ast.parse(_REFERENCE.sub(mark, text), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        cause = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ExpressionError(f"no expression of Python ({cause})") from None
    return Expression(text, body, references)


def problems(expression: Expression, is_listed: Callable[[str], bool]) -> list[str]:
    """Return what an expression uses that is not allowed, without evaluating it.

    Args:
        expression: from `parse`.
        is_listed: whether a dotted name may be used.
    """
    found: list[str] = []
    _Check(expression, is_listed, found).visit(expression.body, frozenset(), 0)
    return list(dict.fromkeys(found))


def dotted_name(node: ast.expr) -> str:
    """Return a chain of attributes such as "torch.cuda.is_available"; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


class _Check:
    """Collects what is not allowed."""

    def __init__(self, expression: Expression, is_listed: Callable[[str], bool], found: list[str]) -> None:
        self.references = expression.references
        self.is_listed = is_listed
        self.found = found

    def visit(self, node: ast.AST, local: frozenset[str], depth: int) -> None:
        if depth > MAX_NESTING:
            self.found.append("it nests too deep")
            return
        if isinstance(node, ast.Lambda):
            self._lambda(node, local, depth)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            self._comprehension(node, local, depth)
        elif isinstance(node, ast.Name | ast.Attribute):
            self._name(node, local, depth)
        elif isinstance(node, ast.JoinedStr):
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    if part.format_spec is not None or part.conversion != -1:
                        self.found.append("a format")
                    self.visit(part.value, local, depth + 1)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and _MARK in node.value:
                self.found.append("a reference inside a text")
            elif not isinstance(node.value, str | int | float | bool | None | type(...)):
                self.found.append(f"a literal of type {type(node.value).__name__}")
        elif type(node) in _NODES:
            for inner in ast.iter_child_nodes(node):
                if not isinstance(inner, ast.operator | ast.unaryop | ast.cmpop | ast.boolop | ast.expr_context):
                    self.visit(inner, local, depth + 1)
                elif isinstance(inner, ast.MatMult):
                    self.found.append("a product of matrices")
        elif isinstance(node, ast.keyword):
            if node.arg is not None and node.arg.startswith("_"):
                self.found.append(f"the name {node.arg}")
            self.visit(node.value, local, depth + 1)
        elif isinstance(node, ast.Starred):
            self.visit(node.value, local, depth + 1)
        else:
            self.found.append(f"syntax that is not allowed ({type(node).__name__})")

    def _name(self, node: ast.Name | ast.Attribute, local: frozenset[str], depth: int) -> None:
        name = dotted_name(node)
        root = name.partition(".")[0]
        if isinstance(node, ast.Name):
            if node.id not in local and node.id not in self.references and not self.is_listed(node.id):
                self.found.append(f"the name {node.id}")
            return
        if root and root not in local and root not in self.references and self.is_listed(name):
            return
        if node.attr.startswith("_") or node.attr not in _ATTRIBUTE_NAMES:
            whole = name if root and root not in local and root not in self.references else f".{node.attr}"
            self.found.append(f"the name {whole}")
            if not root:
                self.visit(node.value, local, depth + 1)
            return
        count = len(self.found)
        self.visit(node.value, local, depth + 1)
        if len(self.found) > count and root and self.found[-1] == f"the name {root}":
            self.found[-1] = f"the name {name}"

    def _lambda(self, node: ast.Lambda, local: frozenset[str], depth: int) -> None:
        arguments = node.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
            self.found.append("a lambda with other arguments than plain ones")
        names = [argument.arg for argument in arguments.args]
        self._local_names(names)
        for default in arguments.defaults:
            self.visit(default, local, depth + 1)
        self.visit(node.body, local | set(names), depth + 1)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, local: frozenset[str], depth: int
    ) -> None:
        for generator in node.generators:
            self.visit(generator.iter, local, depth + 1)
            names = [inner.id for inner in ast.walk(generator.target) if isinstance(inner, ast.Name)]
            if generator.is_async or not _is_plain_target(generator.target):
                self.found.append("a loop that assigns more than names")
            self._local_names(names)
            local = local | set(names)
            for condition in generator.ifs:
                self.visit(condition, local, depth + 1)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part, local, depth + 1)

    def _local_names(self, names: list[str]) -> None:
        self.found += [f"the name {name}" for name in names if name.startswith("_") and name != "_"]


def _is_plain_target(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.List):
        return all(map(_is_plain_target, node.elts))
    return isinstance(node, ast.Name)
