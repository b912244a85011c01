"""Runs work in a process of its own, so that what goes wrong there, or takes long, costs that work alone.

A decoder that crashes on a damaged file, a network that takes all memory, Python held for a second by a library: the
program that asked goes on, and its window answers. Work that is stopped ends at once with all that it holds. A process
is started at its first work, kept for the next, which finds everything loaded, and started again after work that it did
not survive. Pickles go to and fro, the bytes of arrays beside them; both ends are this program.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError

_LOOK_SECONDS = 0.1

_LENGTH = struct.Struct("<q")
_CHUNK_BYTES = 1 << 24


class Ended(EnvironmentFault):
    """The process did not survive its work: `environment.memory`, the system ended it; `environment.ended`, else."""


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
        is_stopping: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Any:
        """What a function answers there; waits for other work of this process.

        Args:
            work: a function of a module, so that the other process finds it.
            args: for it; can be pickled.
            told: by the names of its arguments, callbacks that are called here; they may raise `Cancelled`.
            is_stopping: looked at ten times a second; once it is true, the process is ended.
            options: for the function; can be pickled.

        Raises:
            Cancelled: it was to stop.
            Ended: the process died of it.
            NapariSegError: what the function raises.
            MemoryError: the same.
            RuntimeError: it raised anything else; named by its kind, with its place in a note: words may be private.
        """
        with self._lock:
            if self._popen is None or self._popen.poll() is not None:
                self._popen = _start()
            return self._ask(self._popen, (work, args, options, list(told or ())), told or {}, is_stopping)

    def close(self) -> None:
        """Ends the process, if there is one, and gives back all that it holds."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.communicate()

    def _ask(
        self,
        popen: subprocess.Popen[bytes],
        question: tuple,
        told: Mapping[str, Callable[..., None]],
        is_stopping: Callable[[], bool] | None,
    ) -> Any:
        assert popen.stdin is not None
        assert popen.stdout is not None
        is_answered = False
        with _killed_when(is_stopping, popen) as killed:
            try:
                _send(popen.stdin, question)
                while not is_answered:
                    kind, content = _receive(popen.stdout)
                    if kind in told:
                        told[kind](*content)
                    else:
                        is_answered = True
            except (EOFError, OSError):
                self.close()
                raise (Cancelled() if killed.is_set() else _death(popen.returncode)) from None
            finally:
                if not is_answered:  # what is left in the pipe would be taken for the next answer
                    self.close()
        if kind == "answer":
            return content
        if kind == "error":
            raise content
        name, places = content
        mistake = RuntimeError(name)
        mistake.add_note(places)
        raise mistake


@contextmanager
def _killed_when(is_stopping: Callable[[], bool] | None, popen: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Ends a process as soon as work is to stop; gives the event that says so."""
    killed, done = threading.Event(), threading.Event()
    if is_stopping is None:
        yield killed
        return

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if is_stopping():
                killed.set()
                popen.kill()
                return

    watcher = threading.Thread(target=watch, name="napari-seg watch", daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        done.set()
        watcher.join()
        if killed.is_set():  # killed after its answer: not to be taken for alive
            popen.wait()


def _death(code: int) -> Ended:
    if code == -getattr(signal, "SIGKILL", 9):
        text = "the system ended the work, most likely because memory ran out; close other programs, or allow it less"
        return Ended("environment.memory", text)
    return Ended("environment.ended", f"the process that did the work ended unexpectedly (code {code})")


def _start() -> subprocess.Popen[bytes]:
    """A process that finds all modules that this one finds, and does nothing but `serve`."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what libraries have to say quotes headers, and those are private
        env=os.environ | {"PYTHONPATH": paths},
    )


def serve() -> None:
    """What the other process does: works until nobody asks any more."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints must not print into the answers
    while True:
        try:
            work, args, options, told = _receive(questions)
        except EOFError:
            return
        _send(answers, _answer(work, args, options, told, answers))
        del work, args, options  # it holds nothing while it waits


def _answer(
    work: Callable[..., Any], args: tuple, options: Mapping[str, Any], told: list[str], answers: IO[bytes]
) -> tuple[str, Any]:
    def teller(name: str) -> Callable[..., None]:
        return lambda *content: _send(answers, (name, content))

    try:
        return "answer", work(*args, **options, **{name: teller(name) for name in told})
    except (NapariSegError, MemoryError) as error:
        return "error", error.with_traceback(None)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
        return "mistake", (type(error).__name__, places)


def _send(stream: IO[bytes], content: Any) -> None:
    """Writes a pickle, and the arrays in it as they lie, with their lengths before them."""
    arrays: list[pickle.PickleBuffer] = []
    text = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(text), *(array.raw() for array in arrays)]
    stream.write(b"".join(_LENGTH.pack(number) for number in (len(parts), *(part.nbytes for part in parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """What `_send` wrote at the other end, which is this program too.

    Raises:
        EOFError: the other end is gone.
    """
    (count,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    lengths = struct.unpack(f"<{count}q", _read(stream, count * _LENGTH.size))
    text, *arrays = [_read(stream, length) for length in lengths]
    return pickle.loads(text, buffers=arrays)


def _read(stream: IO[bytes], count: int) -> bytearray:
    room = bytearray(count)
    done = 0
    while done < count:
        read = stream.readinto(memoryview(room)[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        done += read
    return room
