"""Run a training command in a separate process: show its output, stop it cleanly, convert its errors.

Every call works on Linux, macOS and Windows, or has a stated substitute on systems that lack it.
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
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError, OutputError, TrainingError
from napari_seg.training.history import ended_since
from napari_seg.training.segnets_modules import converted
from napari_seg.worker import call_after_death, python_environment

_POLL_SECONDS = 0.25
_GRACE_POLLS = 40
"""Number of polls for further output of a process that has ended, because a child of it may keep the output open."""
_TAIL_BYTES = 100_000
_ERROR_PATTERN = re.compile(r"TrainingError: ([a-z_]+\.[a-z_]+): (.+?)\s*(?:\n\s*\n|\n\[rank\d|\n\[W\d|\Z)", re.DOTALL)
"""An error with a code, which ends at an empty line or at a warning of torch's."""
_FAILED_FIRST = re.compile(r"^process (\d+ of \d+) failed first.*\n", re.MULTILINE)
"""Line of `distributed.run_processes` before the output of the process that ended the others."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Signals that stop a training; Windows has no SIGHUP, and only Windows has SIGBREAK."""
SAVED = (0, *(128 + number for number in SIGNALS))
"""Exit statuses of a training that has saved everything (`segnets.training.StopOnSignal`)."""
STOP = "stop"
"""File in the folder of a run that stops its training (`segnets.training.StopOnFile`)."""
_KILLED = getattr(signal, "SIGKILL", 9)


