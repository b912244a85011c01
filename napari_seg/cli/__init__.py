"""`napari-seg`: one module a command, argument parsing and printing only."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NoReturn

from napari_seg.version import __version__


class ExitCode(IntEnum):
    """What the command's exit status means."""

    DONE = 0
    USAGE = 1
    NOTHING_FOUND = 2
    SOME_FAILED = 3
    ALL_FAILED = 4
    ENVIRONMENT = 5
    CANCELLED = 130
    OUTPUT_CLOSED = 141


def exit_code(failed: int, total: int) -> ExitCode:
    """What a run amounts to in which so many of all cases failed."""
    if failed == 0:
        return ExitCode.DONE
    return ExitCode.ALL_FAILED if failed == total else ExitCode.SOME_FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments behind `napari-seg`; the process's own if left out.
    """
    from napari_seg.cli import bundles, convert, demo, evaluate, inspect, predict, train

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal has no letters for ends nothing
            stream.reconfigure(errors="backslashreplace")
    parser = _Parser(
        prog="napari-seg",
        description="Medical-image segmentation: scans in, named structures with volumes out.",
        epilog="Exit status: 0 all done, 1 wrong usage, 2 nothing found, 3 some scans failed, 4 all failed, 5 the "
        "machine lacks something or has no room for the output, 130 stopped, 141 nobody read the output any more. "
        "'napari-seg COMMAND --help' tells more of a command.",
    )
    parser.add_argument("--version", action="version", version=f"napari-seg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, inspect, predict, evaluate, convert, train, bundles):
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    # what MONAI has to say of optional packages helps nobody at a terminal
    logging.getLogger("monai").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="monai")
    try:
        with _signals_interrupt():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _forget_output()
        return ExitCode.OUTPUT_CLOSED
    except OSError as error:
        _forget_output()
        with suppress(OSError):
            print(f"napari-seg: output.not_written: the output could not be written: {error.strerror}", file=sys.stderr)
        return ExitCode.ENVIRONMENT


def _run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, NapariSegError, OutputError

    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        error: NapariSegError = Cancelled()
    except NapariSegError as raised:
        error = raised
    except OSError as raised:
        if raised.filename is None:  # no file that was opened, but standard output
            raise
        error = EnvironmentFault("environment.system", f"{raised.filename}: {raised.strerror}")
    if getattr(arguments, "json", False):
        print(json.dumps({"code": error.code, "message": error.message}, indent=2))
    if isinstance(error, Cancelled):
        print("napari-seg: stopped; what was finished is kept, nothing is half written", file=sys.stderr)
        return ExitCode.CANCELLED
    print(f"napari-seg: {error}", file=sys.stderr)
    if isinstance(error, (EnvironmentFault, OutputError)):
        return ExitCode.ENVIRONMENT
    if isinstance(error, BundleError):
        return ExitCode.USAGE
    nothing = error.code in ("input.missing", "input.none", "dataset.missing")
    return ExitCode.NOTHING_FOUND if nothing else ExitCode.ALL_FAILED


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: what is under way is undone, what is done is kept."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)  # no system has all of them
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores SIGHUP
            with suppress(ValueError):  # only the main thread may
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_output() -> None:
    """Keep Python from writing what is left, and complaining, when it ends."""
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
