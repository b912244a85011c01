"""Runs foreign decoders in a process of their own: one that crashes, hangs or takes all memory costs one scan.

The process is started at the first scan that needs it, and again after one that it did not survive. It is asked and
answers through its standard streams: pickles with their length before them, then the bytes of the array.
"""

from __future__ import annotations

import atexit
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from napari_seg.errors import InputError, NapariSegError
from napari_seg.volume import Volume

SECONDS_AT_LEAST = 60.0
BYTES_A_SECOND = 1 << 20
"""A decoder that is slower than this, after its first minute, is taken to hang."""

MEMORY_SHARE = 0.8
"""Of the machine's memory, what a decoder may take."""

_LENGTH = struct.Struct("<q")
_CHUNK_BYTES = 1 << 24


def read_apart(read: Callable[[Sequence[Path]], Volume], files: Sequence[Path], seconds: float | None = None) -> Volume:
    """What a reader makes of files, in a process of its own.

    Args:
        read: a function of a module, so that the other process finds it.
        files: what it is given.
        seconds: after which it is ended; None: as many as any decoder should need.

    Raises:
        InputError: what the reader raises; `file.crashes_reader`; `file.too_slow`; `file.too_large`.
    """
    if seconds is None:
        seconds = SECONDS_AT_LEAST + sum(file.stat().st_size for file in files) / BYTES_A_SECOND
    with _lock:
        return _process().ask(read, files, seconds)


class _Process:
    """The other process, as seen from here."""

    def __init__(self) -> None:
        self.popen = start_serving(__name__)

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def ask(self, read: Callable[[Sequence[Path]], Volume], files: Sequence[Path], seconds: float) -> Volume:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self.popen.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        name = files[0].name
        try:
            send(self.popen.stdin, (read, [file.absolute() for file in files]))
            answer = receive(self.popen.stdout)
            if isinstance(answer, NapariSegError):
                raise answer
            others, shape, dtype, order = answer
            array = np.empty(shape, dtype, order)
            _read_into(self.popen.stdout, array.ravel(order="K").view(np.uint8).data)
            named = {file.absolute(): file for file in files}
            return Volume(array, **others | {"files": tuple(named[file] for file in others["files"])})
        except (EOFError, OSError):
            self.close()
            if late.is_set():
                raise InputError(
                    "file.too_slow", f"{name} could not be decoded within {seconds:.0f} s; export it again"
                ) from None
            raise InputError(
                "file.crashes_reader", f"{name} makes its decoder crash: it is damaged; export it again"
            ) from None
        except BaseException:
            if not isinstance(sys.exception(), NapariSegError):
                self.close()  # stopped half-way through an answer
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


_lock = threading.Lock()
_running: list[_Process] = []


def _process() -> _Process:
    if _running and not _running[0].is_alive:
        _running.clear()
    if not _running:
        _running.append(_Process())
    return _running[0]


@atexit.register
def _close() -> None:
    for process in _running:
        process.close()


def serve() -> None:
    """What the other process does: reads until nobody asks any more."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a decoder that prints must not print into the answers
    limited = False
    while True:
        try:
            read, files = receive(questions)
        except EOFError:
            return
        if not limited:
            _limit_memory()
            limited = True
        _answer(read, files, answers)


def _answer(read: Callable[[Sequence[Path]], Volume], files: Sequence[Path], answers: IO[bytes]) -> None:
    """Reads and answers, and holds nothing afterwards."""
    try:
        volume = read(files)
    except NapariSegError as error:
        send(answers, error)
    except MemoryError:
        text = f"{files[0].name} claims more memory than this machine has; it is damaged, or needs a larger machine"
        send(answers, InputError("file.too_large", text))
    else:
        # (C, I, J, K) as readers make it is a transposed (K, J, I, C): its bytes go as they lie
        order: Literal["C", "F"] = "F" if volume.array.flags.f_contiguous else "C"
        array = np.asarray(volume.array, order=order)
        others = {field.name: getattr(volume, field.name) for field in fields(volume) if field.name != "array"}
        send(answers, (others, array.shape, array.dtype, order))
        answers.write(array.ravel(order="K").view(np.uint8).data)
        answers.flush()


def _limit_memory() -> None:
    """So that a header's claim ends in a `MemoryError` and not in the death of whatever the system chooses."""
    if sys.platform != "linux":
        return
    import resource

    page = os.sysconf("SC_PAGE_SIZE")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * page
    limit = held + int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * page)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def start_serving(module: str) -> subprocess.Popen[bytes]:
    """A process that finds all modules that this one finds, and does nothing but a module's `serve`."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", f"from {module} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what libraries have to say quotes headers, and those are private
        env=os.environ | {"PYTHONPATH": paths},
    )


def send(stream: IO[bytes], content: Any) -> None:
    """Writes a pickle with its length before it."""
    text = pickle.dumps(content)
    stream.write(_LENGTH.pack(len(text)) + text)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """What `send` wrote at the other end, which is this program too.

    Raises:
        EOFError: the other end is gone.
    """
    return pickle.loads(_exactly(stream, *_LENGTH.unpack(_exactly(stream, _LENGTH.size))))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    text = stream.read(count)
    if len(text) < count:
        raise EOFError
    return text


def _read_into(stream: IO[bytes], room: memoryview) -> None:
    done = 0
    while done < len(room):
        count = stream.readinto(room[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
