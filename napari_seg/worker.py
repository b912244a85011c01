"""Run functions in a worker process, so that a crash or a slow call affects only that one call.

A decoder may crash on a damaged file, a network may use all memory, and a library may hold Python's global lock for a
second: the calling program continues, and its window stays responsive. A call that is cancelled ends at once and
releases all its memory. The worker process starts with its first call, stays alive for later calls, which find all
modules loaded, and is replaced if a call kills it.

Requests and replies are pickles that travel through the worker's stdin and stdout; the bytes of arrays follow each
pickle without being copied into it. Both ends run this program, so the pickles are trusted.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError

_POLL_SECONDS = 0.1
_PARENT_POLL_SECONDS = 0.5

_LENGTH = struct.Struct("<q")
_CHUNK_BYTES = 1 << 24

_LOG = "log"
"""Type of a message that holds a log record of the function."""

_Parts = list[Any]
"""A pickle, followed by the bytes of each array in it."""


class WorkerDied(EnvironmentFault):
    """The worker process died during a call.

    Its code is `environment.memory` if the operating system killed it, `environment.too_slow` if it exceeded its time
    limit, and `environment.ended` otherwise.
    """


class WorkerError(RuntimeError):
    """The function raised an unexpected error; its message is dropped, because it may contain private values.

    Attributes:
        kind: type of the error, such as "KeyError".
        places: file, line and function of each frame of its traceback.
    """

    def __init__(self, kind: str, places: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.places = places


class WorkerProcess:
    """A process that runs one function at a time for this process."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        callbacks: Mapping[str, Callable[..., None]] | None = None,
        on_start: Callable[[], object] = lambda: None,
        is_stopping: Callable[[], bool] = lambda: False,
        seconds: float = float("inf"),
        **options: Any,
    ) -> Any:
        """Call a function in the worker process and return its result, after earlier calls have finished.

        Args:
            function: function at the top level of a module, so that the worker can import it.
            args: positional arguments; they are pickled.
            callbacks: argument name -> function that runs in this process whenever the worker calls it; it may raise
                `Cancelled`.
            on_start: function that is called in this process when earlier calls have finished.
            is_stopping: function that is polled ten times a second; the worker is killed once it returns true.
            seconds: time limit, counted from the start of this call in the worker.
            options: keyword arguments; they are pickled.

        Raises:
            Cancelled: `is_stopping` returned true.
            WorkerDied: the worker died or exceeded its time limit.
            NapariSegError: the function raised it.
            MemoryError: the function raised it.
            WorkerError: the function raised any other error.
        """
        while not self._lock.acquire(timeout=_POLL_SECONDS):
            if is_stopping():
                raise Cancelled()
        try:
            on_start()
            if self._popen is None or self._popen.poll() is not None:
                self._popen = _start()
            with self._killed_when(is_stopping, seconds):
                kind, content = self._exchange((function, args, options, list(callbacks or ())), callbacks or {})
        finally:
            self._lock.release()
        if kind == "result":
            return content
        raise content if kind == "error" else WorkerError(*content)

    def kill(self) -> None:
        """Kill the process, if it runs; may be called by another thread than the one that uses it."""
        popen = self._popen
        if popen is not None:
            popen.kill()

    def close(self) -> None:
        """Kill the process, if it runs, and release all its memory."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.communicate()

    def _exchange(self, request: tuple, callbacks: Mapping[str, Callable[..., None]]) -> tuple[str, Any]:
        """Send a request, serve the callbacks of the worker, and return the type and content of its last message."""
        assert self._popen is not None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        stdin, stdout, is_complete = self._popen.stdin, self._popen.stdout, False

        def next_message() -> tuple[str, Any]:
            with self._death_raised():
                parts = _receive(stdout)
            kind, content = _unpickled(parts)
            return kind, content

        try:
            pickled = _pickled(request)
            with self._death_raised():
                _send(stdin, pickled)
            kind, content = next_message()
            while kind in callbacks or kind == _LOG:
                logging.getLogger(content[0]).log(*content[1:]) if kind == _LOG else callbacks[kind](*content)
                kind, content = next_message()
            is_complete = True
            return kind, content
        finally:
            if not is_complete:  # the next call must not read the rest of this one from the pipe
                self.close()

    @contextmanager
    def _death_raised(self) -> Iterator[None]:
        """Raise `WorkerDied` if the pipe breaks."""
        try:
            yield
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> WorkerDied:
        """Return the error for the way in which the process died."""
        assert self._popen is not None
        with suppress(subprocess.TimeoutExpired):  # the pipe closes before the process has ended
            self._popen.wait(timeout=1)
        code = self._popen.poll()
        if code == -getattr(signal, "SIGKILL", 9):
            text = "the operating system killed the worker process, most likely because memory ran out; close other "
            return WorkerDied("environment.memory", f"{text}programs, or lower the memory limit")
        return WorkerDied("environment.ended", f"the worker process ended unexpectedly (exit code {code})")

    @contextmanager
    def _killed_when(self, is_stopping: Callable[[], bool], seconds: float) -> Iterator[None]:
        """Kill the process if the call is cancelled or exceeds its time limit, and raise the reason."""
        popen, done, reasons = self._popen, threading.Event(), list[NapariSegError]()
        assert popen is not None
        deadline = time.monotonic() + seconds

        def watch() -> None:
            while not done.wait(_POLL_SECONDS):
                if is_stopping():
                    reasons.append(Cancelled())
                elif time.monotonic() > deadline:
                    reasons.append(WorkerDied("environment.too_slow", f"the work took more than {seconds:.0f} s"))
                if reasons:
                    popen.kill()
                    return

        watcher = threading.Thread(target=watch, name="napari-seg watch", daemon=True)
        watcher.start()
        try:
            yield
        except WorkerDied as died:
            raise (reasons[0] if reasons else died) from None
        finally:
            done.set()
            watcher.join()
            if reasons:  # it may have been killed after its reply: the next call must see that it is dead
                popen.wait()


def _start() -> subprocess.Popen[bytes]:
    """Start a process that finds all modules that this one finds, and runs `serve`."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve({os.getpid()})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries print private values of headers there
        env=python_environment(),
    )


