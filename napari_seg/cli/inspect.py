"""`napari-seg inspect`: report for each scan whether it can be segmented."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode, exit_code
from napari_seg.cli.read_options import add_read_options, read_options
from napari_seg.errors import counted, printable

if TYPE_CHECKING:
    from napari_seg.formats.verdict import Verdict


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="report for each series and file whether it can be segmented, and if not, why",
        description="Reads every series and file below the paths and prints a verdict for each: process; warn "
        "(processed, with a warning); refuse (with a code, what was found, what was expected and what to do); skip "
        "(not a scan). Nothing is written.",
        epilog="Example: napari-seg inspect study/   Exit status: 0, 3 if some scans are refused, 4 if all are.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    add_read_options(parser)
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.formats.verdict import verdicts

    found: list[Verdict] = []
    for path in arguments.paths:
        for verdict in verdicts(path, read_options(arguments)):
            found.append(verdict)
            if not arguments.json:
                print(_line(verdict))
    scans = [verdict for verdict in found if verdict.verdict != "skip"]
    refused = sum(verdict.verdict == "refuse" for verdict in scans)
    if arguments.json:
        print(json.dumps([verdict.as_dict() for verdict in found], indent=2))
    else:
        warned = sum(verdict.verdict == "warn" for verdict in scans)
        skipped = len(found) - len(scans)
        print(f"{len(scans)} scans: {len(scans) - refused} can be segmented, {warned} of them with a warning;", end=" ")
        print(f"{refused} refused; {skipped} skipped")
    if not scans:
        return ExitCode.NOTHING_FOUND
    return exit_code(refused, len(scans))


def _line(verdict: Verdict) -> str:
    """Return a line such as "process  CT_003  512 x 512 x 200, 0.8 x 0.8 x 1.5 mm, LPS, int16  (200 files, a/3)"."""
    parts = [f"{verdict.verdict:8}", verdict.name]
    if verdict.shape is not None and verdict.spacing_mm is not None:
        shape = " x ".join(map(str, verdict.shape))
        spacing = " x ".join(f"{length:.4g}" for length in verdict.spacing_mm)
        parts.append(f"{shape}, {spacing} mm, {verdict.orientation}, {verdict.dtype}")
    if verdict.code:
        parts.append(f"{verdict.code}: {verdict.message}")
    parts.append(f"({counted(verdict.files, 'file')}, {verdict.path})")
    return printable("  ".join(parts)).replace("\n", "_")  # a line break in a file name must not start a new line
