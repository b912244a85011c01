"""Expressions are evaluated without `eval`, within bounds, and with listed names only."""

from __future__ import annotations

import time
from typing import Any

import pytest

from napari_seg.bundles.config.evaluate import Listed, builtin, evaluate
from napari_seg.bundles.config.expression import ExpressionError

ENTRIES = {"a": [1, 2], "b::c": "x", "empty": [], "f": None}


class Names:
    """A list with two functions of its own, the builtin ones, and some entries."""

    def is_listed(self, name: str) -> bool:
        return name in ("own.twice", "own.apply") or ("." not in name and builtin(name) is not None)

    def value(self, name: str) -> Any:
        own = {"own.twice": lambda x: 2 * x, "own.apply": lambda function, x: function(x)}
        return Listed(name, own[name]) if name in own else builtin(name)

    def reference(self, id: str) -> Any:
        return ENTRIES[id]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1 + 2 * 3 ** 2 // 4 - 5 % 3", 1 + 2 * 3**2 // 4 - 5 % 3),
        ("$@a + [3]", [1, 2, 3]),
        ("$@b#c + '/model.pt'", "x/model.pt"),
        ("$[1.5] * 3 if @a else [3.0] * 3", [1.5, 1.5, 1.5]),
        ("$not @empty and len(@a) == 2", True),
        ("$(lambda x, y=2: x + y)(3)", 5),
        ("$[i + j for i, j in zip(@a, @a) if i > 1]", [4]),
        ("${name: n for n, name in enumerate(['a', 'b'])}", {"a": 0, "b": 1}),
        ("$f'{@b::c}/x'", "x/x"),
        ("${'a': 1, **{'b': 2}}", {"a": 1, "b": 2}),
        ("$list(set([i + 1 for i in range(5)]) - set([2, 4]))", [1, 3, 5]),
        ("$'a,b'.split(',')[-1].upper()", "B"),
        ("$1 < @a[1] <= 2", True),
        ("$2 in @a", True),
        ("$((256 - 164) // 2,) * 4", (46, 46, 46, 46)),
        ("$own.twice(21)", 42),
        ("$own.apply(lambda x: x[0], @a)", 1),
        ("$max(@a) + sum(range(4)) + round(2.4)", 10),
        ("$@a[::-1]", [2, 1]),
        ("$-1 if None is None else 1", -1),
    ],
)
def test_values_are_those_of_python(text: str, value: object) -> None:
    assert evaluate(text, Names()) == value


FORBIDDEN = [
    *("$__import__('os')", "$open('x', 'w')", "$eval('1')", "$getattr(1, 'real')", "$print(1)", "$type(1)", "$vars()"),
    *("$().__class__", "$@a.__class__", "$'{0.__class__}'.format(1)", "$own.twice.__globals__", "$@a.append(1)"),
    *("$(lambda x: x.__class__)(1)", "$[x.__dict__ for x in @a]", "$own.secret(1)", "$own", "$os.system('true')"),
    *("$f'{1:1000000000}'", "$f'{@a!r}'", "$'%0999999999d' % 1", "$str(@a)", "$b'x'", "$1j"),
    *("$import os", "$x := 3", "$(x := 3)", "$(yield)", "$await x", "$lambda *a: 1", "$lambda **a: 1", "$'@a'"),
    *("$sorted([1, 2], key=lambda x: x)", "$min([1], key=len)", "$[i for @a in [1]]", "$1 if", "$", "$@a @ @a"),
    *("$own.twice(__x=1)", "$own.twice(**{'__x': 1})", "$[_x for _x in @a]", "$dict(a=1)['a'].real"),
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_nothing_else_is_reached(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text, Names())


ENDLESS = [
    *("$10 ** 10 ** 10", "$9 ** 9 ** 9", "$1 << 10 ** 6", "$[0] * 10 ** 9", "$'a' * 10 ** 9", "$range(10 ** 12)"),
    *("$round(1, -10 ** 9)", "$(lambda f: f(f))(lambda f: f(f))", "$[[0] * 10000 for i in range(10000)]"),
    *("$[i for i in range(9999) for j in range(9999)]", "$''.join(['a' * 9999] * 9999)"),
    *("$('a' * 9999).replace('a', 'b' * 9999)", "$sum([[0] * 999] * 9999, [])", "$" + "-" * 3999 + "1"),
    *(
        "$" + "(" * 300 + "1" + ")" * 300,
        "$" + "+".join(["1"] * 1900),
        "$" + "[" * 1000 + "]" * 1000,
        "$1" + "0" * 3998,
    ),
    "$(lambda t: t == t)(" + "(lambda x: (x, x))(" * 90 + "1" + ")" * 91,
    "${" + "(lambda x: (x, x))(" * 90 + "1" + ")" * 90 + ": 1}",
    "$" + "'a'" * 4001,
    "$[[[i for i in range(99)] for j in range(99)] for k in range(99)]",
    "$" + "(lambda f: (f(), f()))(lambda: " * 60 + "1" + ")" * 60,
]


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:30])
def test_work_and_memory_are_bounded(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ExpressionError):
        evaluate(text, Names())
    assert time.process_time() - began < 2


