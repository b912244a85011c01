"""Runs work in a process of its own, so that what goes wrong there, or takes long, costs that work alone.

A decoder that crashes on a damaged file, a network that takes all memory, Python held for a second by a library: the
program that asked goes on, and its window answers. Work that is stopped ends at once with all that it holds. A process
is started at its first work, kept for the next, which finds everything loaded, and started again after work that it did
not survive. Pickles go to and fro, the bytes of arrays beside them; both ends are this program.
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

_LOOK_SECONDS = 0.1
_WATCH_SECONDS = 0.5

_LENGTH = struct.Struct("<q")
_CHUNK_BYTES = 1 << 24

_LOG = "log"
"""Kind of a message that holds a warning of the work."""

_Parts = list[Any]
"""A pickle, and the bytes of the arrays in it."""


class Ended(EnvironmentFault):
    """The process did not survive its work.

    Its code is `environment.memory`, the system ended it; `environment.too_slow`, its time was over; or
    `environment.ended`.
    """


class Mistake(RuntimeError):
    """The work raised what nobody foresaw; what that said may be private, and stays there.

    Attributes:
        kind: of the error, such as "KeyError".
        places: files, lines and functions that it came through.
    """

    def __init__(self, kind: str, places: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.places = places


class OwnProcess:
    """A process that works for this one, on one thing at a time."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def run(
        self,
        work: Callable[..., Any],
        *args: Any,
        told: Mapping[str, Callable[..., None]] | None = None,
        on_start: Callable[[], object] = lambda: None,
        is_stopping: Callable[[], bool] = lambda: False,
        seconds: float = float("inf"),
        **options: Any,
    ) -> Any:
        """What a function answers there; waits for other work of this process.

        Args:
            work: a function of a module, so that the other process finds it.
            args: for it; can be pickled.
            told: by the names of its arguments, callbacks that are called here; they may raise `Cancelled`.
            on_start: called here when it is this work's turn.
            is_stopping: looked at ten times a second; once it is true, the process is ended.
            seconds: that it may take, once it is its turn.
            options: for the function; can be pickled.

        Raises:
            Cancelled: it was to stop.
            Ended: the process died of it, or took too long.
            NapariSegError: what the function raises.
            MemoryError: the same.
            Mistake: it raised anything else.
        """
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if is_stopping():
                raise Cancelled()
        try:
            on_start()
            if self._popen is None or self._popen.poll() is not None:
                self._popen = _start()
            with self._killed_when(is_stopping, seconds):
                kind, content = self._ask((work, args, options, list(told or ())), told or {})
        finally:
            self._lock.release()
        if kind == "answer":
            return content
        raise content if kind == "error" else Mistake(*content)

    def close(self) -> None:
        """Ends the process, if there is one, and gives back all that it holds."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.communicate()

    def _ask(self, question: tuple, told: Mapping[str, Callable[..., None]]) -> tuple[str, Any]:
        assert self._popen is not None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        stdin, stdout, is_answered = self._popen.stdin, self._popen.stdout, False

        def answer() -> tuple[str, Any]:
            with self._death_told():
                parts = _read(stdout)
            kind, content = _unpacked(parts)
            return kind, content

        try:
            packed = _packed(question)
            with self._death_told():
                _write(stdin, packed)
            kind, content = answer()
            while kind in told or kind == _LOG:
                logging.getLogger(content[0]).log(*content[1:]) if kind == _LOG else told[kind](*content)
                kind, content = answer()
            is_answered = True
            return kind, content
        finally:
            if not is_answered:  # what is left in the pipe would be taken for the next answer
                self.close()

    @contextmanager
    def _death_told(self) -> Iterator[None]:
        """Turns a pipe without an other end into what became of it."""
        try:
            yield
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> Ended:
        assert self._popen is not None
        with suppress(subprocess.TimeoutExpired):  # it may still be busy with its end
            self._popen.wait(timeout=1)
        code = self._popen.poll()
        if code == -getattr(signal, "SIGKILL", 9):
            text = "the system ended the work, most likely because memory ran out; close other programs, or allow less"
            return Ended("environment.memory", text)
        return Ended("environment.ended", f"the process that did the work ended unexpectedly (code {code})")

    @contextmanager
    def _killed_when(self, is_stopping: Callable[[], bool], seconds: float) -> Iterator[None]:
        """Ends the process as soon as the work is to stop or its time is over, and raises what tells that."""
        popen, done, fault = self._popen, threading.Event(), list[NapariSegError]()
        assert popen is not None
        end = time.monotonic() + seconds

        def watch() -> None:
            while not done.wait(_LOOK_SECONDS):
                if is_stopping():
                    fault.append(Cancelled())
                elif time.monotonic() > end:
                    fault.append(Ended("environment.too_slow", f"the work took more than {seconds:.0f} s"))
                if fault:
                    popen.kill()
                    return

        watcher = threading.Thread(target=watch, name="napari-seg watch", daemon=True)
        watcher.start()
        try:
            yield
        except Ended as ended:
            raise (fault[0] if fault else ended) from None
        finally:
            done.set()
            watcher.join()
            if fault:  # killed after its answer: not to be taken for alive
                popen.wait()


def _start() -> subprocess.Popen[bytes]:
    """A process that finds all modules that this one finds, and does nothing but `serve`."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve({os.getpid()})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what libraries have to say quotes headers, and those are private
        env=os.environ | {"PYTHONPATH": paths},
    )


