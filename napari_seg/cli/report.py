"""`napari-seg report`: write the report of a run again, from its manifest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from napari_seg.cli.exit_codes import ExitCode


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="write the report of a run of predict: a page, and tables for R, pandas and spreadsheets",
        description="Writes report.html, cases.csv, cases.json, volumes_long.csv and volumes_wide.csv from the "
        "manifest in the output folder of 'napari-seg predict', also while the run goes on.",
    )
    parser.add_argument("results", type=Path, metavar="OUT", help="output folder of the run")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write into this folder; OUT if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace files that no report of a run has written")
    parser.add_argument("--json", action="store_true", help="print an object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.cohort.manifest import Manifest
    from napari_seg.cohort.report.write import write_report

    with Manifest.open(arguments.results, read_only=True) as manifest:
        path = write_report(manifest, arguments.output, overwrite=arguments.overwrite)
    print(json.dumps({"report": str(path)}, indent=2) if arguments.json else f"report   {path}")
    return ExitCode.DONE
