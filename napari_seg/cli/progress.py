"""Terminal output: progress bars and tables of results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console

from napari_seg.cohort.runner import CaseResult

_STAGES = {"locating": "locating the region", "loading": "loading the model", "segmenting": "segmenting"}


class Output(Console):
    """Console for tables on standard output; a closed pipe ends the command (see `main`)."""

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


_INFERENCE_LOGGER = logging.getLogger("napari_seg.inference")


class _LogPrinter(logging.Handler):
    """Print log messages above the progress bars, prefixed with the name of the scan."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.scan = ""

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"{self.scan}: {record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


class CohortProgress:
    """Show progress on standard error: bars for scans and steps, and the computation plan of each scan.

    The plan states the device, the windows and the estimated time and memory.

    Args:
        scan_count: number of scans.
        show_bars: draw the bars, with the elapsed and the remaining time.
        print_plans: print the plan and the measured time and memory of each scan as lines of text.
    """

    def __init__(self, scan_count: int, show_bars: bool = True, print_plans: bool = True) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not show_bars,
        )
        self._scans = self._bars.add_task("scans", total=scan_count)
        self._step = self._bars.add_task("reading", total=None)
        self._stage = ""
        self._plan_printer = _LogPrinter(self._bars.console) if print_plans else None

    def __enter__(self) -> Self:
        self._bars.start()
        if self._plan_printer is not None:
            _INFERENCE_LOGGER.addHandler(self._plan_printer)
            _INFERENCE_LOGGER.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if self._plan_printer is not None:
            _INFERENCE_LOGGER.removeHandler(self._plan_printer)

    def on_case(self, number: int, name: str) -> None:
        """Show the start of the next scan; `number` is the count of finished scans."""
        self._bars.update(self._scans, completed=number, description=f"scans ({name})")
        self._stage = ""
        if self._plan_printer is not None:
            self._plan_printer.scan = name
        self._bars.reset(self._step, total=None, description="reading")

    def on_step(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage of the scan."""
        if stage != self._stage:
            self._stage = stage
            self._bars.reset(self._step, total=total, description=_STAGES.get(stage, stage))
        self._bars.update(self._step, completed=done, total=total)


_FEW_STRUCTURES = 20
"""Structures of a scan that are all listed, found or not."""


def print_results(results: Sequence[CaseResult]) -> None:
    """Print a table of the finished scans with volumes in ml, then one line for each notice and each failure."""
    from rich.markup import escape
    from rich.table import Table

    console = Output()
    done = [r for r in results if r.status == "done"]
    failed = [r for r in results if r.status == "failed"]
    if done:
        table = Table("scan", "structure", "ml", "confidence", "", title="volumes", title_justify="left")
        for column in (2, 3):
            table.columns[column].justify = "right"
        for result in done:
            with_notice = {notice.segment for notice in result.notices if notice.code != "result.islands"}
            listed = result.volumes_ml
            if len(listed) > _FEW_STRUCTURES:
                listed = {name: volume_ml for name, volume_ml in listed.items() if volume_ml}
            absent = len(result.volumes_ml) - len(listed)
            for row, (name, volume_ml) in enumerate(listed.items()):
                confidence = result.confidence.get(name)
                table.add_row(
                    "" if row else escape(result.name),
                    escape(name),
                    f"{volume_ml:.2f}",
                    "" if confidence is None else f"{confidence:.2f}",
                    "doubtful" if name in with_notice else "",
                    end_section=row == len(listed) - 1 and not absent,
                )
            if absent:
                name = "" if listed else escape(result.name)
                table.add_row(name, f"{absent} others not found", "0.00", "", "", end_section=True)
        console.print(table)
    for result in done:
        for notice in result.notices:
            console.print(f"warning  {result.name}: {notice}", markup=False)
        console.print(f"done     {result.labels}  ({result.seconds:.1f} s; preview: {result.overlay})", markup=False)
    for result in failed:
        console.print(f"failed   {result.name}: {result.code}: {result.message}", markup=False)
    console.print(f"{len(done)} done, {len(failed)} failed", markup=False)
