"""`napari-seg evaluate`: label maps against references."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli import ExitCode, exit_code

if TYPE_CHECKING:
    from napari_seg.evaluation.pairs import PairResult


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare label maps with references: Dice of each segment",
        description="Compares label maps with references on the same grid. Two folders are paired by file name "
        "(case_01_seg.nii.gz or case_01.nii.gz belongs to case_01.nii.gz). A segment that neither holds is left out of "
        "the mean; one that only one of them holds counts 0. A file without a partner counts as failed.",
    )
    parser.add_argument("predictions", type=Path, help="a label map (NIfTI) or a folder of them")
    parser.add_argument("references", type=Path, help="the reference, or a folder of them")
    parser.add_argument("--json", action="store_true", help="print objects instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.evaluation.pairs import compare_pair, find_pairs, mean_dice

    pairs, lonely = find_pairs(arguments.predictions, arguments.references)
    if not pairs:
        print(
            "napari-seg: input.none: found no label map that has a reference of the same name; expected case.nii.gz or "
            "case_seg.nii.gz beside case.nii.gz",
            file=sys.stderr,
        )
        return ExitCode.NOTHING_FOUND
    results = [compare_pair(name, prediction, reference) for name, prediction, reference in pairs] + lonely
    means = mean_dice(results)
    if arguments.json:
        print(json.dumps({"mean_dice": means, "cases": [result.as_dict() for result in results]}, indent=2))
    else:
        _print_table(results, means)
    return exit_code(sum(bool(result.code) for result in results), len(results))


def _print_table(results: list[PairResult], means: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    from napari_seg.evaluation.pairs import mean_dice

    console = Console(soft_wrap=True, highlight=False)
    table = Table("case", *means, title="Dice", title_justify="left")
    for result in results:
        if not result.code:
            own = mean_dice([result])
            table.add_row(result.name, *(f"{own[name]:.4f}" if name in own else "-" for name in means))
    table.add_section()
    table.add_row("mean", *(f"{value:.4f}" for value in means.values()))
    console.print(table)
    for result in results:
        if result.code:
            console.print(f"failed   {result.name}: {result.code}: {result.message}", markup=False)
