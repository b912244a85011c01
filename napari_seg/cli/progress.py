"""Tables of results on the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from rich.console import Console

from napari_seg.cohort.outcome import CaseResult

_MAX_COLUMNS = 10_000
"""Width of a table in a file, which no row reaches."""


class Output(Console):
    """Console for tables on standard output; a closed pipe ends the command (see `main`).

    On a terminal, tables are as wide as the terminal; in a file or a pipe, each row is one line.
    """

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _MAX_COLUMNS

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def figure(value: float, form: str) -> str:
    """Return a formatted number; "–" for NaN."""
    return "–" if isnan(value) else f"{value:{form}}"


_FEW_STRUCTURES = 20
"""Structures of a scan that are all listed, found or not."""


MAX_LISTED = 30
"""Finished scans that are all listed; of more, only the failures are."""


def print_results(results: Sequence[CaseResult], output: Path, report: Path | None = None) -> None:
    """Print a table of the finished scans with volumes in ml, then one line for each notice and each failure.

    Args:
        results: the results.
        output: the output folder, which has the rest of a long list.
        report: page about all cases of the folder; None: there is none.
    """
    from rich.markup import escape
    from rich.table import Table

    from napari_seg.formats.endings import IMAGE2D_ENDINGS, has_ending

    console = Output()
    done = [r for r in results if r.status == "done"]
    failed = [r for r in results if r.status == "failed"]
    skipped = sum(r.status == "skipped" for r in results)
    earlier = sum(r.is_earlier for r in done)
    if listed_done := done if len(done) <= MAX_LISTED else []:
        is_2d = any(has_ending(Path(result.source), IMAGE2D_ENDINGS) for result in listed_done)
        title = "volumes" + "; 1000 pixels of a 2D image count as 1 ml" * is_2d
        table = Table("scan", "structure", "ml", "confidence", "remark", title=title, title_justify="left")
        table.columns[0].overflow = "fold"  # names of scans often differ only at their end
        for column in (2, 3):
            table.columns[column].justify = "right"
        for result in listed_done:
            with_notice = {notice.segment for notice in result.notices if notice.code != "result.islands"}
            is_doubtful = any(notice.code == "fitness.label_map" for notice in result.notices)
            listed = result.volumes_ml
            if len(listed) > _FEW_STRUCTURES:
                listed = {name: volume_ml for name, volume_ml in listed.items() if volume_ml}
            absent = len(result.volumes_ml) - len(listed)
            for row, (name, volume_ml) in enumerate(listed.items()):
                confidence = result.confidence.get(name)
                remark = "doubtful" if is_doubtful or name in with_notice else ""
                table.add_row(
                    "" if row else escape(result.name),
                    escape(name),
                    f"{volume_ml:.2f}",
                    "" if confidence is None else f"{confidence:.2f}",
                    remark if volume_ml else "not found",
                    end_section=row == len(listed) - 1 and not absent,
                )
            if absent:
                name = "" if listed else escape(result.name)
                table.add_row(name, f"{absent} others not found", "0.00", "", "", end_section=True)
        console.print(table)
    for result in listed_done:
        for notice in result.notices:
            console.print(f"warning  {result.name}: {notice}", markup=False)
        preview = f"; preview: {result.overlay}" if result.overlay else ""
        console.print(f"done     {result.labels}  ({result.seconds:.1f} s{preview})", markup=False)
    for result in failed:
        console.print(f"failed   {result.name}: {result.code}: {result.message}", markup=False)
    counts = f"{len(done)} done" + f" ({earlier} by an earlier run)" * bool(earlier) + f", {len(failed)} failed"
    console.print(counts + f", {skipped} skipped" * bool(skipped), markup=False)
    if report is not None:
        console.print(f"report   {report}", markup=False)
    elif not listed_done and done:
        console.print(f"the volumes are in {output}", markup=False)
