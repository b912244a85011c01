"""What this process holds in memory, what it may still take, and whether a file fits that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from napari_seg.errors import EnvironmentFault

SAFE_SHARE = 0.8
"""Of the memory that is free, what a piece of work may take if no limit is given."""

_limit: ContextVar[int | None] = ContextVar("limit", default=None)


def describe_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take: what the system has free, within the limits of its control groups.

    Args:
        root: where /proc and /sys lie.
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
                most, used = (int((folder / name).read_text()) for name in names)
                kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # a group without a limit, or one that a container does not show
                continue
            # what was read from files is given up when memory is wanted
            free = min(free, max(most - used + int(kept.get("inactive_file", 0)), 0))
    return free


def held_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return psutil.Process().memory_info().rss


@contextmanager
def limited_to(count: int | None) -> Iterator[None]:
    """Set what `check_fits` allows within the block, in bytes; None: a safe share of the free memory."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


def check_fits(count: int, work: str) -> None:
    """Raise if a piece of work takes more memory than it may.

    Args:
        count: bytes that the work will take.
        work: such as "reading head.nii", for the message.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    limit = _limit.get()
    if limit is None:
        limit = int(SAFE_SHARE * free_bytes())
    if count > limit:
        raise EnvironmentFault(
            "environment.memory",
            f"{work} takes {describe_bytes(count)} of memory and {describe_bytes(max(limit, 0))} may be used; "
            "allow more memory, close other programs or use a larger machine",
        )
