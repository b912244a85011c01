"""State of a run as another program sees it, from its manifest, while it goes on or after; nothing is written.

Whether a runner is alive is judged without taking its lock: on the same machine by its process; in a container with its
own process ids, or on another machine, by the time of the file in which it counts every few seconds. Between machines,
that is only an estimate, because clocks may differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outputs import HIDDEN
from napari_seg.cohort.rows import CaseRow, RunnerRow
from napari_seg.cohort.runners import BEAT, DEAD_SECONDS, is_this_machine, machine
from napari_seg.cohort.throughput import WINDOW, Throughput
from napari_seg.worker import is_process_alive

MAX_FAILURES = 5
"""Failures that a status lists."""

RunState = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class RunnerStatus:
    """A runner that has not ended in an orderly way, or the last one.

    Attributes:
        row: what the manifest knows of it.
        is_alive: whether it is running.
        silent_seconds: time since its last sign of life, for a runner of another machine or container; None if unknown.
    """

    row: RunnerRow
    is_alive: bool
    silent_seconds: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """State of a run.

    Attributes:
        state: "running"; "finished", no case is left; "stopped", cases are left and nobody works on them.
        counts: state -> number of cases.
        per_minute: number of cases a minute lately; None while it is unknown.
        seconds_left: estimated time left; None unless it is running.
        runners: living runners; without any, the last one.
        running: cases that are claimed.
        failures: the last failures, newest first.
        read_at: time of reading, in seconds since 1970 UTC.
    """

    state: RunState
    counts: dict[str, int]
    per_minute: float | None
    seconds_left: float | None
    runners: tuple[RunnerStatus, ...]
    running: tuple[CaseRow, ...]
    failures: tuple[CaseRow, ...]
    read_at: float

    @property
    def total(self) -> int:
        """Number of all cases."""
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        """Number of cases that have not ended."""
        return sum(self.counts[state] for state in ("waiting", "running", "moving"))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "state": self.state,
            "counts": self.counts,
            "total": self.total,
            "per_minute": None if self.per_minute is None else round(self.per_minute, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "runners": [
                {
                    "host": one.row.host,
                    "pid": one.row.pid,
                    "version": one.row.version,
                    "started": one.row.started,
                    "ended": one.row.ended,
                    "is_alive": one.is_alive,
                    "silent_seconds": None if one.silent_seconds is None else round(one.silent_seconds, 1),
                }
                for one in self.runners
            ],
            "running": [
                {"name": row.name, "stage": row.stage, "started": row.started, "attempts": row.attempts}
                for row in self.running
            ],
            "failures": [{"name": row.name, "code": row.code, "message": row.message} for row in self.failures],
            "read_at": round(self.read_at, 1),
        }


def read_status(folder: Path) -> RunStatus:
    """Return the state of the run in an output folder.

    Raises:
        CohortError: `cohort.no_manifest`, `cohort.manifest`, `cohort.manifest_locked`.
    """
    with Manifest.open(folder, read_only=True) as manifest:
        return status_of(manifest)


def status_of(manifest: Manifest) -> RunStatus:
    """Return the state of the run of an open manifest.

    Raises:
        CohortError: `cohort.manifest`, `cohort.manifest_locked`.
    """
    now, folder = time.time(), manifest.path.parent
    counts: dict[str, int] = {state: number for state, number in manifest.counts().items()}
    rows = manifest.runners()
    running = tuple(manifest.rows(("running", "moving")))
    failures = tuple(islice(manifest.rows(("failed",), "ended DESC"), MAX_FAILURES))
    unended = [_runner_status(row, folder, now) for row in rows if row.ended is None]
    alive = tuple(one for one in unended if one.is_alive)
    started = min((one.row.started for one in alive), default=rows[-1].started if rows else 0.0)
    # those of earlier runs do not count
    throughput = Throughput((ended for ended in manifest.last_ends(WINDOW) if ended >= started), started)
    is_left = any(counts[state] for state in ("waiting", "running", "moving"))
    state: RunState = "running" if alive else "stopped" if is_left else "finished"
    left = sum(counts[state] for state in ("waiting", "running", "moving"))
    at = now if alive else None
    return RunStatus(
        state=state,
        counts=counts,
        per_minute=throughput.per_minute(at),
        seconds_left=throughput.seconds_left(left, at) if alive else None,
        runners=alive or tuple(unended[-1:]) or tuple(RunnerStatus(row, False) for row in rows[-1:]),
        running=running,
        failures=failures,
        read_at=now,
    )


def _runner_status(row: RunnerRow, folder: Path, now: float) -> RunnerStatus:
    if row.machine == machine():
        return RunnerStatus(row, is_process_alive(row.pid, row.started))
    try:
        silent = now - (folder / HIDDEN / row.folder / BEAT).stat().st_mtime
    except OSError:
        return RunnerStatus(row, False)
    limit = DEAD_SECONDS if is_this_machine(row.machine) else 2 * DEAD_SECONDS  # clocks may differ
    return RunnerStatus(row, silent < limit, max(silent, 0.0))
