"""The value of a `$` expression of a config, computed over its syntax tree, without `eval`.

Work and memory are bounded: integers have at most `MAX_BITS` bits, one evaluation may visit `MAX_STEPS` nodes and
elements, and the arrays that it makes are at most `MAX_GROWTH` times as large as the image. A lambda that is called
later, on an image, begins with a new count.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from napari_seg.bundles.config.expression import (
    ARRAY_METHODS,
    MAX_NESTING,
    TENSOR_METHODS,
    TENSOR_VALUES,
    TEXT_METHODS,
    Expression,
    ExpressionError,
    dotted_name,
    parse,
    problems,
)

MAX_STEPS = 200_000
"""Limit for visited nodes and elements in one evaluation."""

MAX_ELEMENTS = 10_000
"""Length limit of a list or a text that an expression makes."""

MAX_BITS = 1024
"""Size limit of an integer."""

MAX_STEPS_TOGETHER = 500_000
"""Limit for steps in all evaluations of a config as plain data."""

MAX_ARRAY_BYTES = 2**24
"""Limit for the arrays that one evaluation makes of no image."""

MAX_GROWTH = 32
"""Limit for the arrays that one evaluation makes, relative to those that it is given, of 8 bytes an element."""

_MAX_INDEX = 256
"""Length limit of a list that picks from an array."""


class Names(Protocol):
    """What an expression may use; `resolve.py` gives a config's."""

    def is_listed(self, name: str) -> bool:
        """Return whether a dotted name, such as "torch.float32", may be used."""

    def value(self, name: str) -> Any:
        """Return the object of a listed name."""

    def reference(self, id: str) -> Any:
        """Return the value of another entry of the config."""


class Listed:
    """A function or class on the list; only such an object is called with lambdas as arguments.

    Args:
        name: dotted name.
        function: what is called.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Function:
    """A lambda of an expression.

    Args:
        node: its syntax tree.
        scope: local names where it was written.
        evaluation: the evaluation that made it.
    """

    def __init__(self, node: ast.Lambda, scope: dict[str, Any], evaluation: _Evaluation) -> None:
        self.node = node
        self.scope = scope
        self.evaluation = evaluation
        self.defaults = [evaluation.visit(value, scope) for value in node.args.defaults]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value for arguments; called by a transform, with a new count of steps."""
        evaluation = _Evaluation(self.evaluation.expression, self.evaluation.names)
        evaluation.take(*args, *kwargs.values())
        return self.evaluate(evaluation, args, kwargs)

    def __deepcopy__(self, memo: Any) -> Function:
        return self

    def evaluate(self, evaluation: _Evaluation, args: tuple, kwargs: dict[str, Any]) -> Any:
        names = [argument.arg for argument in self.node.args.args]
        given = dict(zip(names, args, strict=False)) | kwargs
        defaults = dict(zip(names[len(names) - len(self.defaults) :], self.defaults, strict=True))
        if len(args) > len(names) or set(names) - set(given | defaults) or set(kwargs) - set(names):
            raise ExpressionError(f"a lambda of {len(names)} arguments was called with {len(args) + len(kwargs)}")
        return evaluation.visit(self.node.body, self.scope | defaults | given)


@dataclass
class Budget:
    """Steps that several evaluations may take together."""

    left: int = MAX_STEPS_TOGETHER

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ExpressionError("it needs too much work, together with others")


def evaluate(text: str, names: Names, budget: Budget | None = None) -> Any:
    """Return the value of an expression.

    Args:
        text: with or without the leading "$".
        names: what it may use.
        budget: of this evaluation and others; None: only that of one evaluation counts.

    Raises:
        ExpressionError: it can't be read, uses something that is not allowed, or needs too much work.
        Exception: whatever a listed function raises for its arguments.
    """
    if budget is not None:
        budget.spend(len(text))
    expression = parse(text)
    if found := problems(expression, names.is_listed):
        raise ExpressionError(found[0])
    try:
        return _Evaluation(expression, names, budget).visit(expression.body, {})
    except RecursionError:
        raise ExpressionError("it nests too deep") from None


