"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write to; what stands there at the end of the block takes the place of `path`.

    What stood there before becomes `previous`, if that is given. Whoever opens `path` at any time, after a kill or a
    loss of power too, finds the old file or the new one, never a part of one (or no file in the instant between the
    two renamings, and the old one as `previous`). The name is this process's own, so that several may write the same
    file; a kill may leave it behind.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
