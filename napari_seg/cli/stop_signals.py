"""Signals that end a run: the first lets the running scans finish, the second ends them, the third ends the program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_seg.cohort.run import Stop

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Ctrl-C, what `kill` and job schedulers send, a closed terminal, and Ctrl-Break on Windows."""


@contextmanager
def stop_by_signals(stop: Stop, show: Callable[[str], None]) -> Iterator[None]:
    """Turn signals into requests to end a run while a block runs.

    Args:
        stop: takes the requests.
        show: prints a line for the user.
    """

    def request(number: int, frame: object) -> None:
        stop.request()
        if stop.count > 2:  # it may wait for a drive that does not answer
            raise KeyboardInterrupt
        with suppress(Exception):  # the terminal may be gone
            if stop.count == 1:
                show("stopping after the scans that are running; press Ctrl-C again to stop at once")

    before: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # each system has only some of them
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            with suppress(ValueError):  # only the main thread may set handlers
                before[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