@dataclass
class _Evaluation:
    """One evaluation with its count of steps."""

    expression: Expression
    names: Names
    budget: Budget | None = None
    steps: int = 0
    depth: int = field(default=0, init=False)
    array_bytes: int = field(default=0, init=False)
    bytes_limit: int = field(default=MAX_ARRAY_BYTES, init=False)

    def visit(self, node: ast.AST, scope: dict[str, Any]) -> Any:
        self.count(1)
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise ExpressionError("it nests too deep")
        try:
            value = self.checked(_VISITS[type(node)](self, node, scope))
            if type(value) not in _NO_ARRAYS and _is_array(value) and type(node) is not ast.Name:
                self.array_bytes += _bytes(value)
                self.check_room(0)
            return value
        finally:
            self.depth -= 1

    def take(self, *values: Any) -> None:
        """Allow arrays that are about as large as given values."""
        self.bytes_limit += MAX_GROWTH * sum(8 * _elements(value) for value in values)

    def check_room(self, more_bytes: int) -> None:
        """Check that arrays of this size may be made.

        Raises:
            ExpressionError: they need too much memory, together with those that were made.
        """
        if self.array_bytes + more_bytes > self.bytes_limit:
            raise ExpressionError("it needs too much memory")

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ExpressionError("it needs too much work")
        if self.budget is not None:
            self.budget.spend(steps)

    def checked(self, value: Any) -> Any:
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ExpressionError("an integer that is too large")
        if isinstance(value, str | list | tuple | set | frozenset | dict) and len(value) > MAX_ELEMENTS:
            raise ExpressionError(f"a list or a text of more than {MAX_ELEMENTS} elements")
        return value

    def device(self, value: Any) -> Any:
        """Return the device that a text names, as `torch.device` of the listed names gives it; else the value."""
        if isinstance(value, str) and self.names.is_listed("torch.device"):
            return self.names.value("torch.device")(value)
        return value

    def elements(self, value: Any) -> list[Any]:
        """Return the elements of something that may be looped over."""
        if not (isinstance(value, str | list | tuple | set | frozenset | dict | range | _View) or _is_array(value)):
            raise ExpressionError(f"a loop over a {type(value).__name__}")
        if len(value) > MAX_ELEMENTS:
            raise ExpressionError(f"a loop of more than {MAX_ELEMENTS} elements")
        self.count(len(value))
        return list(value)

    def constant(self, node: ast.Constant, scope: dict[str, Any]) -> Any:
        return node.value

    def name(self, node: ast.Name, scope: dict[str, Any]) -> Any:
        if node.id in scope:
            return scope[node.id]
        if node.id in self.expression.references:
            return self.names.reference(self.expression.references[node.id])
        return self.listed(node.id)

    def listed(self, name: str) -> Any:
        if not self.names.is_listed(name):
            raise ExpressionError(f"the name {name}")
        return self.names.value(name)

    def attribute(self, node: ast.Attribute, scope: dict[str, Any]) -> Any:
        name = dotted_name(node)
        root = name.partition(".")[0]
        if root and root not in scope and root not in self.expression.references and self.names.is_listed(name):
            return self.listed(name)
        value = self.visit(node.value, scope)
        return _attribute(value, node.attr)

    def subscript(self, node: ast.Subscript, scope: dict[str, Any]) -> Any:
        value, key = self.visit(node.value, scope), self.visit(node.slice, scope)
        if isinstance(value, dict):
            _check_key(key)
        elif _is_array(value):
            if any(isinstance(one, list) and len(one) > _MAX_INDEX for one in (key if type(key) is tuple else (key,))):
                raise ExpressionError(f"an index of more than {_MAX_INDEX} elements")
            self.check_room(_indexed_bytes(value, key))
        elif not isinstance(value, str | list | tuple | range):
            raise ExpressionError(f"an index of a {type(value).__name__}")
        else:
            self.count(len(value) if isinstance(key, slice) else 1)
        return value[key]

    def slice(self, node: ast.Slice, scope: dict[str, Any]) -> Any:
        return slice(
            *(None if part is None else self.visit(part, scope) for part in (node.lower, node.upper, node.step))
        )

    def sequence(self, node: ast.Tuple | ast.List | ast.Set, scope: dict[str, Any]) -> Any:
        values: list[Any] = []
        for part in node.elts:
            if isinstance(part, ast.Starred):
                values += self.elements(self.visit(part.value, scope))
            else:
                values.append(self.visit(part, scope))
        if isinstance(node, ast.Set):
            for value in values:
                _check_key(value)
            return set(values)
        return tuple(values) if isinstance(node, ast.Tuple) else values

    def dictionary(self, node: ast.Dict, scope: dict[str, Any]) -> Any:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                other = self.visit(value, scope)
                if not isinstance(other, dict):
                    raise ExpressionError(f"`**` of a {type(other).__name__}")
                self.count(len(other))
                result |= other
            else:
                name = self.visit(key, scope)
                _check_key(name)
                result[name] = self.visit(value, scope)
        return result

    def binary(self, node: ast.BinOp, scope: dict[str, Any]) -> Any:
        left, right = self.visit(node.left, scope), self.visit(node.right, scope)
        kind = type(node.op)
        if kind not in _BINARY:
            raise ExpressionError("an operator that is not allowed")
        if all(isinstance(one, int | float) for one in (left, right)):
            _check_power(kind, left, right)
        elif any(map(_is_array, (left, right))) and all(
            _is_array(one) or isinstance(one, int | float) for one in (left, right)
        ):
            check_broadcast(left, right)
        elif kind is ast.Add and type(left) is type(right) and isinstance(left, str | list | tuple):
            self.count(len(left) + len(right))
        elif kind is ast.Mult and any(isinstance(one, str | list | tuple) for one in (left, right)):
            number, text = (left, right) if isinstance(left, int) else (right, left)
            if not isinstance(number, int) or not isinstance(text, str | list | tuple):
                raise ExpressionError("a product of two lists")
            self.count(min(max(number, 0) * len(text), MAX_STEPS + 1))
        elif kind in (ast.BitOr, ast.BitAnd, ast.Sub) and type(left) is type(right) and isinstance(left, set | dict):
            self.count(len(left) + len(right))
        else:
            raise ExpressionError(f"an operator between {type(left).__name__} and {type(right).__name__}")
        return _BINARY[kind](left, right)

    def unary(self, node: ast.UnaryOp, scope: dict[str, Any]) -> Any:
        value = self.visit(node.operand, scope)
        if isinstance(node.op, ast.Not):
            return not value
        if not (isinstance(value, int | float) or _is_array(value)):
            raise ExpressionError(f"a sign of a {type(value).__name__}")
        return _UNARY[type(node.op)](value)

    def boolean(self, node: ast.BoolOp, scope: dict[str, Any]) -> Any:
        is_and = isinstance(node.op, ast.And)
        value = None
        for part in node.values:
            value = self.visit(part, scope)
            if bool(value) is not is_and:
                break
        return value

    def compare(self, node: ast.Compare, scope: dict[str, Any]) -> Any:
        left = self.visit(node.left, scope)
        result: Any = True
        for op, part in zip(node.ops, node.comparators, strict=True):
            right = self.visit(part, scope)
            if not isinstance(op, ast.Is | ast.IsNot):
                self._check_comparison(left)
                self._check_comparison(right)
                if _is_array(left) or _is_array(right):
                    check_broadcast(left, right)
            result = _COMPARE[type(op)](left, right)
            if len(node.ops) > 1 and not result:
                break
            left = right
        return result

    def _check_comparison(self, value: Any) -> None:
        """Check that a comparison takes no longer than the lists are: shared lists inside each other may be endless."""
        if isinstance(value, list | tuple | set | frozenset | dict | _View):
            self.count(len(value))
            for one in value:
                if isinstance(one, list | tuple | set | frozenset | dict | _View):
                    self.count(len(one))
                    if any(isinstance(inner, list | tuple | set | frozenset | dict) for inner in one):
                        raise ExpressionError("a comparison of nested lists")

    def conditional(self, node: ast.IfExp, scope: dict[str, Any]) -> Any:
        return self.visit(node.body if self.visit(node.test, scope) else node.orelse, scope)

    def make_function(self, node: ast.Lambda, scope: dict[str, Any]) -> Any:
        return Function(node, scope, self)

    def comprehension(self, node: Any, scope: dict[str, Any]) -> Any:
        found: list[Any] = []

        def loop(generators: list[ast.comprehension], inner: dict[str, Any]) -> None:
            if not generators:
                if isinstance(node, ast.DictComp):
                    found.append((self.visit(node.key, inner), self.visit(node.value, inner)))
                else:
                    found.append(self.visit(node.elt, inner))
                if len(found) > MAX_ELEMENTS:
                    raise ExpressionError(f"a list of more than {MAX_ELEMENTS} elements")
                return
            first = generators[0]
            for value in self.elements(self.visit(first.iter, inner)):
                local = inner | self._assigned(first.target, value)
                if all(self.visit(condition, local) for condition in first.ifs):
                    loop(generators[1:], local)

        loop(node.generators, scope)
        if isinstance(node, ast.DictComp | ast.SetComp):
            for one in found:
                _check_key(one[0] if isinstance(node, ast.DictComp) else one)
            return dict(found) if isinstance(node, ast.DictComp) else set(found)
        return found

    def _assigned(self, target: ast.expr, value: Any) -> dict[str, Any]:
        if isinstance(target, ast.Name):
            return {target.id: value}
        assert isinstance(target, ast.Tuple | ast.List)
        values = self.elements(value)
        if len(values) != len(target.elts):
            raise ExpressionError(f"a loop over {len(target.elts)} names with {len(values)} values")
        names: dict[str, Any] = {}
        for inner, one in zip(target.elts, values, strict=True):
            names |= self._assigned(inner, one)
        return names

    def text(self, node: ast.JoinedStr, scope: dict[str, Any]) -> Any:
        parts: list[str] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                parts.append(_text(self.visit(part.value, scope)))
            else:
                assert isinstance(part, ast.Constant)
                parts.append(str(part.value))
        return "".join(parts)

    def call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        function = self.visit(node.func, scope)
        args: list[Any] = []
        for part in node.args:
            if isinstance(part, ast.Starred):
                args += self.elements(self.visit(part.value, scope))
            else:
                args.append(self.visit(part, scope))
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.visit(keyword.value, scope)
            if keyword.arg is not None:
                kwargs[keyword.arg] = value
            elif isinstance(value, dict) and all(isinstance(key, str) and key[:1] != "_" for key in value):
                kwargs |= value
            else:
                raise ExpressionError("`**` of something else than named arguments")
        if isinstance(function, Function):
            return function.evaluate(self, tuple(args), kwargs)
        if isinstance(function, Listed):
            self.check_room(
                sum(_bytes(value) for value in (*args, *kwargs.values()) if isinstance(value, list | tuple))
            )
            result = function(*args, **kwargs)
            if function.name == "torch.load":
                self.take(result)
            return result
        if not isinstance(function, _Method | _Builtin):
            raise ExpressionError(f"a call of a {type(function).__name__}")
        if any(isinstance(value, Function | Listed | _Builtin) for value in (*args, *kwargs.values())):
            raise ExpressionError("a function as an argument")
        for value in (*args, *kwargs.values()):
            if isinstance(value, str | list | tuple | set | frozenset | dict | range | _View):
                if len(value) > MAX_ELEMENTS:
                    raise ExpressionError(f"a list of more than {MAX_ELEMENTS} elements")
                self.count(len(value))
        return function.call(self, args, kwargs)


