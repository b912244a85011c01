"""Runs work in a process of its own, for a program with a window.

The window stays quick whatever Python does there, work that is stopped ends at once with all that it holds, and work
that takes all memory costs itself and not the program. The process is started at the first work, kept for the next,
which finds torch and the model loaded, and started again after one that it did not survive. Pickles with their length
before them go to and fro; both ends are this program.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError
from napari_seg.formats.apart import receive, send, start_serving

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1


def run_apart(
    work: Callable[..., Any],
    *args: Any,
    told: Mapping[str, Callable[..., None]] | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Any:
    """What a function answers, in a process of its own.

    Args:
        work: a function of a module, so that the other process finds it.
        args: for it; can be pickled.
        told: by the names of its arguments, callbacks that are called here; they may raise `Cancelled`.
        is_stopping: looked at ten times a second; once it is true, the process is ended.
        options: for the function; can be pickled.

    Raises:
        Cancelled: it was to stop.
        EnvironmentFault: `environment.memory`, the system ended the process, as it does when memory runs out;
            `environment.ended`, it ended otherwise.
        NapariSegError: what the function raises.
        MemoryError: the same.
        RuntimeError: it raised anything else; the log says where.
    """
    with _lock:
        return _process().ask(work, args, options, told or {}, is_stopping)


class _Process:
    """The other process, as seen from here."""

    def __init__(self) -> None:
        self.popen = start_serving(__name__)

    def ask(
        self,
        work: Callable[..., Any],
        args: tuple,
        options: Mapping[str, Any],
        told: Mapping[str, Callable[..., None]],
        is_stopping: Callable[[], bool],
    ) -> Any:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        done, killed, is_answered = threading.Event(), threading.Event(), False

        def watch() -> None:
            while not done.wait(_LOOK_SECONDS):
                if is_stopping():
                    killed.set()
                    self.popen.kill()
                    return

        watcher = threading.Thread(target=watch, name="napari-seg watch", daemon=True)
        watcher.start()
        try:
            send(self.popen.stdin, (work, args, dict(options), list(told)))
            while not is_answered:
                kind, content = receive(self.popen.stdout)
                if kind in told:
                    told[kind](*content)
                else:
                    is_answered = True
        except (EOFError, OSError):
            self.close()
            if killed.is_set():
                raise Cancelled() from None
            raise _death(self.popen.returncode) from None
        finally:
            done.set()
            watcher.join()
            if not is_answered or killed.is_set():  # what is left in the pipe would be taken for the next answer
                self.close()
        if kind == "answer":
            return content
        if kind == "error":
            raise content
        name, places = content
        log.error("the work failed: %s\n%s", name, places)
        raise RuntimeError(name)

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


def _death(code: int) -> EnvironmentFault:
    if code == -getattr(signal, "SIGKILL", 9):
        text = (
            "the system ended the run, most likely because memory ran out; close other programs, or allow less memory"
        )
        return EnvironmentFault("environment.memory", text)
    return EnvironmentFault("environment.ended", f"the process that ran the network ended unexpectedly (code {code})")


_lock = threading.Lock()
_running: list[_Process] = []


def _process() -> _Process:
    if _running and _running[0].popen.poll() is not None:
        _running.clear()
    if not _running:
        _running.append(_Process())
    return _running[0]


@atexit.register
def close() -> None:
    """Ends the other process, if there is one, and gives back all that it holds."""
    for process in _running:
        process.close()


def serve() -> None:
    """What the other process does: works until nobody asks any more."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints must not print into the answers
    while True:
        try:
            work, args, options, told = receive(questions)
        except EOFError:
            return
        send(answers, _answer(work, args, options, told, answers))
        del work, args, options


def _answer(
    work: Callable[..., Any], args: tuple, options: Mapping[str, Any], told: list[str], answers: IO[bytes]
) -> tuple[str, Any]:
    def teller(name: str) -> Callable[..., None]:
        return lambda *content: send(answers, (name, content))

    try:
        return "answer", work(*args, **options, **{name: teller(name) for name in told})
    except (NapariSegError, MemoryError) as error:
        return "error", error.with_traceback(None)
    except Exception as error:  # its words may hold what is private
        frames = traceback.extract_tb(error.__traceback__)
        places = "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
        return "mistake", (type(error).__name__, places)
