"""Write files completely or not at all, verify them when read, and lock a folder for one process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from segnets.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger("segnets")

PART = ".part"
"""Ending of a file that is being written."""

_MIN_FREE_BYTES = 1 << 20
"""Free bytes below which a disk counts as full."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks, such as NFS and Lustre on many clusters."""


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename the file to `path` at the end of the block.

    At any time, also after a kill or a loss of power, `path` is the complete old file or the complete new one; with
    `previous` there is an instant between two renames at which only `previous` exists. The temporary name contains the
    process's number, so several processes may write the same file; a killed process may leave it behind.

    Args:
        path: the file; its folder is created if necessary.
        previous: where the old file is kept; None: it is overwritten.

    Raises:
        TrainingError: "output.disk_full", or "output.not_written" for any other reason.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if it can't write a file
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError | RuntimeError) -> TrainingError:
    number = getattr(error, "errno", None)
    with suppress(OSError):
        if number is None and shutil.disk_usage(path.parent).free < _MIN_FREE_BYTES:
            number = errno.ENOSPC
    if number in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(
            "output.disk_full",
            f"{path} can't be written because the disk is full; free some space and run the same command again: it "
            "resumes from the last checkpoint, if one was written",
        )
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return TrainingError("output.not_written", f"{path} can't be written ({reason}); give another output_dir")


def load_verified(path: str | Path, map_location: str | None = None) -> Any:
    """Load a file that `torch.save` wrote, after verifying its checksums, and without running code.

    torch itself ignores the checksums that it writes: it would load zeroed bytes as weights.

    Raises:
        Exception: of almost any type, if the file is absent, truncated or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} in it is damaged")
    return torch.load(path, map_location=map_location, weights_only=True)


def lock(path: str | Path) -> IO[str] | None:
    """Lock a file for this process until it closes the file or ends; return None if another process has locked it.

    The lock belongs to the whole process, and child processes do not inherit it (POSIX record lock). On Windows nothing
    is locked. On a file system without locks nothing is locked either, and a warning is logged.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - as long as the lock is held
    except OSError as error:
        raise _not_written(Path(path), error) from error
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        logger.warning("%s can't be locked (%s): make sure that no other process writes there", path, error.strerror)
    return file
