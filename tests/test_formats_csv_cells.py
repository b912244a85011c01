"""No text in a cell of a table runs as a formula, whatever a spreadsheet takes for the end of a cell."""

from __future__ import annotations

import pytest

from napari_seg.formats.csv_cells import text_cell


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("liver", "liver"),
        ("=1+1", "'=1+1"),
        ("liver;=1+1", "liver;'=1+1"),
        ("a; b;\t +2\n@x", "a; b;\t '+2\n'@x"),
        ("T1-weighted; 3 T", "T1-weighted; 3 T"),
    ],
)
def test_a_formula_is_text(text: str, cell: str) -> None:
    assert text_cell(text) == cell
