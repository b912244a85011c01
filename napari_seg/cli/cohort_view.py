"""Show a run while it goes on: bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from napari_seg.cohort.throughput import Throughput
from napari_seg.errors import one_line
from napari_seg.progress import describe_seconds

if TYPE_CHECKING:
    from napari_seg.cohort.outcome import CaseResult

SUMMARY_SECONDS = 60.0
"""Seconds between two summaries where the output is no terminal."""

MAX_PLANNED = 10
"""Cases up to which the windows and the memory of each are printed."""

_REFRESHES_PER_SECOND = 4
_WIDE = 72
"""Columns from which on the bar and the rate share a line."""

_NAME_COLUMNS = 32
_MAX_MESSAGE = 400


class _Running:
    """A case that is running: its name, its stage, and the fraction of the stage that is done."""

    def __init__(self, name: str) -> None:
        self.name = one_line(name, 200)
        self.stage = "starting"
        self.fraction: float | None = None


class _Stream:
    """A stream that drops what can't be written: a closed terminal, a full disk or a reader that ended stops no run."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write a text, if possible."""
        with suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written, if possible."""
        with suppress(OSError, ValueError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class CohortView:
    """Show the progress of a run on standard error; a context manager that a run calls back.

    On a terminal, a bar shows the fraction of cases that are done and failed, with the rate and the estimated time
    left, and a line shows each running case. Failures are printed above as they happen. Elsewhere, each finished case
    is one line of text, and a summary follows once a minute.

    Args:
        is_quiet: show nothing, for output that programs read.
        file: stream to write to; standard error if left out.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        is_quiet: bool = False,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(file=cast(IO[str], _Stream(file or sys.stderr)), quiet=is_quiet, highlight=False)
        self._clock = clock
        self._lock = RLock()
        self._running: dict[int, _Running] = {}
        self._total = self._done = self._failed = self._before = self._expected_before = 0
        self._throughput = Throughput()
        self._summarised = clock()
        is_live = self._console.is_terminal and not self._console.is_dumb_terminal and not is_quiet
        self._live = (
            Live(
                self,
                console=self._console,
                transient=True,
                refresh_per_second=_REFRESHES_PER_SECOND,
                vertical_overflow="crop",
            )
            if is_live
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_start(self, total: int, done_before: int) -> None:
        """Begin a run.

        Args:
            total: number of cases, those of earlier runs included.
            done_before: number of cases that an earlier run has done.
        """
        with self._lock:
            self._total, self._before, self._expected_before = total, done_before, done_before
            self._throughput.add(self._clock())
            self._summarised = self._clock()
        if self._live is None and done_before:
            self._print(f"{done_before} of {total} cases were done before")

    def on_case_start(self, number: int, name: str) -> None:
        """Show a case as running, also if it starts again."""
        with self._lock:
            self._running[number] = _Running(name)

    def on_progress(self, number: int, stage: str, done: int, total: int) -> None:
        """Show the stage of a running case, and the fraction of the stage that is done."""
        with self._lock:
            if running := self._running.get(number):
                running.stage = one_line(stage, 40)
                running.fraction = min(done / total, 1.0) if total > 0 else None

    def on_plan(self, number: int, text: str) -> None:
        """Print a line on the windows and the memory of a case, if there are few cases."""
        running = self._running.get(number)
        if running is not None and self._total <= MAX_PLANNED:
            self.show(f"{running.name}: {text}")

    def show(self, text: str) -> None:
        """Print a line above the bars."""
        self._print(text)

    def on_result(self, result: CaseResult) -> None:
        """Count a case that has ended, and print it: only failures on a terminal, each case elsewhere.

        The failure of an only case is left to the list of results.
        """
        name = one_line(result.name, 200)
        if result.is_earlier and self._expected_before:  # counted from the start
            self._expected_before -= 1
            return
        with self._lock:
            # an unknown name belongs to an input that could not be searched
            number = next((number for number, one in self._running.items() if one.name == name), None)
            if number is not None:
                del self._running[number]
            self._done += result.status != "failed"
            self._failed += result.status == "failed"
            self._throughput.add(self._clock())
        if result.status == "failed" and self._total == 1:
            return  # the list of results says it
        if result.status == "failed":
            reason = f"{name}: {result.code}: {one_line(result.message, _MAX_MESSAGE)}"
            self._print(f"failed  {reason}" if self._live else f"{self._count()} failed  {reason}", "red")
        elif self._live is None:
            self._print(f"{self._count()} {result.status:<7} {name} ({describe_seconds(result.seconds)})")
        if self._live is None and self._clock() - self._summarised >= SUMMARY_SECONDS and self._left():
            self._summarised = self._clock()
            self._print(f"{self._ended()} of {self._total} cases{self._failures()}{self._rate()}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            width, marks = options.max_width, BarMarks(console)
            facts = f"{100 * self._ended() // max(self._total, 1)} %{self._failures()}{self._rate()}"
            count = f"{self._ended()}/{self._total} "
            is_wide = width >= _WIDE
            bar = progress_bar(
                (self._before + self._done, self._failed, self._left()),
                max(width - len(count) - (len(facts) + 1) * is_wide, 5),
                marks,
            )
            bar = Text.assemble(count, bar, " " + facts if is_wide else "", no_wrap=True, overflow="crop")
            lines = [bar] if is_wide else [bar, Text(facts, no_wrap=True, overflow="ellipsis")]
            cases = list(self._running.values())
        room = max(options.height or console.height, 4) - len(lines) - 1
        shown = cases if len(cases) <= room else cases[: room - 1]
        lines += [_running_line(one, width, marks) for one in shown]
        if len(shown) < len(cases):
            lines.append(Text(f"  and {len(cases) - len(shown)} more", style="dim"))
        yield from lines

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=self._live is None)

    def _ended(self) -> int:
        return self._before + self._done + self._failed

    def _left(self) -> int:
        return max(self._total - self._ended(), 0)

    def _count(self) -> str:
        digits = len(str(self._total))
        return f"[{self._ended():>{digits}}/{self._total}]"

    def _failures(self) -> str:
        return f", {self._failed} failed" if self._failed else ""

    def _rate(self) -> str:
        now = self._clock()
        rate, left = self._throughput.per_minute(now), self._throughput.seconds_left(self._left(), now)
        if rate is None or left is None:
            return ""
        return f", {rate:.3g}/min, {describe_seconds(round(left))} left" if self._left() else f", {rate:.3g}/min"


class BarMarks:
    """Characters of a bar that the encoding of a terminal has: for the parts done, failed and left."""

    def __init__(self, console: Console) -> None:
        has_lines = "utf" in (console.encoding or "").lower() and not console.legacy_windows
        self.done, self.failed, self.left = ("━", "╳", "─") if has_lines else ("#", "x", "-")


def progress_bar(parts: tuple[int, int, int], width: int, marks: BarMarks) -> Text:
    """Return a bar of a width, divided into parts that are done, failed and left; a failure is always visible."""
    done, failed, left = parts
    total = max(done + failed + left, 1)
    ended = width * (done + failed) // total
    bad = min(max(round(width * failed / total), 1), width) if failed else 0
    ended = max(ended, bad)
    return Text.assemble(
        (marks.done * (ended - bad), "green"),
        (marks.failed * bad, "red"),
        (marks.left * (width - ended), "dim"),
    )


def _running_line(one: _Running, width: int, marks: BarMarks) -> Text:
    """Return the line of a running case: name, stage, and a bar where there is room."""
    percent = "" if one.fraction is None else f" {100 * one.fraction:3.0f} %"
    columns = min(_NAME_COLUMNS, max(width - 18 - len(percent), 8))
    name = (
        one.name
        if len(one.name) <= columns
        else f"{one.name[: columns // 2]}…{one.name[-(columns - columns // 2 - 1) :]}"
    )
    line = Text.assemble(f"  {name:<{columns}} ", (f"{one.stage:<10}", "cyan"), no_wrap=True, overflow="ellipsis")
    if one.fraction is not None and (room := min(width - len(line.plain) - len(percent) - 2, 40)) >= 8:
        done = int(room * one.fraction)
        line.append(" ").append_text(progress_bar((done, 0, room - done), room, marks))
    return line.append(percent)