@dataclass(frozen=True)
class _Method:
    """A method of a value that an expression may call."""

    owner: Any
    name: str

    def call(self, evaluation: _Evaluation, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.owner, str):
            evaluation.count(len(self.owner))
            if self.name == "replace" and len(args) > 1 and isinstance(args[1], str):
                evaluation.count(min((len(self.owner) + 1) * len(args[1]), MAX_STEPS + 1))
            if self.name == "join" and args:
                parts = evaluation.elements(args[0])
                evaluation.count(sum(len(part) + len(self.owner) for part in parts if isinstance(part, str)))
        if isinstance(self.owner, dict) and args:
            _check_key(args[0])
        if isinstance(self.owner, list | tuple):
            evaluation._check_comparison(self.owner)
            for value in args:
                evaluation._check_comparison(value)
        if self.name == "tolist" and _elements(self.owner) > MAX_ELEMENTS:
            raise ExpressionError("it needs too much memory")
        if self.name == "to":
            args, kwargs = list(map(evaluation.device, args)), {key: evaluation.device(v) for key, v in kwargs.items()}
        result = getattr(self.owner, self.name)(*args, **kwargs)
        return list(result) if isinstance(result, _View) else result


@dataclass(frozen=True)
class _Builtin:
    """A builtin function that an expression may call."""

    name: str

    def call(self, evaluation: _Evaluation, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if self.name in ("min", "max", "sorted", "any", "all", "sum"):
            for value in args:
                evaluation._check_comparison(value)
        if self.name == "sum":
            numbers = [*evaluation.elements(args[0]), *args[1:]]
            if not all(isinstance(one, int | float) for one in numbers):
                raise ExpressionError("a sum of something else than numbers")
        if self.name == "range" and len(range(*args)) > MAX_ELEMENTS:
            raise ExpressionError(f"a range of more than {MAX_ELEMENTS} numbers")
        if self.name == "round" and any(abs(digits) > 30 for digits in args[1:]):
            raise ExpressionError("a number with too many digits")
        if self.name in ("str", "int", "float", "bool") and args:
            return _text(*args) if self.name == "str" else _BUILTINS[self.name](*args, **kwargs)
        if self.name in ("list", "tuple", "set", "reversed", "enumerate", "zip", "sorted"):
            args = [evaluation.elements(value) for value in args]
        if self.name == "set":
            for value in args[0] if args else ():
                _check_key(value)
        if self.name == "dict":
            for pair in evaluation.elements(args[0]) if args and not isinstance(args[0], dict) else ():
                _check_key([*evaluation.elements(pair), None][0])
        result = _BUILTINS[self.name](*args, **kwargs)
        return list(result) if self.name in ("reversed", "enumerate", "zip") else result


_BUILTINS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(abs, all, any, bool, dict, enumerate, float, int, len, list, max, min, range, reversed, round, set),
        *(sorted, str, sum, tuple, zip),
    )
}


