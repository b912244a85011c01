"""Estimate from the times at which cases ended how fast a run is, and how long it will take.

The rate is the number of cases in a moving window over the sum of the intervals between them. Cases of several workers
end in bursts, so a median of the intervals would be wrong; instead, each interval counts at most `MAX_FACTOR` times the
mean of the others. So one scan that takes an hour, or a computer that slept, does not set the estimate for the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

WINDOW = 60
"""Number of cases that the rate is measured over."""

MAX_FACTOR = 10.0


class Throughput:
    """Rate of a run over its last `WINDOW` cases.

    Args:
        ended: times at which cases ended, in seconds, in order.
        started: time at which the run started; the first case counts from here.
    """

    def __init__(self, ended: Iterable[float] = (), started: float | None = None) -> None:
        self._ended: deque[float] = deque(maxlen=WINDOW + 1)
        for time in ended if started is None else (started, *ended):
            self.add(time)

    def add(self, time: float) -> None:
        """Count a case that ended at a time in seconds; a clock that was set back starts the measurement again."""
        if self._ended and time < self._ended[-1]:
            self._ended.clear()
        self._ended.append(time)

    def seconds_per_case(self, now: float | None = None) -> float | None:
        """Return the mean seconds between the ends of two cases; None before the second time.

        Args:
            now: present time; if the next case is late, the time that it already took counts too.
        """
        intervals = [later - earlier for earlier, later in pairwise(self._ended)]
        if not intervals:
            return None
        if now is not None and (waited := now - self._ended[-1]) > sum(intervals) / len(intervals):
            intervals.append(waited)
        longest = max(intervals)
        others = sum(intervals) - longest
        if len(intervals) > 1 and others > 0:
            longest = min(longest, MAX_FACTOR * others / (len(intervals) - 1))
        return (others + longest) / len(intervals)

    def per_minute(self, now: float | None = None) -> float | None:
        """Return the number of cases a minute; None while it is unknown."""
        seconds = self.seconds_per_case(now)
        return 60 / seconds if seconds else None

    def seconds_left(self, cases: int, now: float | None = None) -> float | None:
        """Return the estimated seconds for a number of further cases; None while they are unknown."""
        seconds = self.seconds_per_case(now)
        return None if seconds is None else cases * seconds