def python_environment() -> dict[str, str]:
    """Return the environment of a Python process that finds all modules that this one finds, and no others.

    Without PYTHONSAFEPATH, `python -c` and `python -m` import from the current folder first, which may hold the files
    of strangers. It also holds for the processes that the process starts in turn.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}


def serve(parent: int) -> None:
    """Serve requests in the worker process until the pipe is closed or the parent process is dead.

    Args:
        parent: process id of the program that sends the requests.
    """
    # the parent gets what Ctrl-C, a closed terminal or a job scheduler sends, too, and decides; it ends this by SIGKILL
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGBREAK"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep everything that is printed out of the replies
    # end in the middle of a call, too: nobody else could stop it
    call_after_death(parent, lambda: os._exit(1))
    while True:
        try:
            request = _receive(requests)
        except EOFError:
            return
        _send(replies, _reply(request, replies))
        del request  # release its arrays before waiting for the next one


def call_after_death(process_id: int, action: Callable[[], object]) -> None:
    """Call a function, in a thread, within about a second of the death of another process.

    Windows keeps the parent's id after its death, and a virtual environment puts a launcher between parent and child,
    so the other process is identified by its id and its start time.

    Args:
        process_id: id of a process that started before this one.
        action: function to call, which ends this process, for example.
    """
    import psutil

    def is_alive(process: psutil.Process) -> bool:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            if process.create_time() <= psutil.Process().create_time():  # otherwise a new process has the same id
                while is_alive(process):
                    time.sleep(_PARENT_POLL_SECONDS)
        action()

    threading.Thread(target=watch, name="napari-seg parent", daemon=True).start()


def core_count() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def is_process_alive(process_id: int, started_before: float) -> bool:
    """Return whether a process of this machine is alive.

    Args:
        process_id: its id.
        started_before: time in seconds since 1970 at which it was running; a process that started more than a minute
            later has got the same id.
    """
    import psutil

    try:
        process = psutil.Process(process_id)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < started_before + 60
    except psutil.AccessDenied:  # it belongs to another user
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def _reply(request: _Parts, replies: IO[bytes]) -> _Parts:
    """Run the requested function and return the message with its result or error."""
    lock = threading.Lock()  # the function may call back from several threads

    def call_back(name: str, *content: Any) -> None:
        with lock:
            _send(replies, _pickled((name, content)))

    handler = _LogForwarder(lambda *record: call_back(_LOG, *record))
    logger = logging.getLogger(__package__)
    logger.addHandler(handler)
    try:
        function, args, options, names = _unpickled(request)
        callbacks = {name: partial(call_back, name) for name in names}
        return _pickled(("result", function(*args, **options, **callbacks)))
    except (NapariSegError, MemoryError) as error:
        return _pickled(("error", error.with_traceback(None)))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
        return _pickled(("unexpected", (type(error).__name__, places)))
    finally:
        logger.removeHandler(handler)


class _LogForwarder(logging.Handler):
    """Send warnings of this program to the parent process; warnings of libraries may quote private headers."""

    def __init__(self, send: Callable[[str, int, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._forward = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send the logger's name, the level and the text."""
        self._forward(record.name, record.levelno, record.getMessage())


def _pickled(content: Any) -> _Parts:
    arrays: list[pickle.PickleBuffer] = []
    text = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    return [memoryview(text), *(array.raw() for array in arrays)]


def _unpickled(parts: _Parts) -> Any:
    text, *arrays = parts
    return pickle.loads(text, buffers=arrays)


def _send(stream: IO[bytes], parts: _Parts) -> None:
    """Write the number of parts, their lengths, and the parts."""
    stream.write(b"".join(_LENGTH.pack(number) for number in (len(parts), *(part.nbytes for part in parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> _Parts:
    """Read what `_send` wrote at the other end.

    Raises:
        EOFError: the other end is closed.
    """
    (count,) = _LENGTH.unpack(_read_bytes(stream, _LENGTH.size))
    lengths = struct.unpack(f"<{count}q", _read_bytes(stream, count * _LENGTH.size))
    return [_read_bytes(stream, length) for length in lengths]


def _read_bytes(stream: IO[bytes], count: int) -> bytearray:
    buffer = bytearray(count)
    done = 0
    while done < count:
        read = stream.readinto(memoryview(buffer)[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        done += read
    return buffer
