"""What a run over cases consists of, what ends it and what shows it; see `loop.run_cases`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from napari_seg.cohort.case import Case
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.resume import Redo
from napari_seg.cohort.settings import RunSettings
from napari_seg.cohort.workers import Pool
from napari_seg.errors import NapariSegError
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Excluded:
    """A scan that is not run.

    Attributes:
        name: name of the case, or of the input.
        code: code of the error, or of the reason to skip it.
        message: the same in words.
        source: path of the scan, in public names.
        is_failure: whether it is an error; otherwise it was skipped on purpose.
        scan: the scan; None for an input that could not be searched.
    """

    name: str
    code: str
    message: str
    source: str = ""
    is_failure: bool = True
    scan: Scan | ChannelSet | None = field(default=None, repr=False)  # its path may name a patient


class Stop:
    """Request to end a run: the first lets running cases finish, the second ends them at once."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def count(self) -> int:
        """Requests so far."""
        return self._count

    def request(self) -> None:
        """Ask to end; may be called by a signal handler or another thread."""
        self._count += 1


class View(Protocol):
    """What shows a run while it goes on; all methods are called in the thread of the run."""

    def on_start(self, total: int, done_before: int) -> None:
        """Show how many cases there are, and how many of them an earlier run finished."""

    def on_case_start(self, number: int, name: str) -> None:
        """Show that a worker starts a case."""

    def on_progress(self, number: int, stage: str, done: int, total: int) -> None:
        """Show the progress of a case."""

    def on_plan(self, number: int, text: str) -> None:
        """Show a line on the windows and the memory of a case."""

    def on_result(self, result: CaseResult) -> None:
        """Show the result of a case."""


class GuardedView:
    """Passes calls on to a view until one fails: a closed terminal must not end a run."""

    def __init__(self, view: View | None) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: object) -> None:
            if self._view is None:
                return
            try:
                getattr(self._view, name)(*args)
            except NapariSegError:
                raise
            except Exception as error:
                self._view = None
                log.warning("the run is not shown any more (%s)", type(error).__name__)

        return call


@dataclass
class Run:
    """A run over cases.

    Attributes:
        output: output folder, created if missing; nothing is written outside it.
        cases: cases with keys that are unique; each has a bundle.
        settings: settings of the run.
        make_pool: makes the workers, given the cases that are left to run.
        excluded: scans that are not run, for the manifest.
        extra_files: path relative to the output folder -> text of further files; see `layout.files_to_write`.
        redo: results of earlier runs to make again.
        is_joined: share the work with other runners in the same folder.
        stop: takes requests to end.
        view: shows the run; None: nothing does.
        layout: how the output folder is arranged; see `layout`.
        others: number of finished results of scans that are not among those of this run; set when it begins.
        left_out: number of earlier results that count no longer, because this run leaves out or refuses their scans;
            set when it begins.
        renamed: number of earlier results that count no longer, because this run has their scans under other names;
            set when it begins.
    """

    output: Path
    cases: Sequence[Case]
    settings: RunSettings
    make_pool: Callable[[Sequence[Case]], Pool]
    excluded: Sequence[Excluded] = ()
    extra_files: Mapping[PurePosixPath, str] = field(default_factory=dict)
    redo: Redo = "none"
    is_joined: bool = False
    stop: Stop = field(default_factory=Stop)
    view: View | None = None
    layout: str = "flat"
    others: int = 0
    left_out: int = 0
    renamed: int = 0
