"""Run readers in a worker process: a decoder that crashes, hangs or uses all memory costs one scan."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import TypeVar

from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats.walk import file_type
from napari_seg.memory import SAFE_FRACTION, describe_bytes, free_bytes, limited_to, resident_bytes
from napari_seg.volume import Volume
from napari_seg.worker import WorkerDied, WorkerError, WorkerProcess

log = logging.getLogger(__name__)

MIN_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 1 << 20
"""A decoder that is slower, after its first minute, is assumed to hang."""

LIBRARY_BYTES = 1 << 30
"""Address space of a reader's libraries, which is more than their memory."""

Content = TypeVar("Content")

Reader = Callable[[Sequence[Path]], Content]

_READERS = WorkerProcess()


def read_in_worker(
    read: Reader[Content],
    files: Sequence[Path],
    seconds: float | None = None,
    memory_bytes: int | None = None,
    name: str = "",
) -> Content:
    """Return what a reader makes of files, in a worker process.

    Args:
        read: function at the top level of a module, so that the worker can import it.
        files: files to read; the reader gets their absolute paths.
        seconds: time limit; None for a limit that no working decoder exceeds.
        memory_bytes: limit for this process and the reader together; None for a safe fraction of the free memory.
        name: name of the scan in messages; "" for the name of the first file.

    Raises:
        InputError: an error of the reader; `input.not_a_file`; `file.crashes_reader`; `file.too_slow`;
            `file.too_large`.
        EnvironmentFault: `environment.memory`, the size in the header does not fit in memory.
    """
    for file in files:
        if file_type(file) == "special":
            text = f"{file.name} is a pipe, a socket or a device; expected a file"
            raise InputError("input.not_a_file", text)
    if seconds is None:
        seconds = MIN_SECONDS + sum(map(_size, files)) / MIN_BYTES_PER_SECOND
    name, given = name or files[0].name, {file.absolute(): file for file in files}
    limit = _address_space_limit()
    limited = (
        "" if limit is None else f", or the limit on address space ({describe_bytes(limit)}, ulimit -v) is too low"
    )
    large = f"{name} needs more memory than is allowed: it is damaged, or needs a larger machine{limited}"
    crashes = f"{name} makes its decoder crash: it is damaged{limited}; export it again"
    available = None if memory_bytes is None else _left(memory_bytes, name)
    try:
        content: Content = _READERS.run(_read_limited, read, list(given), available, seconds=seconds)
    except MemoryError:
        raise InputError("file.too_large", large) from None
    except WorkerDied as died:
        slow = f"{name} could not be decoded within {seconds:.0f} s; export it again"
        errors = {"environment.too_slow": ("file.too_slow", slow), "environment.memory": ("file.too_large", large)}
        raise InputError(*errors.get(died.code, ("file.crashes_reader", crashes))) from None
    except WorkerError as error:
        log.debug("a decoder failed: %s\n%s", error.kind, error.places)
        raise InputError("file.crashes_reader", crashes) from None
    if isinstance(content, Volume):
        paths = tuple(given.get(file, file) for file in content.source.files)
        return replace(content, source=replace(content.source, files=paths))
    return content


def _left(memory_bytes: int, name: str) -> int:
    """Return the part of a budget that the program itself does not take.

    Args:
        memory_bytes: the budget of this process.
        name: name of the scan in the message.

    Raises:
        EnvironmentFault: `environment.memory`, the program takes all of it.
    """
    taken = resident_bytes()
    if taken >= memory_bytes:
        least = ceil(_ROOM * taken / _STEP) * _STEP
        text = f"the program takes {describe_bytes(taken)} of memory before it reads {name}"
        limits = f"{describe_bytes(memory_bytes)} may be used in all (--memory, divided among --workers)"
        raise EnvironmentFault("environment.memory", f"{text}, and {limits}; give at least {describe_bytes(least)}")
    return memory_bytes - taken


_ROOM, _STEP = 1.5, 1 << 28
"""Memory for a small scan relative to that of the program, and what it is rounded up to."""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the reader raises the reason
        return 0


def _read_limited(read: Reader[Content], files: Sequence[Path], available: int | None) -> Content:
    """Read with a limit on memory, so that too large a size in a header ends in a `MemoryError`.

    Without the limit, the operating system would kill whichever process it chooses.
    """
    free = int(SAFE_FRACTION * free_bytes())
    available = free if available is None else min(available, free)
    _limit_address_space(max(available, 0) + LIBRARY_BYTES)
    with limited_to(available):
        return read(files)


def _address_space_limit() -> int | None:
    """Return the limit on address space of this process, set by `ulimit -v`, for example; None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(limits, default=None)


_limit_at_start = cache(_address_space_limit)


def _limit_address_space(more_bytes: int) -> None:
    """Limit how much more address space this process may take, and let the system kill it first if memory runs out."""
    if sys.platform != "linux":
        return
    import resource

    at_start = _limit_at_start()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = held + more_bytes if at_start is None else min(held + more_bytes, at_start)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
