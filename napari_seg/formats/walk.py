"""The files below a folder, each once, and what there is besides them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from napari_seg.errors import InputError

LeftOut = tuple[tuple[Path, ...], str, str]
"""Paths that are not looked at, the code of the reason, and a message."""


def files_below(folder: Path, is_scan: Callable[[Path], bool]) -> tuple[list[Path], list[LeftOut]]:
    """Return the files below a folder in the order of their paths, and what is left out.

    Links to folders are followed after all that is no link, unless they lead to a folder that was or will be looked
    through. Hidden files are left out: .DS_Store, the ._T1.nii.gz that macOS leaves next to T1.nii.gz, what lies in
    .git/annex. So are pipes, sockets and devices, which block whoever opens them, and links that lead nowhere, unless
    they are scans by their names. A folder that can't be opened is returned as a file, so that reading it says why.

    Args:
        folder: where to look.
        is_scan: whether a file must be a scan, by its name.

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
            text = f"{current.name} is a link to a folder that is looked through already"
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
            text = f"{entries_text} in {current.name} not read; rename what is a scan"
            left_out.append((hidden, "skip.hidden", text))
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith("."):
                continue
            # what no link is needs no look of its own, which takes time on a server
            kind = "file" if entry.is_file(follow_symlinks=False) else kind_of(path)
            if kind == "folder":
                (links if entry.is_symlink() else waiting).append(path)
            elif kind == "file" or (kind == "nowhere" and is_scan(path)):
                files.append(path)
            elif kind == "nowhere":
                left_out.append(((path,), "skip.link", f"{path.name} is a link that leads nowhere"))
            else:
                left_out.append(((path,), "skip.not_a_file", f"{path.name} is a pipe, a socket or a device"))
    return sorted(files), left_out


def kind_of(path: Path) -> Literal["file", "folder", "special", "nowhere"]:
    """Return what a path is, links followed; "nowhere" of a link without an end, "file" where only reading can tell."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "nowhere" if error.errno in (errno.ENOENT, errno.ELOOP) else "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"


def _identity(folder: Path) -> tuple[int, int] | str:
    try:
        status = os.stat(folder)
    except OSError:  # opening it says what is wrong
        return str(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
