"""Print what a run would do (`predict --dry-run`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.errors import counted, printable
from napari_seg.progress import describe_seconds

if TYPE_CHECKING:
    from napari_seg.cohort.plan import RunPlan
    from napari_seg.cohort.select import UnusedScan

MAX_ROWS = 200
"""Number of cases that the table lists; `--json` lists all."""


def print_plan(plan: RunPlan, output: Path, *, as_json: bool = False) -> None:
    """Print a plan as tables for people, or as one JSON object.

    Args:
        plan: the plan.
        output: the output folder.
        as_json: print JSON.
    """
    if as_json:
        print(json.dumps(plan.as_dict(), indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from napari_seg.cli.progress import Output

    console = Output()
    if plan.cases:
        table = Table(box=None, pad_edge=False)
        are_several = len({one.model for one in plan.cases}) > 1  # the summary names the only one
        for title in ("case", *["model"] * are_several, "voxels", "time", "result"):
            table.add_column(title, justify="right" if title in ("voxels", "time") else "left", overflow="fold")
        for one in plan.cases[:MAX_ROWS]:
            seconds = "done" if one.is_done else "" if one.seconds is None else describe_seconds(one.seconds)
            row = (one.case.key, *[one.model] * are_several, f"{one.voxels:,}", seconds, one.outputs[0])
            table.add_row(*(escape(_plain(cell)) for cell in row))
        console.print(table)
        if len(plan.cases) > MAX_ROWS:
            console.print(f"... and {len(plan.cases) - MAX_ROWS:,} more; --json lists all", markup=False)
    doubted = [(one.case.key, notice.code, notice.message) for one in plan.cases for notice in one.notices]
    lines = [
        *_lines("warn", doubted),
        *_lines("skip", _reasons(plan.skipped)),
        *_lines("refuse", _reasons(plan.refused)),
    ]
    for line in (*lines, *summary(plan, output)):
        console.print(line, markup=False)


def summary(plan: RunPlan, output: Path) -> Iterator[str]:
    """Yield lines with the totals of a plan."""
    left, done = plan.to_run, len(plan.cases) - len(plan.to_run)
    models = Counter(one.model for one in left)
    of_models = ", ".join(f"{count:,} with {name}" for name, count in models.items())
    files = sum(len(one.outputs) for one in left)
    yield f"{len(left):,} to run ({of_models or 'none'}), {done:,} done before, {len(plan.skipped):,} skipped, " + (
        f"{len(plan.refused):,} refused"
    )
    if plan.repeated:
        yield f"{plan.repeated:,} found twice, and run once"
    if plan.other_files:
        kinds = ", ".join(f"{count:,} {code}" for code, count in plan.other_files.items())
        number = sum(plan.other_files.values())
        are = "is no scan" if number == 1 else "are no scans"
        yield f"{counted(number, 'file')} {are} ({kinds}); 'napari-seg inspect' says why"
    yield from superseded(plan.results_left_out, plan.results_renamed, will_be=True)
    if left:
        yield f"{counted(files, 'file')} in {printable(str(output))}, for {plan.voxels:,} voxels"
    yield from plan.doubts
    if left and plan.seconds is not None and plan.windows is not None:
        yield (
            f"about {describe_seconds(plan.seconds)} on this machine, in {counted(plan.windows, 'window')}: an "
            f"estimate from {counted(plan.examples, 'scan')}, one case after the other, without reading and writing"
        )


def superseded(left_out: int, renamed: int, *, will_be: bool = False) -> Iterator[str]:
    """Yield lines on earlier results that count no longer.

    Args:
        left_out: number of results of scans that a run leaves out or refuses.
        renamed: number of results whose scans have other names in the run.
        will_be: whether the run comes later.
    """
    for count, reason in (
        (left_out, "this run leaves out or refuses the scans; the files stay, and count again in a run that has them"),
        (renamed, "this run has the scans under other names (cohort.renamed); the files stay"),
    ):
        are = "will be" if will_be else "is" if count == 1 else "are"
        if count:
            yield f"{counted(count, 'earlier result')} {are} in no table: {reason}"


def _reasons(scans: Sequence[UnusedScan]) -> list[tuple[str, str, str]]:
    return [(one.key, one.code, one.message) for one in scans]


def _lines(verb: str, scans: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield a line for each scan of which name, code and message are given, and a summary if they are many."""
    for key, code, message in scans[:MAX_ROWS]:
        yield _plain(f"{verb:8} {key}  {code}: {message}")
    if len(scans) > MAX_ROWS:
        codes = ", ".join(f"{count:,} {code}" for code, count in Counter(code for _, code, _ in scans).items())
        yield f"{verb:8} ... {len(scans):,} in all: {codes}"


def _plain(text: str) -> str:
    return printable(text).replace("\n", "_")