def builtin(name: str) -> Any:
    """Return a builtin function for expressions; None if there is none of this name."""
    return _Builtin(name) if name in _BUILTINS else None


_View: Any = type({}.keys()) | type({}.values()) | type({}.items())

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.inv}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_VISITS: dict[type, Callable[[_Evaluation, Any, dict[str, Any]], Any]] = {
    ast.Constant: _Evaluation.constant,
    ast.Name: _Evaluation.name,
    ast.Attribute: _Evaluation.attribute,
    ast.Subscript: _Evaluation.subscript,
    ast.Slice: _Evaluation.slice,
    ast.Tuple: _Evaluation.sequence,
    ast.List: _Evaluation.sequence,
    ast.Set: _Evaluation.sequence,
    ast.Dict: _Evaluation.dictionary,
    ast.BinOp: _Evaluation.binary,
    ast.UnaryOp: _Evaluation.unary,
    ast.BoolOp: _Evaluation.boolean,
    ast.Compare: _Evaluation.compare,
    ast.IfExp: _Evaluation.conditional,
    ast.Lambda: _Evaluation.make_function,
    ast.ListComp: _Evaluation.comprehension,
    ast.SetComp: _Evaluation.comprehension,
    ast.DictComp: _Evaluation.comprehension,
    ast.GeneratorExp: _Evaluation.comprehension,
    ast.JoinedStr: _Evaluation.text,
    ast.Call: _Evaluation.call,
}


