"""Runners: processes that work on the cases of one output folder, one at a time or several on purpose.

A runner holds a lock on a file in its hidden folder, and a thread of it counts in another file every few seconds. On
the same machine the lock tells whether it is alive. On another machine it counts as dead if that file did not change
for half a minute of watching. No two clocks are ever compared. A runner that was taken for dead by mistake changes
nothing any more: each of its changes holds only for cases that are still its own (see `Manifest.claim`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from napari_seg.cohort.manifest import Manifest, taken_over
from napari_seg.cohort.outputs import HIDDEN, check_hidden, is_own_folder, move_back, move_forward, place_below
from napari_seg.cohort.rows import CaseRow, RunnerRow
from napari_seg.errors import CohortError, OutputError
from napari_seg.formats.atomic import make_output_folder, not_written

BEAT = "alive"
"""Name of the file in which a runner counts."""

DEAD_SECONDS = 30.0
"""Time without a sign of life after which a runner of another machine counts as dead."""

_LOCK = "lock"
_OWN_FOLDER = re.compile("[0-9a-f]{8}")
_IN_OWN_FOLDER = re.compile(rf"{BEAT}|{_LOCK}|\d+\.\d+|\..+")
"""Names of the hidden folders of runners and reports, and of what lies in them."""
_BEAT_SECONDS = 5.0
_WATCH_SECONDS = 1.0

_TRIES = 3

_NETWORK_DRIVES = (
    *("nfs", "cifs", "smb", "fuse.", "9p", "ceph", "lustre", "gpfs", "beegfs", "afs", "glusterfs", "pvfs"),
    *("afpfs", "webdav", "macfuse", "osxfuse"),  # of macOS, besides nfs and smbfs
)
"""Types of drives that machines share, or their first letters."""


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
        CohortError: `cohort.locked`, another runner is alive, and not both may share the work; `cohort.manifest`, the
            manifest or a link leads to files outside of the output folder.
        OutputError: `output.folder`, the hidden folder is a link; `output.not_written`, `output.disk_full`.
    """

    def __init__(self, output: Path, manifest: Manifest, *, is_joined: bool = False) -> None:
        self.output = output
        self.id = 0
        self.folder = output / HIDDEN / secrets.token_hex(4)
        self._manifest = manifest
        self._is_joined = is_joined
        self._watch = RunnerWatch(output)
        self._has_ended = threading.Event()

    def __enter__(self) -> Self:
        check_hidden(self.output)
        try:
            while not self._register():
                time.sleep(_WATCH_SECONDS)
        except BaseException:
            self._remove_folder()
            raise
        # only one machine can use WAL; a program that looks at the file for a moment delays the switch
        is_wal = not self._is_joined and not is_network_drive(self.output)
        if not self._switch_journal(is_wal) and not is_wal:
            self.__exit__(None, None, None)
            text = f"another program reads {self._manifest.path}, which must be closed before machines can share it"
            raise CohortError("cohort.locked", f"{text}; close it and run again")
        threading.Thread(target=self._beat, name="napari-seg alive", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended.set()
        is_recovered = False
        with suppress(Exception), self._manifest.transaction():  # the drive may be gone; the next run recovers
            is_recovered = self._recover(self.id, self.folder.name)
        if is_recovered:
            self._remove_folder()
        with suppress(Exception), self._manifest.transaction():
            self._sweep()
        with suppress(OSError):
            (self.output / HIDDEN).rmdir()

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
            raise not_written(f"{HIDDEN}/{self.folder.name}", error) from error
        return folder

    def check_output(self) -> None:
        """Check that the output folder is still there and can be written to; one that is gone is not created again.

        Raises:
            CohortError: `cohort.taken_over`, it is this run that was taken for dead.
            OutputError: `output.folder`, `output.disk_full`.
        """
        if self._manifest.has_ended(self.id):
            raise taken_over()
        if not os.path.exists(self.folder / BEAT):
            text = (
                f"{self.output} is gone, or is no longer the folder in which this run began; reconnect its drive, or "
                "move the folder back, and give the same command again"
            )
            raise OutputError("output.folder", text)
        make_output_folder(self.output)

    def recover_dead(self) -> None:
        """Take over the cases of other runners that have died since."""
        others = [row for row in self._manifest.runners() if row.ended is None and row.id != self.id]
        dead = [row for row in others if self._watch.is_alive(row) is False]
        if dead:
            with suppress(CohortError), self._manifest.transaction():  # it can wait
                for row in dead:
                    self._recover(row.id, row.folder)

    def _switch_journal(self, is_wal: bool) -> bool:
        """Switch WAL on or off, and return whether that succeeded."""
        for _ in range(_TRIES):
            if self._manifest.use_wal(is_wal):
                return True
            time.sleep(_WATCH_SECONDS)
        return False

    def _register(self) -> bool:
        """Register this process; return false while it is unknown whether another runner is alive.

        One transaction holds from the look at the other runners to the entry of this one, so that of two that start at
        the same time the second sees the first.
        """
        judged = {row.id: self._watch.is_alive(row) for row in self._manifest.runners() if row.ended is None}
        with self._manifest.transaction():
            others = [row for row in self._manifest.runners() if row.ended is None]
            for other in others:
                if judged.get(other.id) is not False:
                    if judged.get(other.id):
                        self._refuse_unless_shared(other)
                        continue
                    return False
                self._recover(other.id, other.folder)
            try:
                self._make_folder()
            except OSError as error:
                raise not_written(HIDDEN, error) from error
            name = self.folder.name
            self.id = self._manifest.add_runner(socket.gethostname(), os.getpid(), name, self._is_joined, machine())
            self._sweep()
        return True

    def _make_folder(self) -> None:
        """Create the hidden folder and lock it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / BEAT).write_text("0")
        self._lock = _locked(self.folder)

    def _beat(self) -> None:
        """Count in a file until the runner ends; in a thread of its own."""
        count = 0
        while not self._has_ended.wait(_BEAT_SECONDS):
            count += 1
            with suppress(OSError):
                (self.folder / BEAT).write_text(str(count))

    def _refuse_unless_shared(self, other: RunnerRow) -> None:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(other.started))
        is_here = other.pid == os.getpid() and other.machine == machine()
        who = "this process" if is_here else f"process {other.pid} on {other.host}"
        who = f"{who} works in {self.output} since {since}"
        if not (self._is_joined and other.is_joined):
            first = "it was started without --join; " if self._is_joined and not other.is_joined else ""
            text = f"{who}; {first}wait for it, stop it, or start both with --join to share the work"
            raise CohortError("cohort.locked", text)

    def _recover(self, runner: int, folder: str) -> bool:
        """Complete or undo what a runner left, and note its end; return false if a file could not be renamed yet."""
        is_complete = True
        for row in [row for row in self._manifest.rows(("running", "moving")) if row.runner == runner]:
            try:
                self._recover_case(row, _hidden_folder(self.output, f"{folder}/{row.id}.{row.attempts}"))
            except OSError:  # such as a file that is open in another program on Windows
                is_complete = False
        if is_complete:
            self._manifest.end_runner(runner, was_killed=runner != self.id)
        return is_complete

    def _recover_case(self, row: CaseRow, staging: Path) -> None:
        if row.state == "moving" and move_forward(self.output, staging, row.outputs):
            self._manifest.finish_moving(row)
            return
        move_back(self.output, staging, row.outputs if row.state == "moving" else None)
        self._manifest.undo(row)

    def _remove_folder(self) -> None:
        with suppress(OSError, AttributeError):  # it may not have come so far
            self._lock.release(force=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove the hidden folders of runners that have ended; a dying worker may have written into them since.

        It belongs into a transaction: a runner registers its folder in one.
        """
        kept = {row.folder for row in self._manifest.runners() if row.ended is None}
        with suppress(OSError, OutputError):
            check_hidden(self.output)
            for path in (self.output / HIDDEN).iterdir():
                if path.name not in kept and _is_leftover(path) and not _is_locked(path):
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """Create a hidden folder for unfinished files that are not those of a case, and remove it at the end.

    If the program is killed, the next run removes it.

    Args:
        output: the output folder.

    Raises:
        OSError: the folder could not be created.
        OutputError: `output.folder`, the hidden folder is a link.
    """
    check_hidden(output)
    folder = output / HIDDEN / secrets.token_hex(4)
    folder.mkdir(parents=True)
    lock = _locked(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            lock.release(force=True)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others are in it
            folder.parent.rmdir()


class RunnerWatch:
    """Tells whether runners of an output folder are alive; nothing is written.

    Args:
        output: the output folder.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._seen: dict[int, tuple[str, float, bool]] = {}

    def is_alive(self, runner: RunnerRow) -> bool | None:
        """Return whether a runner is alive; None if it is not known yet, for one of another machine: ask again.

        Args:
            runner: the runner.

        Raises:
            CohortError: `cohort.manifest`, its folder lies outside of the output folder.
        """
        if runner.ended is not None:
            return False
        folder = _hidden_folder(self._output, runner.folder)
        if is_this_machine(runner.machine) and (locked := _is_locked(folder)) is not None:
            return locked
        try:
            content = (folder / BEAT).read_text()
        except OSError:
            content = ""
        now = time.monotonic()
        before, since, has_changed = self._seen.setdefault(runner.id, (content, now, False))
        if content != before:
            self._seen[runner.id] = (content, now, True)
            return True
        if now - since > DEAD_SECONDS:
            return False
        return True if has_changed else None


def is_network_drive(folder: Path) -> bool:
    """Return whether a folder lies on a drive that other machines may use, too, as far as the system tells."""
    if os.name == "nt":
        return str(folder.resolve()).startswith("\\\\")
    import psutil

    found = ""
    with suppress(OSError):
        place, longest = folder.resolve(), 0
        for drive in psutil.disk_partitions(all=True):
            if place.is_relative_to(drive.mountpoint) and len(drive.mountpoint) >= longest:
                found, longest = drive.fstype, len(drive.mountpoint)
    return found.startswith(_NETWORK_DRIVES)


def machine() -> str:
    """Return a short text that differs between machines, and between starts of one on Linux, without naming it.

    On Linux, the number of the namespace of process ids follows behind ":". Containers of one machine have several.
    """
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = str(uuid.getnode())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        return f"{digest}:{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"
    except (OSError, AttributeError):
        return digest


def is_this_machine(text: str) -> bool:
    """Return whether a text of `machine` is that of this machine, in whichever container."""
    return text.partition(":")[0] == machine().partition(":")[0]


def _hidden_folder(output: Path, name: str) -> Path:
    """Return a folder in the hidden folder of an output folder.

    Raises:
        CohortError: `cohort.manifest`, it lies elsewhere or behind a link.
    """
    return place_below(output, f"{HIDDEN}/{name}/{BEAT}").parent


def _locked(folder: Path) -> FileLock:
    """Lock a hidden folder, and return the lock; some file systems have none.

    Raises:
        OSError: the folder can't be written to.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_BEAT_SECONDS)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
    return lock


def _is_leftover(path: Path) -> bool:
    """Return whether a path in the hidden folder is a folder that this program has made; nothing else is removed."""
    if not _OWN_FOLDER.fullmatch(path.name) or not is_own_folder(path):
        return False
    return all(map(_IN_OWN_FOLDER.fullmatch, os.listdir(path)))


def _is_locked(folder: Path) -> bool | None:
    """Return whether a process of this machine holds the lock in a hidden folder; None if it can't be found out."""
    path = folder / _LOCK
    if not path.is_file() or path.is_symlink():  # what opens a lock empties the file
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return None
    lock.release(force=True)
    return False
