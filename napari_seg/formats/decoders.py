"""Runs foreign decoders in a process of their own: one that crashes, hangs or takes all memory costs one scan."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from napari_seg.errors import InputError
from napari_seg.formats.walk import kind_of
from napari_seg.memory import SAFE_FRACTION, describe_bytes, free_bytes, held_bytes, limited_to
from napari_seg.volume import Volume
from napari_seg.worker import WorkerDied, WorkerError, WorkerProcess

log = logging.getLogger(__name__)

SECONDS_AT_LEAST = 60.0
BYTES_A_SECOND = 1 << 20
"""A decoder that is slower than this, after its first minute, is taken to hang."""

LIBRARY_BYTES = 1 << 30
"""Address space that a reader's libraries take, more than memory."""

Found = TypeVar("Found")

Read = Callable[[Sequence[Path]], Found]

_DECODERS = WorkerProcess()


def read_apart(
    read: Read[Found],
    files: Sequence[Path],
    seconds: float | None = None,
    memory_bytes: int | None = None,
    name: str = "",
) -> Found:
    """What a reader makes of files, in a process of its own.

    Args:
        read: a function of a module, so that the other process finds it.
        files: what it is given.
        seconds: after which it is ended; None: as many as any decoder should need.
        memory_bytes: what this process and the reading may hold together; None: a safe share of the free memory.
        name: of what is read, for messages; "": that of the first file.

    Raises:
        InputError: what the reader raises; `input.not_a_file`; `file.crashes_reader`; `file.too_slow`;
            `file.too_large`.
        EnvironmentFault: `environment.memory`, what the header claims does not fit.
    """
    for file in files:
        if kind_of(file) == "special":
            text = f"{file.name} is a pipe, a socket or a device; expected a file"
            raise InputError("input.not_a_file", text)
    if seconds is None:
        seconds = SECONDS_AT_LEAST + sum(map(_size, files)) / BYTES_A_SECOND
    name, named = name or files[0].name, {file.absolute(): file for file in files}
    limit = _address_limit()
    limited = (
        "" if limit is None else f", or the limit on address space ({describe_bytes(limit)}, ulimit -v) is too low"
    )
    large = f"{name} needs more memory than may be used: it is damaged, or needs a larger machine{limited}"
    crashes = f"{name} makes its decoder crash: it is damaged{limited}; export it again"
    room = None if memory_bytes is None else memory_bytes - held_bytes()
    try:
        found: Found = _DECODERS.run(_read_limited, read, list(named), room, seconds=seconds)
    except MemoryError:
        raise InputError("file.too_large", large) from None
    except WorkerDied as ended:
        slow = f"{name} could not be decoded within {seconds:.0f} s; export it again"
        told = {"environment.too_slow": ("file.too_slow", slow), "environment.memory": ("file.too_large", large)}
        raise InputError(*told.get(ended.code, ("file.crashes_reader", crashes))) from None
    except WorkerError as mistake:
        log.debug("a decoder failed: %s\n%s", mistake.kind, mistake.places)
        raise InputError("file.crashes_reader", crashes) from None
    if isinstance(found, Volume):
        given = tuple(named.get(file, file) for file in found.source.files)
        return replace(found, source=replace(found.source, files=given))
    return found


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # its reader says what is wrong
        return 0


def _read_limited(read: Read[Found], files: Sequence[Path], room: int | None) -> Found:
    """Reads where a header's claim ends in a `MemoryError` and not in the death of whatever the system chooses."""
    free = int(SAFE_FRACTION * free_bytes())
    room = free if room is None else min(room, free)
    _limit_address_space(max(room, 0) + LIBRARY_BYTES)
    with limited_to(room):
        return read(files)


def _address_limit() -> int | None:
    """The limit on address space that this process was given, such as by `ulimit -v`; None without one."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(limits, default=None)


_limit_at_start = cache(_address_limit)


def _limit_address_space(more_bytes: int) -> None:
    """Let this process take so much more, within the limit that it was given; it is the first to go if memory ends."""
    if sys.platform != "linux":
        return
    import resource

    given = _limit_at_start()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = held + more_bytes if given is None else min(held + more_bytes, given)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