def run(command: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
    """Run a command to its end and show its output.

    An interrupt (Ctrl-C, SIGTERM, a closed terminal) is forwarded to the command, which saves and ends. If this process
    is killed, a command that runs a module (`-m`) is interrupted too. Windows kills both if their terminal is closed.

    Args:
        command: words of the command; the first is the Python interpreter.
        stop_file: if this file appears, it is removed and the command is interrupted as by SIGTERM.
        run_folder: folder of the run that the command trains, if it does: an interrupt that kills it after it has
            saved everything loses nothing, and a file there stops a training that no signal reaches.

    Raises:
        TrainingError: the command failed; the error has its code and message if the command reported them.
        OutputError: the command could not write its files (`output.*`).
        EnvironmentFault: a process that reads the data failed (`environment.*`).
        Cancelled: the command was interrupted; the message says whether it saved.
    """
    start = time.time()
    child, output_fd = _start(command)
    interrupted = False

    def forward_signal(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        try:
            child.send_signal(_signal_to_forward(number))
        except ProcessLookupError:
            pass
        except OSError:  # Windows sends it through a console, which a program without one lacks
            if run_folder is None:
                child.terminate()
            else:
                ask_to_stop(run_folder)

    def poll() -> None:
        if stop_file.exists():
            stop_file.unlink()
            forward_signal(signal.SIGTERM, None)

    signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous_handlers = {number: signal.signal(number, forward_signal) for number in signals}
    try:
        output = _copy_to_stderr(child, output_fd, poll)
        status = child.wait()
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    if interrupted:
        if run_folder is not None:
            (run_folder / STOP).unlink(missing_ok=True)  # of a command that ended before it saw the file
        # a process that dies of a signal (while Python loads, or of a second signal) has another status than those
        is_saved = status in SAVED or (run_folder is not None and ended_since(run_folder, start) is not None)
        raise Cancelled(
            "run.stopped",
            "stopped and saved; run the same command again to continue"
            if is_saved
            else "stopped without saving; run the same command again to continue from the last checkpoint",
        )
    if status:
        raise _error(output, status)


def ask_to_stop(run_folder: Path) -> None:
    """Stop a training that no signal reaches: it saves and ends when it finds the file `STOP` in its folder."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / STOP).touch()


def module_command(python: str, *words: str) -> list[str]:
    """Return the command that calls `run_module` in a process that this one starts.

    Args:
        python: the Python interpreter.
        words: name of the module, and the arguments of its command line.
    """
    code = f"import sys; from {__name__} import run_module; run_module({os.getpid()}, *sys.argv[1:])"
    return [python, "-c", code, *words]


def run_module(parent: int, module: str, *arguments: str) -> None:
    """Run a module in this process as `python -m` does, and interrupt it after the death of its parent.

    Args:
        parent: process id of the process that started this one.
        module: the module's name.
        arguments: arguments of the module's command line.
    """
    call_after_death(parent, _interrupt)
    if module == "monai.bundle":
        from monai.bundle import scripts

        scripts.logger.setLevel("WARNING")  # it lists the words of the command again
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # before the training handles signals: nothing is saved, and a traceback says nothing
        raise SystemExit(1) from None
    except Exception as error:
        if (reported := _reported(error)) is None:
            raise
        raise SystemExit(f"TrainingError: {reported}") from None  # a traceback through MONAI says nothing more


def _reported(error: BaseException | None) -> str | None:
    """Return the code and message of the error with a code that caused an error, or None."""
    while error is not None:
        if type(error).__name__ == TrainingError.__name__ and hasattr(error, "code"):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _interrupt() -> None:
    """Send SIGTERM to the main thread of this process; Windows can only raise it in this thread."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGTERM)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _start(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command; return its process and the file descriptor from which its stderr is read.

    If stderr is a terminal, the command gets a pseudo-terminal, so that it draws its progress bar; Windows has none,
    and progress comes as lines. If stdout is a terminal too, it takes the same way, so that lines and bar stay in
    order. The process has its own group, so that Ctrl-C, which is forwarded, does not arrive
    twice.
    """
    output_fd, command_fd = os.openpty() if hasattr(os, "openpty") and sys.stderr.isatty() else os.pipe()
    # MONAI warns that the code of a config will run, which is intended here
    quiet = ["ignore::UserWarning:monai.bundle.scripts", "ignore::UserWarning:monai.data.meta_tensor"]
    filters = [*quiet, *filter(None, [os.environ.get("PYTHONWARNINGS")])]  # the last matching filter applies
    environment = {**python_environment(), "PYTHONWARNINGS": ",".join(filters)}
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # as `_copy_to_stderr` decodes it; Windows has another
    if command[1] == "-m":
        command = module_command(command[0], *command[2:])
    group: dict[str, Any] = {"process_group": 0}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    _copy_terminal_size(output_fd)
    try:
        stdout = command_fd if os.isatty(command_fd) and sys.stdout.isatty() else None
        return subprocess.Popen(command, stdout=stdout, stderr=command_fd, env=environment, **group), output_fd
    except OSError:
        os.close(output_fd)
        raise
    finally:
        os.close(command_fd)


def _signal_to_forward(number: int) -> int:
    """Return the signal to send for a received one; Windows can send a process group nothing but CTRL_BREAK_EVENT."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number if number == signal.SIGINT else signal.SIGTERM


def _copy_terminal_size(terminal: int) -> None:
    """Give a pseudo-terminal the size of this process's terminal, whose size may change at any time."""
    if not os.isatty(terminal):
        return
    import termios

    with suppress(OSError, ValueError):  # stderr is not a file
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
        if columns:
            size = (lines, columns)
            if termios.tcgetwinsize(terminal) != size:
                termios.tcsetwinsize(terminal, size)
            return
    if 0 in termios.tcgetwinsize(terminal):
        termios.tcsetwinsize(terminal, (24, 80))


def _copy_to_stderr(child: subprocess.Popen[bytes], output_fd: int, poll: Callable[[], None]) -> str:
    """Show the output of the command, call `poll` repeatedly until it has ended, and return the end of its output."""
    chunks: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        # in a thread, because Windows can only wait for sockets
        chunk = b"-"
        while chunk:
            try:
                chunk = os.read(output_fd, 65536)
            except OSError:  # the other end of the terminal is closed
                chunk = b""
            chunks.put(chunk)
        os.close(output_fd)

    threading.Thread(target=read, name="napari-seg training", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be split over two chunks
    tail, polls_left, is_shown = b"", _GRACE_POLLS, True
    while polls_left:
        poll()
        with suppress(OSError):
            _copy_terminal_size(output_fd)
        try:
            chunk = chunks.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if child.poll() is not None:
                polls_left -= 1
            continue
        if not chunk:
            break
        tail = (tail + chunk)[-_TAIL_BYTES:]
        if is_shown:
            try:
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
            except OSError:  # the terminal is gone; let the command save all the same
                is_shown = False
    return tail.decode(errors="replace").replace("\r\n", "\n")


def _error(output: str, status: int) -> NapariSegError:
    """Return the error for the output and exit status of a failed command."""
    reported = _ERROR_PATTERN.findall(output)
    process, of_process = "the training", ""
    if first := _FAILED_FIRST.search(output):
        process, of_process = f"process {first[1]} of the training", f" (process {first[1]} of the training)"
        output = output[first.end() :] or output  # that of the first process came before
    if reported:
        code, message = reported[-1]
        return converted(code, message + of_process)
    if status in (-_KILLED, 128 + _KILLED):
        return TrainingError(
            "training.out_of_memory",
            f"the system killed {process} (status {status}), probably because memory ran out. Try in this "
            "order: raise accumulation_steps (--set accumulation_steps=2, up to batch_size), which does not change "
            "the result; lower patch_size, in a new folder; on a GPU set amp to true. The same command "
            "continues from the last checkpoint, if there is one",
        )
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return OutputError(
            "output.disk_full", "the disk is full; free some space, then run the same command again to continue"
        )
    if "Read-only file system" in output:
        return OutputError("output.not_written", "the disk is read-only; choose a folder on another one with -o")
    # the first of a chain of exceptions is the cause of the others
    cause = re.search(r"^[\w.]*(?:Error|Exception)\b.*", output, re.MULTILINE)
    shown = cause[0] if cause else "no error was shown"
    if "in DataLoader worker process" in output:
        return EnvironmentFault(
            "environment.data_worker",
            f"a process that reads the training data failed ({shown}); see the output above; the same command "
            "continues from the last checkpoint, if there is one",
        )
    return TrainingError("training.failed", f"{process} ended with status {status} ({shown}); see the output above")
