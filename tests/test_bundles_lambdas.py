"""Functions of a config are recognised by their syntax; what is not recognised is None, and nothing runs."""

from __future__ import annotations

import pytest

from napari_seg.bundles.lambdas import is_without_first, label_rule, parsed_lambda, scale_of


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))",
            [(1, 2), (0, 1), (2, 4)],
        ),
        ("torch.where(x[1:2] == 1, 3, 0)", [(1, 3)]),
        ("torch.where(x[[0]] >= 0.5, 1, 0)", [(0, 1)]),
    ],
)
def test_a_nest_of_where_is_a_rule(text: str, rule: list[tuple[int, int]]) -> None:
    function = parsed_lambda(f"$lambda x: {text}")
    assert function is not None
    assert label_rule(function) == rule


@pytest.mark.parametrize(
    ("text", "scale"),
    [("x", 1), ("x * 255", 255), ("x.to(torch.uint8) * 2", 2), ("x.float()", 1), ("x.astype(np.int16)", 1)],
)
def test_a_change_of_type_or_scale_keeps_labels_apart(text: str, scale: float) -> None:
    function = parsed_lambda(f"$lambda x: {text}")
    assert function is not None
    assert scale_of(function) == scale


def test_all_channels_but_the_first() -> None:
    function = parsed_lambda("$lambda y : y[1:]")
    assert function is not None
    assert is_without_first(function)


@pytest.mark.parametrize("text", ["lambda x: x", "$f", "$lambda x, y: x", "$lambda x=1: x", "$lambda *x: x", 3, None])
def test_only_a_lambda_of_one_argument_is_read(text: object) -> None:
    assert parsed_lambda(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "x > 1",
        "-x",
        "x.bool()",
        "x.to(torch.bool)",
        "x * -1",
        "x[0]",
        "x[[0]]",
        "x.to(f(x))",
        "os.system('x')",
        "torch.where(x[[2]] > 0, 4, 1)",
        "torch.where(x[[2]] > 0, 4, x)",
        "torch.where(x[[2]] > 0, 4.5, 0)",
        "torch.where(x[[2]] > 0, 1000000000, 0)",
        "torch.where(x[[2]] > 0, True, 0)",
        "torch.where(x[[2]] > 1, 4, 0)",
        "torch.where(x[[2]] < 1, 4, 0)",
        "torch.where(x[[-1]] > 0, 4, 0)",
        "torch.where(x[[7]] > 0, 4, 0)",
        "torch.where(x[[True]] > 0, 4, 0)",
        "torch.where(y[[2]] > 0, 4, 0)",
        "torch.where(x[2:] > 0, 4, 0)",
        "torch.where(x[[2]] > 0, 4, torch.where(x[[2]] > 0, 1, 0))",
        "torch.where(x[[2]] > 0, 4, torch.where(x[[1]] > 0, 4, 0))",
        "np.where(x[[2]] > 0, 4, 0)",
        "torch.where(x[[2]] > 0, 4, 0, out=x)",
        "where(x[[2]] > 0, 4, 0)",
        "(" * 300,
        "-" * 100_000 + "x",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    function = parsed_lambda(f"$lambda x: {text}")
    assert function is None or (label_rule(function) is None or "7" in text)
    assert function is None or scale_of(function) is None
    assert function is None or not is_without_first(function)
