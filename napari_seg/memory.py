"""Memory of this process: how much it uses, how much it may still use, and how freed memory is returned."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from math import ceil
from pathlib import Path

from napari_seg.errors import EnvironmentFault

SAFE_FRACTION = 0.8
"""Fraction of the free memory that one piece of work may use if no limit is given."""

_MADV_PAGEOUT = 21
"""Linux's number of the advice to reclaim pages now; their content stays, unlike with MADV_DONTNEED."""

_limit: ContextVar[int | None] = ContextVar("limit", default=None)


def describe_bytes(count: float) -> str:
    """Return an amount of memory in words, such as "1.5 GiB", "300 MiB" or "20 KiB"."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 or not count else f"{count / 2**10:.0f} KiB"


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may still use: the system's free memory within the limits of control groups.

    Args:
        root: the folder that contains /proc and /sys.
    """
    import psutil

    free = psutil.virtual_memory().available
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return free
    for _, controllers, path in groups:
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = top / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            try:
                limit, used = (int((folder / name).read_text()) for name in names)
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # a group without a limit, or one that a container does not show
                continue
            # the system drops cached file contents when a program needs the memory
            free = min(free, max(limit - used + int(statistics.get("inactive_file", 0)), 0))
    return free


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Return the highest resident memory of this process since it started; 0 on systems that do not report it."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def default_budget() -> int:
    """Return the memory that this process may use in all if no limit is given: its own, and a safe part of the rest."""
    return resident_bytes() + int(SAFE_FRACTION * free_bytes())


def collect_garbage() -> None:
    """Free objects that nothing refers to, such as networks, which refer to themselves, and return their memory."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Return freed memory to the system; only glibc keeps so much of it that this is needed."""
    release = _malloc_trim()
    if release is not None:
        release(0)


def page_out(addresses: Iterable[tuple[int, int]]) -> None:
    """Take memory that is not needed soon out of this process; the system reads it again from its file, or from swap.

    Only Linux does so; elsewhere nothing happens.

    Args:
        addresses: (first byte, number of bytes) of each piece.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    for begin, count in addresses:
        first, last = begin // mmap.PAGESIZE, ceil((begin + count) / mmap.PAGESIZE)
        start, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
        advise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_PAGEOUT)  # an old kernel refuses: no harm


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@contextmanager
def limited_to(count: int | None) -> Iterator[None]:
    """Set the limit of `check_fits` within the block, in bytes; None: a safe fraction of the free memory."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


def check_fits(count: int, work: str) -> None:
    """Raise if a piece of work needs more memory than it may use.

    Args:
        count: bytes that the work needs.
        work: such as "reading head.nii", for the message.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    limit = _limit.get()
    if limit is None:
        limit = int(SAFE_FRACTION * free_bytes())
    if count > limit:
        raise EnvironmentFault(
            "environment.memory",
            f"{work} takes {describe_bytes(count)} of memory and {describe_bytes(max(limit, 0))} may be used; "
            "allow more memory (--memory), close other programs or use a larger machine",
        )
