"""Signals that end a run: the first lets the running scans finish, the second ends them, the third ends the program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
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

    with signals_handled(_SIGNALS, request, lambda before: before is not signal.SIG_IGN):  # `nohup` ignores SIGHUP
        yield


@contextmanager
def signals_handled(
    names: Sequence[str], handler: Callable[[int, Any], object], is_replaced: Callable[[object], bool]
) -> Iterator[None]:
    """Handle signals while a block runs, as far as the system has them.

    Args:
        names: names of the signals, such as "SIGTERM".
        handler: called with the number of a signal and the current frame.
        is_replaced: returns whether a handler that is set gives way.
    """
    before: dict[int, Any] = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and is_replaced(signal.getsignal(number)):
            with suppress(ValueError):  # only the main thread may set handlers
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