def test_a_lambda_on_tensors_is_what_python_computes() -> None:
    torch = pytest.importorskip("torch")

    class Torch(Names):
        def is_listed(self, name: str) -> bool:
            return name == "torch.where" or super().is_listed(name)

        def value(self, name: str) -> Any:
            return Listed(name, torch.where) if name == "torch.where" else super().value(name)

    text = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    image = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    function = evaluate(text, Torch())
    assert function(image).tolist() == [[1, 2, 0, 4]]
    assert evaluate("$lambda x: x[1:].float().mean().item()", Torch())(image) == 4 / 8
    wide, high = torch.ones(1, 2**16), torch.ones(2**16, 1)
    with pytest.raises(ExpressionError, match="grows too large"):
        evaluate("$lambda x, y: x * y", Torch())(wide, high)
    with pytest.raises(ExpressionError, match=r"\.numpy"):
        evaluate("$lambda x: x.numpy()", Torch())


GROWING = [
    "$(lambda a: torch.cat([a] * 250))((lambda a: torch.cat([a] * 250))(x))",
    "$torch.cat([torch.cat([x] * 250)] * 250)",
    "$torch.cat([x, x + 1] * 120)[[0] * 250]",
    "$[x + i for i in range(9000)]",
    "$torch.stack([x] * 250)[torch.tensor([0] * 9000)]",
    "$x.unsqueeze(0).tolist()",
]


@pytest.mark.parametrize("text", GROWING)
def test_memory_of_arrays_is_bounded_by_the_image(text: str) -> None:
    torch = pytest.importorskip("torch")
    made: list[int] = []

    def counted(function: Any) -> Any:
        def call(*args: Any) -> Any:
            result = function(*args)
            made.append(result.nbytes)
            return result

        return call

    functions = {f"torch.{name}": counted(getattr(torch, name)) for name in ("cat", "stack", "tensor")}

    class Torch(Names):
        def is_listed(self, name: str) -> bool:
            return name in functions or super().is_listed(name)

        def value(self, name: str) -> Any:
            return Listed(name, functions[name]) if name in functions else super().value(name)

    image = torch.ones(4, 2**18)
    with pytest.raises(ExpressionError, match="memory"):
        evaluate(f"$lambda x: {text[1:]}", Torch())(image)
    assert sum(made) <= 64 * image.nbytes
    labels = "$lambda x: torch.stack([x[0] == i for i in range(20)])"
    assert evaluate(labels, Torch())(image).shape == (20, 2**18)
    small = "$torch.cat([torch.cat([torch.tensor([1.0] * 9000)] * 250)] * 250)"
    with pytest.raises(ExpressionError, match="memory"):
        evaluate(small, Torch())
