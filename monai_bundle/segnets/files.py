"""Files that are whole or not there, and that one process has."""

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

_LEAST_FREE = 1 << 20
"""Bytes; a disk with less room is full."""

# what file systems without locks say, NFS and Lustre as they are mounted in many clusters
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write to; what stands there at the end of the block takes the place of `path`.

    The folder is made if it is missing.

    What stood there before becomes `previous`, if that is given. Whoever opens `path` at any time, after a kill or a
    loss of power too, finds the old file or the new one, never a part of one (or no file in the instant between the
    two renamings, and the old one as `previous`). The name is this process's own, so that several may write the same
    file; a kill may leave it behind.

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
    except (OSError, RuntimeError) as error:  # torch has no other type for a file that it can't write
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError | RuntimeError) -> TrainingError:
    number = getattr(error, "errno", None)
    with suppress(OSError):
        if number is None and shutil.disk_usage(path.parent).free < _LEAST_FREE:
            number = errno.ENOSPC
    if number in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(
            "output.disk_full",
            f"{path} can't be written, for the disk is full; free some space: the same command goes on from the last "
            "checkpoint, if one was written",
        )
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return TrainingError("output.not_written", f"{path} can't be written ({reason}); give another output_dir")


def load_whole(path: str | Path, map_location: str | None = None) -> Any:
    """What `torch.save` wrote, loaded without running code, from a file without any damage.

    torch does not compare the checksums that it writes: zeroed bytes would be loaded as weights.

    Raises:
        Exception: of nearly any kind, at a file that is absent, cut short or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} in it is damaged")
    return torch.load(path, map_location=map_location, weights_only=True)


def lock(path: str | Path) -> IO[str] | None:
    """A lock on `path` that no other process has until this one closes it or ends, however it ends; None if one has it.

    A process has it as a whole, and its children do not inherit it (POSIX record lock). On Windows nothing is locked,
    nor on a file system without locks, which is logged.
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
        logger.warning("%s can't be locked (%s): see that no other process writes there", path, error.strerror)
    return file
