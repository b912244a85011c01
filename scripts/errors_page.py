#!/usr/bin/env python3
"""Write docs/errors.md from the table in napari_seg/error_codes.py.

python scripts/errors_page.py
"""

from __future__ import annotations

from pathlib import Path

from napari_seg.error_codes import AREAS, CODES

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"

HEAD = """# Errors, notices and skips

Everything that napari-seg reports has a code that stays the same from release to release. An **error** stops one scan,
or the whole command if it concerns all of them; its message adds what was found, what was expected and what to do. A
**notice** is a doubt that goes with a result. A **skip** is a file that is no scan, or a scan that
the filters or rules of a run leave out.

This page is written by `scripts/errors_page.py` from `napari_seg/error_codes.py`.
"""


def page() -> str:
    """Return the page: a table for each area, in alphabetical order."""
    sections = []
    for area, title in sorted(AREAS.items()):
        rows = [
            f"| `{name}` | {code.kind} | {code.meaning} | {code.mend} |"
            for name, code in sorted(CODES.items())
            if name.partition(".")[0] == area
        ]
        head = [f"## {area}", "", f"{title}.", "", "| code | kind | meaning | what to do |"]
        sections.append("\n".join([*head, "|---|---|---|---|", *rows]))
    return "\n\n".join([HEAD.rstrip(), *sections]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
