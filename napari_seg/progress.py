"""Progress of long work: the one callback type that inference, cohorts and registration report to."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) while work goes on, the stages being "loading", "locating" and "segmenting".

It may raise `napari_seg.errors.Cancelled`, or any other exception, to stop the work: the exception passes through.
"""


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Accept progress and do nothing with it."""


def describe_seconds(seconds: float) -> str:
    """Return a time in words, such as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n and not (hours and unit == "s")) or "0 s"
