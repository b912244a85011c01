"""List the files below a folder, each once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from napari_seg.errors import InputError

LeftOut = tuple[tuple[Path, ...], str, str]
"""Paths that are left out, the code of the reason, and a message."""


def files_below(folder: Path, is_scan: Callable[[Path], bool]) -> tuple[list[Path], list[LeftOut]]:
    """Return the files below a folder in the order of their paths, and what is left out.

    Links to folders are followed after all real folders, unless they lead to a folder that is searched anyway. Hidden
    files are left out (.DS_Store, the ._T1.nii.gz that macOS writes next to T1.nii.gz, the content of .git/annex), and
    so are pipes, sockets and devices, which would block the reader, and links without a target, unless they have the
    name of a scan. A folder that can't be opened is returned as a file, so that reading it raises the reason.

    Args:
        folder: folder to search.
        is_scan: returns true for a file with the name of a scan.

    Raises:
        InputError: `file.unreadable`, the folder itself can't be opened.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    seen = {_identity(parent) for parent in folder.resolve().parents}
    waiting, links = [folder], list[Path]()
    while waiting or links:
        current = waiting.pop() if waiting else links.pop(0)
        identity = _identity(current)
        if identity in seen:
            text = f"{current.name} is a link to a folder that is searched already"
            left_out.append(((current,), "skip.link", text))
            continue
        seen.add(identity)
        try:
            with os.scandir(current) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                text = f"the folder {folder} can't be opened: {error.strerror}"
                raise InputError("file.unreadable", text) from error
            files.append(current)
            continue
        hidden = tuple(current / entry.name for entry in entries if entry.name.startswith("."))
        if hidden:
            entries_text = "1 hidden entry" if len(hidden) == 1 else f"{len(hidden)} hidden entries"
            text = f"{entries_text} in {current.name} not read; rename those that are scans"
            left_out.append((hidden, "skip.hidden", text))
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith("."):
                continue
            # only links need a call to `stat`, which is slow on a network drive
            kind = "file" if entry.is_file(follow_symlinks=False) else file_type(path)
            if kind == "folder":
                (links if entry.is_symlink() else waiting).append(path)
            elif kind == "file" or (kind == "missing" and is_scan(path)):
                files.append(path)
            elif kind == "missing":
                left_out.append(((path,), "skip.link", f"{path.name} is a link without a target"))
            else:
                left_out.append(((path,), "skip.not_a_file", f"{path.name} is a pipe, a socket or a device"))
    return sorted(files, key=lambda file: os.path.normcase(file).split(os.sep)), left_out


def file_type(path: Path) -> Literal["file", "folder", "special", "missing"]:
    """Return the type of a path after following links: "missing" without a target, "file" if it can't be examined."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "missing" if error.errno in (errno.ENOENT, errno.ELOOP) else "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"


def _identity(folder: Path) -> tuple[int, int] | str:
    try:
        status = os.stat(folder)
    except OSError:  # opening it raises the reason
        return str(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
