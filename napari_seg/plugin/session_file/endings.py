"""Ending of the names of session files."""

from __future__ import annotations

from pathlib import Path

ENDING = ".napari-seg"


def is_session_file(path: Path) -> bool:
    """Return whether a file is a session by its name."""
    return path.name.lower().endswith(ENDING)
