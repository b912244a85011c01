"""Files that the file managers of macOS and Windows leave in folders, as soon as somebody looks into one.

They are no part of a model. Each is known by its name and its content together. The content is neither Python nor a
pickle nor settings of logging, so that nothing which could act passes as litter.
"""

from __future__ import annotations

import re
from pathlib import Path

_STARTS = (
    (re.compile(r"\.DS_Store"), b"\0\0\0\1Bud1"),
    (re.compile(r"\._.+"), b"\0\5\x16\7"),  # AppleDouble, where a drive can't store what macOS knows about a file
    (re.compile(r"thumbs\.db", re.IGNORECASE), b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
)
"""Names and first bytes."""

_MAX_DESKTOP_INI = 4096
"""Bytes of a desktop.ini; a longer one is no litter."""

_DESKTOP_INI = re.compile(r"\[(\.ShellClassInfo|ViewState|LocalizedFileNames|\{[0-9A-F-]+\})\]|[^\[\]=]+=.*|", re.I)
"""A line of desktop.ini."""


def is_litter(path: Path) -> bool:
    """Return whether the Finder of macOS or the Explorer of Windows left a file, whatever folder it is in.

    Args:
        path: any path; a link, a pipe or a device is never litter.
    """
    start = next((start for name, start in _STARTS if name.fullmatch(path.name)), None)
    if (start is None and path.name.lower() != "desktop.ini") or path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_MAX_DESKTOP_INI + 1)
    except OSError:
        return False
    return head.startswith(start) if start else _is_desktop_ini(head)


def _is_desktop_ini(content: bytes) -> bool:
    encoding = "utf-16" if content.startswith(b"\xff\xfe") else "latin-1"
    lines = content.decode(encoding, errors="replace").strip().splitlines()
    return (
        len(content) <= _MAX_DESKTOP_INI
        and lines[:1] == ["[.ShellClassInfo]"]
        and all(_DESKTOP_INI.fullmatch(line.strip()) for line in lines)
    )
