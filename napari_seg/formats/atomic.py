"""Files that get their names only once they were read back and found to be what was meant."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from napari_seg.errors import InputError, OutputError

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def unproven(path: Path, ending: str) -> Iterator[Path]:
    """A hidden name beside a file's own, for writing and reading back; the file gets its name if nothing is raised.

    Hidden, so that a run which is killed leaves nothing that is taken for a result.

    Args:
        path: the name that it will have; a file that had it is replaced.
        ending: of the hidden name; libraries choose the format by it.

    Raises:
        OutputError: `output.not_written`, the folder is missing or closed to us, or what was written can't be read;
            `output.disk_full`; or whatever of this kind is raised within.
    """
    hidden = path.with_name(f".{uuid4().hex}{ending}")
    try:
        yield hidden
        os.replace(hidden, path)
    except InputError as error:
        raise OutputError("output.not_written", f"{path} could not be written: {error.message}") from error
    except OSError as error:
        raise not_written(str(path), error) from error
    finally:
        with suppress(OSError):  # a folder that is closed to us, or a file, says so here a second time
            hidden.unlink(missing_ok=True)


def make_output_folder(folder: Path) -> None:
    """Make a folder if it is missing, and check that files can be written into it.

    Raises:
        OutputError: `output.folder`, it can't be made or written to; `output.disk_full`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        if is_disk_full(error):
            raise not_written(str(folder), error) from error
        reason = error.strerror or type(error).__name__
        raise OutputError(
            "output.folder", f"can't write to {folder} ({reason}); choose another folder with -o"
        ) from error


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk, or the user's share of it, has no room left."""
    return error.errno in _DISK_FULL


def not_written(what: str, error: OSError) -> OutputError:
    """Return the error of a file that the operating system did not write.

    Args:
        what: the file, or the result, as a person names it.
        error: that was raised.
    """
    reason = error.strerror or type(error).__name__
    if is_disk_full(error):
        return OutputError("output.disk_full", f"{what} could not be written: {reason}; free some space and run again")
    return OutputError("output.not_written", f"{what} could not be written: {reason}")
