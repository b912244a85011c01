"""Exit statuses of `napari-seg`."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Meaning of the exit status."""

    DONE = 0
    USAGE = 1
    NOTHING_FOUND = 2
    SOME_FAILED = 3
    ALL_FAILED = 4
    ENVIRONMENT = 5
    CANCELLED = 130
    OUTPUT_CLOSED = 141


def exit_code(failed: int, total: int) -> ExitCode:
    """Return the exit status of a run with `failed` of `total` cases failed."""
    if failed == 0:
        return ExitCode.DONE
    return ExitCode.ALL_FAILED if failed == total else ExitCode.SOME_FAILED