def serve(parent: int) -> None:
    """What the other process does: works until nobody asks any more, or the program that asked is gone.

    Args:
        parent: process id of that program.
    """
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints must not print into the answers
    # also in the middle of work: nobody would stop it any more
    call_after_death(parent, lambda: os._exit(1))
    while True:
        try:
            question = _read(questions)
        except EOFError:
            return
        _write(answers, _answer(question, answers))
        del question  # it holds nothing while it waits


def call_after_death(process_id: int, action: Callable[[], object]) -> None:
    """Call a function, in a thread, within about a second of the end of another process.

    Windows never gives a process another parent, and a virtual environment's launcher stands between the two there, so
    the other process is recognised by its id and the time of its start.

    Args:
        process_id: of a process that started before this one.
        action: ends this one, for example.
    """
    import psutil

    def is_alive(process: psutil.Process) -> bool:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            if process.create_time() <= psutil.Process().create_time():  # or its id was given again already
                while is_alive(process):
                    time.sleep(_WATCH_SECONDS)
        action()

    threading.Thread(target=watch, name="napari-seg parent", daemon=True).start()


def _answer(question: _Parts, answers: IO[bytes]) -> _Parts:
    writing = threading.Lock()  # some work is done by several threads

    def tell(name: str, *content: Any) -> None:
        with writing:
            _write(answers, _packed((name, content)))

    forwarding = _Forwarding(lambda *record: tell(_LOG, *record))
    ours = logging.getLogger(__package__)
    ours.addHandler(forwarding)
    try:
        work, args, options, told = _unpacked(question)
        return _packed(("answer", work(*args, **options, **{name: partial(tell, name) for name in told})))
    except (NapariSegError, MemoryError) as error:
        return _packed(("error", error.with_traceback(None)))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
        return _packed(("mistake", (type(error).__name__, places)))
    finally:
        ours.removeHandler(forwarding)


class _Forwarding(logging.Handler):
    """Hand this program's own warnings to the process that requested the work; those of libraries quote headers."""

    def __init__(self, tell: Callable[[str, int, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over the name of the logger, the level and the text."""
        self._tell(record.name, record.levelno, record.getMessage())


def _packed(content: Any) -> _Parts:
    arrays: list[pickle.PickleBuffer] = []
    text = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    return [memoryview(text), *(array.raw() for array in arrays)]


def _unpacked(parts: _Parts) -> Any:
    text, *arrays = parts
    return pickle.loads(text, buffers=arrays)


def _write(stream: IO[bytes], parts: _Parts) -> None:
    stream.write(b"".join(_LENGTH.pack(number) for number in (len(parts), *(part.nbytes for part in parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def _read(stream: IO[bytes]) -> _Parts:
    """What `_write` wrote at the other end, which is this program too.

    Raises:
        EOFError: the other end is gone.
    """
    (count,) = _LENGTH.unpack(_bytes(stream, _LENGTH.size))
    lengths = struct.unpack(f"<{count}q", _bytes(stream, count * _LENGTH.size))
    return [_bytes(stream, length) for length in lengths]


def _bytes(stream: IO[bytes], count: int) -> bytearray:
    room = bytearray(count)
    done = 0
    while done < count:
        read = stream.readinto(memoryview(room)[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        done += read
    return room