def _attributes(value: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Return the values and the methods of an object that an expression may use."""
    nothing: frozenset[str] = frozenset()
    if isinstance(value, str):
        return nothing, TEXT_METHODS
    if isinstance(value, dict):
        return nothing, frozenset(["copy", "get", "items", "keys", "values"])
    if isinstance(value, list | tuple):
        return nothing, frozenset(["copy", "count", "index"])
    if torch := sys.modules.get("torch"):
        if isinstance(value, torch.Tensor):
            return TENSOR_VALUES, TENSOR_METHODS
        if isinstance(value, torch.device):
            return frozenset(["type", "index"]), nothing
        if isinstance(value, torch.nn.Module):
            return nothing, frozenset(["eval", "float", "to"])
    if (numpy := sys.modules.get("numpy")) and isinstance(value, numpy.ndarray | numpy.generic):
        return frozenset(["shape", "dtype", "ndim", "size"]), ARRAY_METHODS
    if (transforms := sys.modules.get("monai.transforms")) and isinstance(value, transforms.Compose):
        return frozenset(["transforms"]), nothing
    return nothing, nothing


def _attribute(value: Any, name: str) -> Any:
    values, methods = _attributes(value)
    if name in values:
        return getattr(value, name)
    if name in methods:
        return _Method(value, name)
    raise ExpressionError(f".{name} of a {type(value).__name__}")


_NO_ARRAYS = frozenset([bool, dict, float, Function, int, list, str, tuple, type(None)])
"""Types that are quickly known to be no arrays."""


def _is_array(value: Any) -> bool:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)
    )


def _elements(value: Any, sizes: dict[int, int] | None = None) -> int:
    """Return the number of elements of arrays, and of lists and dictionaries that hold arrays and numbers."""
    if _is_array(value):
        return int(prod(value.shape))
    if not isinstance(value, list | tuple | dict):
        return 1
    sizes = {} if sizes is None else sizes  # a list that another one holds many times is counted once
    if id(value) not in sizes:
        sizes[id(value)] = sum(_elements(one, sizes) for one in (value.values() if isinstance(value, dict) else value))
    return sizes[id(value)]


def _bytes(value: Any) -> int:
    """Return the memory of an array, or of the array that joins those of a list."""
    return int(value.nbytes) if _is_array(value) else 8 * _elements(value)


def _indexed_bytes(array: Any, key: Any) -> int:
    """Return a limit for the memory of `array[key]`; 0 if it is no copy, or one of at most the same size."""
    found = 0
    for axis, one in enumerate(key if isinstance(key, tuple) else (key,)):
        is_mask = _is_array(one) and str(one.dtype).endswith(("bool", "bool_"))
        if isinstance(one, list) or (_is_array(one) and not is_mask):
            length = array.shape[axis] if axis < len(array.shape) else 1
            found += _bytes(array) * _elements(one) // max(length, 1)
    return found


def _check_key(value: Any) -> None:
    """Check that a key of a dictionary, or an element of a set, is quickly hashed."""
    for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(one, str | int | float | None):
            raise ExpressionError(f"a key that holds a {type(one).__name__}")


def _check_power(kind: type, left: Any, right: Any) -> None:
    """Check that the result of an operator is no huge integer."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = 0
    if kind is ast.Pow and right > 0:
        bits = left.bit_length() * right
    elif kind is ast.LShift:
        bits = left.bit_length() + right
    if bits > MAX_BITS:
        raise ExpressionError("an integer that is too large")


def check_broadcast(*values: Any) -> None:
    """Check that arrays combined element by element give no much larger array.

    Raises:
        ExpressionError: they do.
    """
    shapes = [tuple(value.shape) for value in values if _is_array(value)]
    dims = max(map(len, shapes), default=0)
    count = 1
    for axis in range(1, dims + 1):
        count *= max(shape[-axis] for shape in shapes if len(shape) >= axis)
    largest = 1
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        largest = max(largest, size)
    if count > max(8 * largest, 2**20):
        raise ExpressionError("an array that grows too large")


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float | None):
        raise ExpressionError(f"a text of a {type(value).__name__}")
    return str(value)
