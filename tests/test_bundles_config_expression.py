"""What an expression may not contain is found in its syntax tree, before anything is evaluated."""

from __future__ import annotations

from contextlib import suppress

import pytest
from test_bundles_config_evaluate import ENDLESS, FORBIDDEN, Names

from napari_seg.bundles.config.expression import ExpressionError, parse, problems


def found(text: str) -> list[str]:
    return problems(parse(text), Names().is_listed)


def test_problems_are_named_without_evaluation() -> None:
    assert found("$json.loads(pathlib.Path(@path).read_text())") == [
        "the name json.loads",
        "the name .read_text",
        "the name pathlib.Path",
    ]
    assert found("$lambda x: own.twice(x).__class__") == ["the name .__class__"]
    assert found("$own.twice(@a) + 1 // 0") == []


def test_references_are_found() -> None:
    assert parse("$@a#b + @c::0").references == {"_reference_0": "a::b", "_reference_1": "c::0"}


@pytest.mark.parametrize("text", [text for text in FORBIDDEN if ".append" not in text and "sorted" not in text])
def test_most_attacks_are_found_before_they_are_evaluated(text: str) -> None:
    values = ("min([1], key=len)", "str(@a)", "'%0999999999d' % 1", ".real", "**{")
    with suppress(ExpressionError):
        assert found(text) or any(value in text for value in values)


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:30])
def test_the_search_for_problems_ends(text: str) -> None:
    with suppress(ExpressionError):
        found(text)
