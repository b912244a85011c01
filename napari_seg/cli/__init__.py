"""`napari-seg`: one module a command, argument parsing and printing only."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from enum import IntEnum

from napari_seg import __version__


class ExitCode(IntEnum):
    """What the command's exit status means."""

    DONE = 0
    USAGE = 1
    NOTHING_FOUND = 2
    SOME_FAILED = 3
    ALL_FAILED = 4
    ENVIRONMENT = 5
    CANCELLED = 130


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
    """Runs one command and returns its exit status.

    Args:
        argv: the arguments behind `napari-seg`; the process's own if left out.
    """
    from napari_seg.cli import bundles, convert, demo, evaluate, inspect, predict, train
    from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, NapariSegError, OutputError

    parser = _Parser(
        prog="napari-seg",
        description="Medical-image segmentation: scans in, named structures with volumes out.",
        epilog="Exit status: 0 all done, 1 wrong usage, 2 nothing found, 3 some scans failed, 4 all failed, 5 the "
        "machine lacks something, 130 stopped. 'napari-seg COMMAND --help' tells more of a command.",
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
        return int(arguments.run(arguments))
    except (KeyboardInterrupt, Cancelled):
        print("napari-seg: stopped; what was finished is kept, nothing is half written", file=sys.stderr)
        return ExitCode.CANCELLED
    except (EnvironmentFault, OutputError) as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.ENVIRONMENT
    except BundleError as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except NapariSegError as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return (
            ExitCode.NOTHING_FOUND
            if error.code in ("input.missing", "input.none", "dataset.missing")
            else ExitCode.ALL_FAILED
        )
