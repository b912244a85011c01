"""A training command in a process of its own: shown as it goes, stopped cleanly, its errors turned into this package's.

Every call here works on Linux, macOS and Windows, or has a stated substitute where a system lacks it.
"""

from __future__ import annotations

import codecs
import os
import queue
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError, OutputError, TrainingError
from napari_seg.worker import call_after_death

_POLL_SECONDS = 0.25
_GRACE_POLLS = 40
"""How often the output of a process that has ended is polled for more; a child of it may hold the output open."""
_TAIL = 100_000
_ERROR = re.compile(r"TrainingError: ([a-z_]+\.[a-z_]+): (.+?)\s*(?:\n\s*\n|\Z)", re.DOTALL)
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""What stops a training; Windows has no SIGHUP, and no other system has SIGBREAK."""
_KILLED = getattr(signal, "SIGKILL", 9)


def run(words: list[str], stop_file: Path) -> None:
    """Run a command to its end and show its output.

    An interrupt (Ctrl-C, SIGTERM, a closed terminal) is passed on, and the command's own end is awaited: it saves. If
    this process is killed, a command that runs a module (`-m`) is interrupted too.

    Args:
        words: the command; the first word is the Python interpreter.
        stop_file: interrupts it too, as SIGTERM does, and is removed.

    Raises:
        TrainingError: it failed; with the command's own code and message where it gave one.
        OutputError: it could not write its files (`output.*`).
        EnvironmentFault: a process that reads its data failed (`environment.*`).
        Cancelled: it was interrupted; the message says whether it has saved.
    """
    child, reading = _start(words)
    interrupted = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        with suppress(ProcessLookupError):
            child.send_signal(_passed_on(number))

    def poll() -> None:
        if stop_file.exists():
            stop_file.unlink()
            pass_on(signal.SIGTERM, None)

    signals = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        said = _copy_to_stderr(child, reading, poll)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        # what `segnets.training.StopOnSignal` exits with; who dies of a signal, while Python loads or of a second
        # one, has another status
        has_saved = status in (0, *(128 + number for number in _SIGNALS))
        raise Cancelled(
            "run.stopped",
            "stopped and saved; the same command goes on from there"
            if has_saved
            else "stopped; nothing new was saved; the same command goes on from what there was before",
        )
    if status:
        raise _error(said, status)


def run_module(parent: int, module: str, *arguments: str) -> None:
    """Run a module in this process as `python -m` does, and interrupt it after the death of its parent.

    Args:
        parent: process id of the process that started this one.
        module: the module's name.
        arguments: of its command line.
    """
    call_after_death(parent, _interrupt)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _interrupt() -> None:
    """Send this process SIGTERM so that its main thread notices at once; Windows can't wake that one."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGTERM)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _start(words: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command; return it and the file descriptor of its errors and progress.

    A terminal stays a terminal for it, so that it draws its progress bar. Windows has no pseudo-terminal: progress
    comes as lines there. The process has a group of its own, for Ctrl-C is passed on and must not arrive twice.
    """
    reading, writing = os.openpty() if hasattr(os, "openpty") and sys.stderr.isatty() else os.pipe()
    # MONAI warns that a config's code will run, which is what was requested
    quiet = ["ignore::UserWarning:monai.bundle.scripts", "ignore::UserWarning:monai.data.meta_tensor"]
    filters = [*quiet, *filter(None, [os.environ.get("PYTHONWARNINGS")])]  # of several that fit, the last one counts
    environment = {**os.environ, "PYTHONWARNINGS": ",".join(filters)}
    if words[1] == "-m":
        code = f"import sys; from {__name__} import run_module; run_module({os.getpid()}, *sys.argv[1:])"
        words = [words[0], "-c", code, *words[2:]]
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    group: dict[str, Any] = {"process_group": 0}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    _follow_size(reading)
    try:
        return subprocess.Popen(words, stderr=writing, env=environment, **group), reading
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)


def _passed_on(number: int) -> int:
    """Return the signal to send for a received one; Windows can send a process group nothing but CTRL_BREAK_EVENT."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number if number == signal.SIGINT else signal.SIGTERM


def _follow_size(terminal: int) -> None:
    """Give a pseudo-terminal the size of this process's terminal, whose size may change at any time."""
    if not os.isatty(terminal):
        return
    import termios

    with suppress(OSError, ValueError):  # an error stream without a file
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
        if columns:
            size = (lines, columns)
            if termios.tcgetwinsize(terminal) != size:
                termios.tcsetwinsize(terminal, size)
            return
    if 0 in termios.tcgetwinsize(terminal):
        termios.tcsetwinsize(terminal, (24, 80))


def _copy_to_stderr(child: subprocess.Popen[bytes], reading: int, poll: Callable[[], None]) -> str:
    """Show what the command prints, poll until it has ended, and return the last of what it printed."""
    chunks: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        # in a thread, for Windows can wait for sockets only
        chunk = b"-"
        while chunk:
            try:
                chunk = os.read(reading, 65536)
            except OSError:  # how a terminal says that its other end is closed
                chunk = b""
            chunks.put(chunk)
        os.close(reading)

    threading.Thread(target=read, name="napari-seg training", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may lie in two chunks
    tail, polls_left, is_shown = b"", _GRACE_POLLS, True
    while polls_left:
        poll()
        with suppress(OSError):
            _follow_size(reading)
        try:
            chunk = chunks.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if child.poll() is not None:
                polls_left -= 1
            continue
        if not chunk:
            break
        tail = (tail + chunk)[-_TAIL:]
        if is_shown:
            try:
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
            except OSError:  # the terminal is gone; the command still has to save
                is_shown = False
    return tail.decode(errors="replace").replace("\r\n", "\n")


def _error(said: str, status: int) -> NapariSegError:
    """Return the error that a failed command stands for."""
    own = _ERROR.findall(said)
    if own:
        code, message = own[-1]
        return OutputError(code, message) if code.startswith("output.") else TrainingError(code, message)
    if status in (-_KILLED, 128 + _KILLED):
        return TrainingError(
            "training.out_of_memory",
            f"the system killed the training (status {status}), as it does where memory runs out. In this order: raise "
            "accumulation_steps (--set accumulation_steps=2, up to batch_size), which changes no result; lower "
            "patch_size, with a new folder; set amp to true. The same command goes on from the last checkpoint, if one "
            "was written",
        )
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return OutputError("output.disk_full", "the disk is full; free some space: the same command goes on")
    if "Read-only file system" in said:
        return OutputError("output.not_written", "the disk is read-only; choose a folder on another one with -o")
    # the first of a chain of exceptions is the cause of the others
    cause = re.search(r"^[\w.]*(?:Error|Exception)\b.*", said, re.MULTILINE)
    shown = cause[0] if cause else "no error was shown"
    if "in DataLoader worker process" in said:
        return EnvironmentFault(
            "environment.data_worker",
            f"a process that reads the training data failed ({shown}); what led to it stands above; the same command "
            "goes on from the last checkpoint, if one was written",
        )
    return TrainingError(
        "training.failed", f"the training ended with status {status} ({shown}); what led to it stands above"
    )
