"""Test what a run shows while it goes on."""

from __future__ import annotations

import errno
import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from napari_seg.cli.cohort_view import SUMMARY_SECONDS, CohortView
from napari_seg.cohort.outcome import CaseResult


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(view: CohortView, width: int = 100, height: int = 25, encoding: str = "utf-8", **options) -> str:
    """Return what the view shows on a terminal."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=True, **options)
    console.print(view, end="")
    file.seek(0)
    return file.read()


def done(name: str, seconds: float = 1.25) -> CaseResult:
    return CaseResult(name, "done", seconds=seconds)


def failed(name: str, message: str = "found no scan") -> CaseResult:
    return CaseResult(name, "failed", "file.not_nifti", message)


def started(clock: Clock, total: int = 20, done_before: int = 4) -> CohortView:
    """Return a view of a run with two finished cases, one failed and two running ones."""
    view = CohortView(file=Terminal(), clock=clock)
    view.on_start(total, done_before)
    for number in range(5):
        view.on_case_start(number, f"case_{number}")
    for number in range(2):
        clock.now += 6
        view.on_result(done(f"case_{number}"))
    clock.now += 6
    view.on_result(failed("case_2"))
    view.on_progress(3, "segmenting", 3, 4)
    return view


def test_a_pipe_gets_a_line_for_each_case_and_a_summary_once_a_minute() -> None:
    file, clock = io.StringIO(), Clock()
    with CohortView(file=file, clock=clock) as view:
        view.on_start(12, 2)
        for name in ("earlier_1", "earlier_2"):
            view.on_result(replace(done(name), is_earlier=True))
        view.on_case_start(0, "a")
        view.on_progress(0, "segmenting", 1, 2)
        clock.now += 10
        view.on_result(done("a"))
        view.on_result(failed("b"))
        clock.now += SUMMARY_SECONDS - 10
        view.on_result(done("c", 61))
    assert file.getvalue().splitlines() == [
        "2 of 12 cases were done before",
        "[ 3/12] done    a (1.2 s)",
        "[ 4/12] failed  b: file.not_nifti: found no scan",
        "[ 5/12] done    c (1 min 1 s)",
        "5 of 12 cases, 1 failed, 3/min, 2 min 20 s left",
    ]


def test_the_failure_of_an_only_case_is_left_to_the_results() -> None:
    file = io.StringIO()
    with CohortView(file=file) as view:
        view.on_start(1, 0)
        view.on_result(failed("a"))
    assert file.getvalue() == ""


def test_a_quiet_view_writes_nothing() -> None:
    file = Terminal()
    with CohortView(is_quiet=True, file=file) as view:
        view.on_start(2, 1)
        view.on_case_start(0, "a")
        view.on_result(failed("a"))
    assert file.getvalue() == ""


def test_standard_error_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    view = CohortView()
    view.on_start(1, 0)
    view.on_result(done("a"))
    assert file.getvalue() == "[1/1] done    a (1.2 s)\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_stream_that_takes_nothing_any_more_stops_no_run(error: Exception, is_terminal: bool) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

        def isatty(self) -> bool:
            return is_terminal

    with CohortView(file=Closed()) as view:
        view.on_start(2, 0)
        view.on_case_start(1, "a")
        view.show("stopping")
        view.on_result(CaseResult("a", "done"))
        view.on_result(CaseResult("b", "failed", "file.empty", "0 bytes"))


def test_a_wide_terminal_has_the_bar_and_a_line_for_each_running_case() -> None:
    first, third, fourth = shown(started(Clock()), width=200, no_color=True, color_system=None).splitlines()
    assert first.startswith("7/20 ━")
    assert first.rstrip().endswith("35 %, 1 failed, 10/min, 1 min 18 s left")
    assert len(first) <= 200
    assert third.split()[:2] == ["case_3", "segmenting"]
    assert third.rstrip().endswith("75 %")
    assert fourth.split() == ["case_4", "starting"]


def test_a_narrow_terminal_has_two_lines_and_no_line_is_too_long() -> None:
    view = started(Clock())
    view.on_case_start(9, "a_very_long_name_of_a_case_that_does_not_fit_on_it")
    view.on_progress(9, "segmenting", 1, 2)
    lines = shown(view, width=40, color_system=None).splitlines()
    assert lines[0].startswith("7/20 ━")
    assert lines[1].startswith("35 %, 1 failed, 10/min, 1 min")
    assert "…" in lines[4]
    assert lines[4].rstrip().endswith("50 %")
    assert max(map(len, lines)) <= 40


def test_running_cases_that_do_not_fit_are_counted() -> None:
    view = CohortView(file=Terminal())
    view.on_start(99, 0)
    for number in range(30):
        view.on_case_start(number, f"case_{number}")
    lines = shown(view, height=10, color_system=None).splitlines()
    assert len(lines) < 10
    assert lines[-1].strip() == "and 23 more"


def test_failed_cases_are_red_and_have_another_sign_without_colours() -> None:
    coloured = shown(started(Clock()), color_system="standard")
    assert "\x1b[31m╳" in coloured
    plain = shown(started(Clock()), no_color=True, color_system="standard")
    assert "╳" in plain
    assert "\x1b[31m" not in plain
    ascii_only = shown(started(Clock()), encoding="ascii", color_system=None)
    assert "#x-" in ascii_only.replace("xx", "x").replace("xx", "x")


def test_a_few_failures_of_many_cases_are_visible() -> None:
    view = CohortView(file=Terminal())
    view.on_start(10_000, 9_000)
    view.on_result(failed("a"))
    assert "╳" in shown(view, width=40, color_system=None)


def test_failures_are_printed_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Terminal()
    with CohortView(file=file) as view:
        view.on_start(2, 0)
        view.on_case_start(0, "a")
        view.on_result(done("a"))
        view.on_result(failed("b", "found \x1b[2J [red]text[/red]"))
    text = file.getvalue()
    assert "failed  b: file.not_nifti: found [2J [red]text[/red]" in text
    assert "\x1b[2J" not in text
    assert "done    a" not in text


def test_a_run_without_cases_or_with_more_results_than_cases_is_shown() -> None:
    view = CohortView(file=Terminal())
    assert "0/0" in shown(view, color_system=None)
    view.on_start(1, 0)
    for _ in range(3):
        view.on_result(failed("input"))
    assert "3/1" in shown(view, color_system=None)


def test_a_case_that_starts_again_has_one_line() -> None:
    view = CohortView(file=Terminal())
    view.on_start(1, 0)
    view.on_case_start(0, "a")
    view.on_progress(0, "segmenting", 1, 2)
    view.on_case_start(0, "a")
    assert len(shown(view, color_system=None).splitlines()) == 2


class Closed(Terminal):
    """A terminal that is closed after some writes."""

    def __init__(self, fault: OSError, is_terminal: bool) -> None:
        super().__init__()
        self.fault, self.is_terminal, self.is_closed = fault, is_terminal, False

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if self.is_closed:
            raise self.fault
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("fault", [OSError(errno.EIO, "closed"), BrokenPipeError()])
def test_a_closed_terminal_does_not_end_the_run(fault: OSError, is_terminal: bool) -> None:
    file = Closed(fault, is_terminal)
    with CohortView(file=file) as view:
        view.on_start(4, 0)
        view.on_result(failed("a"))
        before = file.getvalue()
        file.is_closed = True
        for name in "bcd":
            view.on_case_start(1, name)
            view.on_result(failed(name))
        assert before
        assert "file.not_nifti" in before
