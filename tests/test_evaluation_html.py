"""Test the parts of a page."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from napari_seg.evaluation.html import document, strips, table, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.9, 1.0, [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 130, [0, 50, 100, 150])],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_a_section_without_content_is_left_out() -> None:
    html = document("a < b", "lead", {"First": "<p>text</p>", "Second": ""})
    assert "<h1>a &lt; b</h1>" in html
    assert "<h2>First</h2>\n<p>text</p>" in html
    assert "Second" not in html


def test_only_the_scripts_of_the_page_run() -> None:
    html = document("a", "", {}, style="p { color: red }", script="const a = 1;")
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    assert script.endswith("const a = 1;")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in html
    assert "p { color: red }</style>" in html


def test_a_table_that_can_be_sorted_has_buttons() -> None:
    assert "<button>" not in table(["a"], [["1"]], text=())
    assert "<th><button>a</button></th>" in table(["a"], [["1"]], text=(), sortable=True)


def test_a_strip_has_a_dot_for_each_case() -> None:
    svg = strips({"front": {"case_1": 0.5, "case_2": 0.75}, "back": {}}, "Dice", 2, is_fraction=True)
    assert svg.count("<circle") == 2
    assert "case_1: 0.50" in svg
    assert "back: Dice" in svg
    assert strips({"front": {}}, "Dice", 2, is_fraction=True) == ""
