"""Entry point of the command line: choose the subcommand, run it, turn errors into exit statuses."""

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
from typing import Any, NoReturn

from napari_seg.cli import (
    accept,
    convert,
    demo,
    edit,
    evaluate,
    improve,
    inspect,
    models,
    predict,
    queue,
    report,
    status,
    train,
)
from napari_seg.cli.exit_codes import STOPPED, ExitCode, exit_code_of, with_code
from napari_seg.cli.stop_signals import signals_handled
from napari_seg.errors import Cancelled, NapariSegError, did_you_mean
from napari_seg.version import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(f"'{self.prog} --help' describes the arguments", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a value that is none of the choices, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            text = f"found {value}, expected one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            raise argparse.ArgumentError(action, text)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse arguments that the parser does not know, with the nearest option that it knows."""
        options = list(self._option_string_actions)
        for action in self._actions:  # of commands such as `models add`
            if isinstance(action, argparse._SubParsersAction):
                options += [one for parser in action.choices.values() for one in parser._option_string_actions]
        hint = did_you_mean(words[0].partition("=")[0], options, cutoff=0.7)
        self.error(f"found {' '.join(words)}, which is no argument of this command{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments behind `napari-seg`; the process's own if left out.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print names that the terminal's encoding lacks as escapes
            stream.reconfigure(errors="backslashreplace")
    parser, commands = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices[arguments.command].refuse_unknown(unknown)
    # MONAI warns about optional packages that are not needed here
    logging.getLogger("monai").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="monai")
    try:
        with _signals_interrupt():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _discard_output()
        return ExitCode.OUTPUT_CLOSED
    except OSError as error:
        _discard_output()
        with suppress(OSError):
            print(f"napari-seg: output.not_written: the output could not be written: {error.strerror}", file=sys.stderr)
        return ExitCode.ENVIRONMENT


def _parser() -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser of the command line, and its commands."""
    parser = _Parser(
        prog="napari-seg",
        description="Medical-image segmentation: scans in, named structures with volumes out.",
        epilog="Exit status: 0 all done, 1 wrong usage, 2 nothing found, 3 some scans failed, 4 all scans or the "
        "training failed, 5 a package, device or disk space is missing or another run uses the folder, 130 stopped, "
        "141 the reader of the output closed it. "
        "'napari-seg COMMAND --help' describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"napari-seg {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    of_results = (predict, status, report, queue, evaluate, convert, edit)
    for command in (demo, inspect, *of_results, train, accept, improve, models):
        command.add_parser(commands)
    return parser, commands


def _run(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.run(arguments))
    except (KeyboardInterrupt, NapariSegError, OSError) as raised:
        error = with_code(raised)
        if error is None:
            raise
    if getattr(arguments, "json", False):
        print(json.dumps({"code": error.code, "message": error.message}, indent=2))
    print(f"napari-seg: {STOPPED if isinstance(error, Cancelled) else error}", file=sys.stderr)
    return exit_code_of(error)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C: the case in progress is undone, finished cases are kept."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP", "SIGBREAK")
    with signals_handled(names, interrupt, lambda before: before is signal.SIG_DFL):  # `nohup` ignores SIGHUP
        yield


def _discard_output() -> None:
    """Redirect standard output to the null device, so that Python does not fail as it flushes at exit."""
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
