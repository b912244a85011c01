"""Write files completely or not at all, verify them when read, and lock a folder for one process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from segnets.errors import TrainingError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger("segnets")

PART = ".part"
"""Ending of a file that is being written."""

_MIN_FREE_BYTES = 1 << 20
"""Free bytes below which a disk counts as full."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks, such as NFS and Lustre on many clusters; Windows has EINVAL for it."""


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None, *, is_optional: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename the file to `path` at the end of the block.

    At any time, also after a kill or a loss of power, `path` is the complete old file or the complete new one; with
    `previous` there is an instant between two renames at which only `previous` exists. The temporary name contains the
    process's number, so several processes may write the same file; a killed process may leave it behind.

    Args:
        path: the file; its folder is created if necessary.
        previous: where the old file is kept; None: it is overwritten.
        is_optional: keep the old file, with a warning, if another program has it open and Windows refuses to replace
            it. A figure that somebody looks at must not end a training.

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
            rename(path, previous)
        rename(part, path)
    except PermissionError as error:
        if not is_optional:
            raise _not_written(path, error) from error
        logger.warning("%s was not written (%s); is it open in another program?", path, error.strerror)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if it can't write a file
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def rename(source: Path, target: str | Path) -> None:
    """Rename a file; on Windows, try again for some seconds, because other programs look into new files.

    Raises:
        OSError: the file could not be renamed.
    """
    for delay in (0.1, 0.3, 1.0, 3.0) if sys.platform == "win32" else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(delay)
    source.replace(target)


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
    return TrainingError("output.not_written", f"{path} can't be written ({reason}); give another --output_dir")


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

    The lock belongs to the whole process, and child processes do not inherit it: a POSIX record lock, or the first byte
    on Windows. On a file system without locks nothing is locked, and a warning is logged.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - as long as the lock is held
    except OSError as error:
        raise _not_written(Path(path), error) from error
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
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
