"""Runs foreign decoders in a process of their own: one that crashes, hangs or takes all memory costs one scan."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from napari_seg.apart import Ended, Mistake, OwnProcess
from napari_seg.errors import InputError
from napari_seg.volume import Volume

log = logging.getLogger(__name__)

SECONDS_AT_LEAST = 60.0
BYTES_A_SECOND = 1 << 20
"""A decoder that is slower than this, after its first minute, is taken to hang."""

MEMORY_SHARE = 0.8
"""Of the machine's memory, what a decoder may take."""

Found = TypeVar("Found")

Read = Callable[[Sequence[Path]], Found]

_DECODERS = OwnProcess()


def read_apart(read: Read[Found], files: Sequence[Path], seconds: float | None = None) -> Found:
    """What a reader makes of files, in a process of its own.

    Args:
        read: a function of a module, so that the other process finds it.
        files: what it is given.
        seconds: after which it is ended; None: as many as any decoder should need.

    Raises:
        InputError: what the reader raises; `file.crashes_reader`; `file.too_slow`; `file.too_large`.
    """
    if seconds is None:
        seconds = SECONDS_AT_LEAST + sum(file.stat().st_size for file in files) / BYTES_A_SECOND
    name, named = files[0].name, {file.absolute(): file for file in files}
    large = f"{name} claims more memory than this machine has; it is damaged, or needs a larger machine"
    crashes = f"{name} makes its decoder crash: it is damaged; export it again"
    try:
        found: Found = _DECODERS.run(_read_limited, read, list(named), seconds=seconds)
    except MemoryError:
        raise InputError("file.too_large", large) from None
    except Ended as ended:
        slow = f"{name} could not be decoded within {seconds:.0f} s; export it again"
        told = {"environment.too_slow": ("file.too_slow", slow), "environment.memory": ("file.too_large", large)}
        raise InputError(*told.get(ended.code, ("file.crashes_reader", crashes))) from None
    except Mistake as mistake:
        log.debug("a decoder failed: %s\n%s", mistake.kind, mistake.places)
        raise InputError("file.crashes_reader", crashes) from None
    if isinstance(found, Volume):
        return replace(found, files=tuple(named[file] for file in found.files))
    return found


def _read_limited(read: Read[Found], files: Sequence[Path]) -> Found:
    """Reads where a header's claim ends in a `MemoryError` and not in the death of whatever the system chooses."""
    _limit_memory()
    return read(files)


@cache
def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    page = os.sysconf("SC_PAGE_SIZE")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * page
    limit = held + int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * page)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
