"""Runners: processes that work on the cases of one output folder, one at a time or several on purpose.

A runner holds a lock on a file in its hidden folder and touches that file every few seconds. On the same machine the
lock tells whether it is alive, whatever the clock says. A runner of another machine counts as dead if it has not
touched its file for two minutes, by the clock of the drive.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from napari_seg.cohort.manifest import Manifest, RunnerRow
from napari_seg.cohort.outputs import HIDDEN, move_back, move_forward
from napari_seg.errors import CohortError, OutputError
from napari_seg.formats.atomic import make_output_folder, not_written

LOCK = "lock"
_BEAT_SECONDS = 5.0
DEAD_SECONDS = 120.0


class Runner:
    """This process as a runner; a context manager that registers it, recovers what dead runners left, and ends it.

    Attributes:
        id: number in the manifest.
        folder: its hidden folder.

    Args:
        output: the output folder.
        manifest: its manifest.
        is_joined: whether other runners may run beside it.

    Raises:
        CohortError: `cohort.locked`, another runner is alive, and not both may share the work.
    """

    def __init__(self, output: Path, manifest: Manifest, *, is_joined: bool = False) -> None:
        self.output = output
        self.id = 0
        self.folder = output / HIDDEN / secrets.token_hex(4)
        self._manifest = manifest
        self._is_joined = is_joined
        self._beaten = 0.0

    def __enter__(self) -> Self:
        host = socket.gethostname()
        try:
            self._make_folder()
            self.beat()
        except OSError as error:
            raise not_written(str(self.folder), error) from error
        try:
            with self._manifest.transaction():
                for other in self._manifest.runners():
                    if other.ended is not None:
                        continue
                    if is_alive(self.output, other):
                        self._refuse_unless_shared(other)
                    else:
                        self._recover(other.id, self.output / HIDDEN / other.folder)
                self.id = self._manifest.add_runner(host, os.getpid(), self.folder.name, self._is_joined)
        except BaseException:
            self._remove_folder()
            raise
        self._sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception), self._manifest.transaction():  # the drive may be gone; the next run recovers
            self._recover(self.id, self.folder)
        self._remove_folder()
        self._sweep()
        with suppress(OSError):
            (self.output / HIDDEN).rmdir()

    def _make_folder(self) -> None:
        """Create the hidden folder and lock it."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / LOCK)
            try:
                with suppress(NotImplementedError):  # a file system without locks
                    self._lock.acquire(timeout=_BEAT_SECONDS)
                return
            except FileNotFoundError:  # a runner that ended removed it before it was locked
                continue

    def beat(self) -> None:
        """Show that this runner is alive; does something every few seconds only."""
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.monotonic()
            with suppress(OSError):
                os.utime(self.folder / LOCK)

    def check_output(self) -> None:
        """Check that the output folder is still there and can be written to; one that is gone is not created again.

        Raises:
            OutputError: `output.folder`, `output.disk_full`.
        """
        if not (self.folder / LOCK).exists():
            text = (
                f"{self.output} is gone, or is no longer the folder in which this run began; reconnect its drive, or "
                "move the folder back, and give the same command again"
            )
            raise OutputError("output.folder", text)
        make_output_folder(self.output)

    def staging(self, number: int, attempt: int) -> Path:
        """Create and return the empty staging folder of a case.

        Raises:
            OutputError: `output.folder`, `output.not_written`, `output.disk_full`.
        """
        folder = self.folder / f"{number}.{attempt}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        except OSError as error:
            self.check_output()
            raise not_written(str(folder), error) from error
        return folder

    def _refuse_unless_shared(self, other: RunnerRow) -> None:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(other.started))
        who = f"process {other.pid} on {other.host} works in {self.output} since {since}"
        if not (self._is_joined and other.is_joined):
            first = "it was started without --join; " if self._is_joined and not other.is_joined else ""
            text = f"{who}; {first}wait for it, stop it, or start both with --join to share the work"
            raise CohortError("cohort.locked", text)
        if self._manifest.is_wal:
            text = f"{who} and keeps the manifest in a mode that machines can't share; stop it and start both again"
            raise CohortError("cohort.locked", text)

    def _recover(self, runner: int, folder: Path) -> None:
        """Complete or undo what a runner left, and note its end."""
        for row in [row for row in self._manifest.rows(("running", "moving")) if row.runner == runner]:
            staging = folder / f"{row.id}.{row.attempts}"
            if row.state == "moving" and move_forward(self.output, staging, row.outputs):
                self._manifest.set_done(row.id)
            else:
                move_back(self.output, staging)
                self._manifest.set_waiting(row.id)
        self._manifest.end_runner(runner)

    def _remove_folder(self) -> None:
        with suppress(OSError):
            self._lock.release(force=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove hidden folders of runners that have ended; a dying worker may have written into them since."""
        alive = {row.folder for row in self._manifest.runners() if row.ended is None} | {self.folder.name}
        with suppress(OSError, NotImplementedError):
            for folder in (self.output / HIDDEN).iterdir():
                if not folder.is_dir():
                    folder.unlink(missing_ok=True)
                elif folder.name not in alive and not _is_locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """Create a hidden folder for unfinished files that are not those of a case, and remove it at the end.

    If the program is killed, the next run removes it.

    Args:
        output: the output folder.

    Raises:
        OSError: the folder could not be created.
    """
    folder = output / HIDDEN / secrets.token_hex(4)
    folder.mkdir(parents=True)
    lock = FileLock(folder / LOCK)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=_BEAT_SECONDS)
        yield folder
    finally:
        with suppress(OSError):
            lock.release(force=True)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others are in it
            folder.parent.rmdir()


def is_alive(output: Path, runner: RunnerRow) -> bool:
    """Return whether a runner that has not ended is alive.

    Args:
        output: the output folder.
        runner: the runner.
    """
    if runner.ended is not None:
        return False
    folder = output / HIDDEN / runner.folder
    if runner.host == socket.gethostname():
        with suppress(OSError, NotImplementedError):  # a read-only medium, or a file system without locks
            return _is_locked(folder)
    try:
        touched = (folder / LOCK).stat().st_mtime
        return abs(_now(output) - touched) < DEAD_SECONDS  # later than now: the clock was set back since
    except OSError:
        return False


def _now(output: Path) -> float:
    """Return the time by the clock of the drive; by that of this machine if the folder is read-only."""
    probe = output / HIDDEN / f"clock-{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _is_locked(folder: Path) -> bool:
    """Return whether a process of this machine holds the lock in a hidden folder.

    Raises:
        OSError, NotImplementedError: it can't be found out.
    """
    path = folder / LOCK
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release(force=True)
    return False
