"""Texts in the cells of CSV tables, which people open in spreadsheets."""

from __future__ import annotations

import re

_FORMULA_START = re.compile(r"(^|[;\t\r\n]\s*)(?=[=+\-@＝＋－＠])|^(?=[\t\r\n])")
"""Where a formula can start: for a spreadsheet a cell may end at a semicolon, tab or new line, even in quotes."""


def text_cell(text: str) -> str:
    """Return a text for a CSV cell, with an apostrophe before what a spreadsheet would run as a formula."""
    return _FORMULA_START.sub(lambda found: f"{found.group(1) or ''}'", text)
