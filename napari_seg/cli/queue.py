"""`napari-seg queue`: which cases of a run to correct next."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.consent import add_trust_option
from napari_seg.cli.exit_codes import ExitCode, exit_code
from napari_seg.cli.values import integer, whole_number
from napari_seg.learning.strategies import STRATEGIES

if TYPE_CHECKING:
    from napari_seg.learning.queue import RankedCase

COUNT = 10


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "queue",
        help="rank the cases of a run: which ones to correct next, so that the model learns most",
        description="Ranks the finished cases of a run of 'napari-seg predict'. With --scans the model looks at each "
        "scan again: a case is uncertain if the networks of an ensemble disagree on it, or one network on shifted "
        "windows (1 - mean pairwise Dice), and it is new if the network's features differ from those of the accepted "
        "cases and of the cases before it in the queue. Cases that stand for many uncertain and new ones come first. "
        "What is found is kept in the output folder, so that a stopped queue goes on and the next one "
        "is quick. Without --scans, and if nothing was kept, the cases are ranked by the confidence and the volumes of "
        "the run, which takes no time but does not see how scans look.",
        epilog="Exit status: 0 if all cases were ranked, 3 if some could not be, 4 if none could, 2 if the folder has "
        "no run or no finished case.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="output folder of the run")
    parser.add_argument("--scans", type=Path, metavar="FOLDER", help="folder of the scans, as predict was given it")
    parser.add_argument(
        "--model", metavar="M", help="model to improve: a name or a folder; by default the one that made the results"
    )
    add_trust_option(
        parser, "let the code in that bundle run, now and until it changes; only for bundles whose source you trust"
    )
    parser.add_argument(
        "--accepted",
        type=Path,
        metavar="SET",
        help="training set of the accepted cases, which are left out; cases that are similar to them are ranked lower",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=STRATEGIES[0],
        help="uncertain-diverse: cases that stand for many uncertain ones, unlike the accepted and earlier cases "
        "(default); uncertain: uncertainty alone; random: the control",
    )
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="seed of --strategy random (default: 0)")
    parser.add_argument(
        "--count",
        type=whole_number,
        default=COUNT,
        metavar="N",
        help=f"number of cases to rank (default: {COUNT}; 0: all)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto)")
    parser.add_argument("--json", action="store_true", help="print objects instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.read import read_bundle
    from napari_seg.cli.consent import give_consent
    from napari_seg.errors import counted
    from napari_seg.inference.options import SegmentOptions
    from napari_seg.learning.queue import rank

    bundle = None if arguments.model is None else read_bundle(arguments.model)
    if bundle is not None and arguments.trust:
        bundle = give_consent(bundle)
    with _progress(arguments.json or not sys.stderr.isatty()) as report:
        cases = rank(
            arguments.results,
            scans=arguments.scans,
            model=bundle,
            accepted=arguments.accepted,
            strategy=arguments.strategy,
            count=arguments.count or None,
            seed=arguments.seed,
            options=SegmentOptions(device=arguments.device),
            progress=report,
        )
    failed = [case for case in cases if case.rank is None]
    ranked = [case for case in cases if case.rank is not None and not case.is_accepted]
    if arguments.json:
        print(json.dumps([case.as_dict() for case in (*ranked, *failed)], indent=2))
    else:
        print_queue(ranked, failed)
        if arguments.accepted is not None:
            count = len(cases) - len(ranked) - len(failed)
            print(f"{counted(count, 'accepted case')} of the run left out")
    if not cases:
        return ExitCode.DONE
    return exit_code(len(failed), len(cases))


def print_queue(ranked: Sequence[RankedCase], failed: Sequence[RankedCase]) -> None:
    """Print a table of the ranked cases, and a line for each that could not be ranked."""
    from rich.markup import escape
    from rich.table import Table

    from napari_seg.cli.progress import Output
    from napari_seg.errors import one_line

    console = Output()
    if ranked:
        basis = ranked[0].basis
        table = Table("rank", "case", "uncertainty", "structures", "why")
        table.columns[1].overflow = "fold"  # names of cases often differ only at their end
        for column in (0, 2):
            table.columns[column].justify = "right"
        for case in ranked:
            worst = sorted(case.structures.items(), key=lambda item: -item[1])[:3]
            more = f", {len(case.structures) - 3} more" if len(case.structures) > 3 else ""
            table.add_row(
                str(case.rank),
                escape(one_line(case.name, 200)),
                "" if case.uncertainty is None else f"{case.uncertainty:.3f}",
                escape(", ".join(f"{name} {value:.3f}" for name, value in worst) + more),
                escape(case.why),
            )
        console.print(table)
        what = "Dice between the model's predictions" if basis == "disagreement" else "probability of its voxels"
        console.print(f"uncertainty of a structure: 1 - mean {what}; of a case: the mean", markup=False)
        if basis == "confidence":
            text = "ranked by the confidence of the run; with --scans FOLDER the model looks at the scans again"
            console.print(text, markup=False)
    for case in failed:
        console.print(f"failed   {one_line(case.name, 200)}: {case.code}: {case.message}", markup=False)


@contextmanager
def _progress(is_quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with the number of scans and the time left on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("looking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=is_quiet) as bar:
        task = bar.add_task("looking", total=None)
        yield lambda stage, done, total: bar.update(task, completed=done, total=total)
