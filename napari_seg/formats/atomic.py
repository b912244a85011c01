"""Write files so that a name never stands for a half-written file: write under a hidden name, verify, rename."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from uuid import uuid4

from napari_seg.errors import InputError, OutputError

_before_rename: ContextVar[Callable[[], None]] = ContextVar("before_rename", default=lambda: None)
"""What `set_aside` does before a file gets its name."""

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def verified_write(path: Path, ending: str) -> Iterator[Path]:
    """Yield a hidden path for writing a file and reading it back; rename it to its name if nothing is raised.

    The name is hidden, so that a run that is killed leaves nothing that is taken for a result.

    Args:
        path: name of the finished file; an existing file is replaced.
        ending: ending of the hidden name, by which libraries choose the format.

    Raises:
        OutputError: `output.not_written`, the folder is missing or not writable, or the written file can't be read;
            `output.disk_full`; or any `OutputError` of the block.
    """
    try:
        with atomic_file(path, ending) as hidden:
            yield hidden
    except InputError as error:
        raise OutputError("output.not_written", f"{path} could not be written: {error.message}") from error
    except OSError as error:
        raise not_written(str(path), error) from error


@contextmanager
def atomic_file(path: Path, ending: str = "", *, folder: Path | None = None) -> Iterator[Path]:
    """Yield a hidden path in the folder of a file; rename it to the file's name if nothing is raised, else remove it.

    Args:
        path: name of the finished file; an existing file is replaced.
        ending: ending of the hidden name.
        folder: folder of the hidden path, on the same drive; None: that of the file.

    Raises:
        OSError: the file could not be written or renamed.
    """
    hidden = (folder or path.parent) / f".{uuid4().hex}{ending}"
    try:
        yield hidden
        _before_rename.get()()
        rename(hidden, path)
    finally:
        with suppress(OSError):  # the block has already raised the reason
            hidden.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Rename a file; on Windows, try again for some seconds, because other programs look into new files.

    Args:
        source: the file.
        target: its new name; an existing file is replaced.

    Raises:
        OSError: the file could not be renamed.
    """
    for delay in (0.1, 0.3, 1.0, 3.0) if sys.platform == "win32" else ():
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(delay)
    os.replace(source, target)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader finds the old content or the new one, even if the program is killed.

    Args:
        path: file to write; an existing file is replaced.
        content: bytes, or text, which is encoded as UTF-8 with its line ends unchanged.

    Raises:
        OSError: the file could not be written.
    """
    with atomic_file(path) as hidden:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Remove a file when another one, which the block writes by `atomic_file`, gets its name.

    Until then the file stays, so that a program that is killed while it writes leaves both files as they were. It also
    comes back if the block raises.

    Args:
        path: the file; it may be missing.

    Raises:
        OSError: the file could not be renamed or removed.
    """
    hidden = path.with_name(f".{uuid4().hex}{path.suffix}")

    is_done = False

    def hide() -> None:
        nonlocal is_done
        if not is_done:
            is_done = True
            with suppress(FileNotFoundError):
                rename(path, hidden)

    token = _before_rename.set(hide)
    try:
        yield
        hide()  # if the block wrote none
    except BaseException:
        with suppress(FileNotFoundError):
            rename(hidden, path)
        raise
    finally:
        _before_rename.reset(token)
    hidden.unlink(missing_ok=True)


_HEAD_BYTES = 2048


def refuse_other_files(folder: Path, signs: Mapping[str, str], writer: str) -> None:
    """Refuse to replace files in a folder that another command or program has written.

    Args:
        folder: the folder.
        signs: name of a file -> text in its first 2 KiB by which one's own file is recognised.
        writer: what writes these files, in words for the message.

    Raises:
        OutputError: `output.exists`; `output.not_written`, a file can't be read.
    """
    for name, sign in signs.items():
        path = folder / name
        try:
            if not os.path.lexists(path):
                continue
            is_own = path.is_file() and sign.encode() in path.open("rb").read(_HEAD_BYTES)
        except OSError as error:
            raise not_written(str(path), error) from error
        if not is_own:
            text = f"{path} exists and was not written by {writer}; move it away, or choose another folder with -o"
            raise OutputError("output.exists", text)


def make_output_folder(folder: Path) -> None:
    """Create a folder if it is missing, and check that files can be written into it.

    Raises:
        OutputError: `output.folder`, the folder can't be created or is not writable; `output.disk_full`.
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
    """Return whether an error says that the disk, or the user's quota, is full."""
    return error.errno in _DISK_FULL


def not_written(what: str, error: OSError) -> OutputError:
    """Return the `OutputError` for an error of the operating system while a file was written.

    Args:
        what: file or result, as the message calls it.
        error: error that was raised.
    """
    reason = error.strerror or type(error).__name__
    if is_disk_full(error):
        return OutputError("output.disk_full", f"{what} could not be written: {reason}; free some space and run again")
    return OutputError("output.not_written", f"{what} could not be written: {reason}")
