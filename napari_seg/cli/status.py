"""`napari-seg status`: the state of a run, from any terminal, while it goes on or after."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode, exit_code

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

    from napari_seg.cohort.status import RunnerStatus, RunStatus

_SECONDS = 2.0
"""Time between two readings of --watch."""

_MAX_RUNNING = 16


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "status",
        help="show how far a run of predict is, who runs it, and what failed",
        description="Reads the manifest in the output folder of 'napari-seg predict', while the run goes on or after, "
        "also from another machine. Nothing is written.",
        epilog="Exit status: 0 if the run goes on or is finished and nothing failed, 3 if some cases failed or were "
        "left, 4 if all failed, 2 if the folder has no run.",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="output folder of the run")
    parser.add_argument(
        "--watch", action="store_true", help=f"show the state again every {_SECONDS:g} seconds, until the run ends"
    )
    parser.add_argument("--json", action="store_true", help="print an object; with --watch, one on each line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.cli.progress import Output
    from napari_seg.cohort.report.write import REPORT
    from napari_seg.cohort.status import read_status

    status = read_status(arguments.output)
    if arguments.json:
        while True:
            print(json.dumps(status.as_dict(), indent=None if arguments.watch else 2), flush=True)
            if not arguments.watch or status.state != "running":
                return _exit_code(status)
            time.sleep(_SECONDS)
            status = read_status(arguments.output)
    console = Output()
    if arguments.watch and status.state == "running":
        status = _watch(arguments.output, status, console)
    console.print(describe(status, console))
    if status.state != "running" and (arguments.output / REPORT).is_file():
        console.print(_line("report", str(arguments.output / REPORT)))
    return _exit_code(status)


def _watch(output: Path, status: RunStatus, console: Console) -> RunStatus:
    """Show the state until the run ends, and return the last one; elsewhere than on a terminal, wait for the end."""
    from rich.live import Live

    from napari_seg.cohort.status import read_status

    is_live = sys.stdout.isatty()
    # Ctrl-C ends the watching only
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, transient=True, auto_refresh=False) if is_live else nullcontext() as live,
    ):
        while status.state == "running":
            if live is not None:
                live.update(describe(status, console), refresh=True)
            time.sleep(_SECONDS)
            status = read_status(output)
    return status


def describe(status: RunStatus, console: Console) -> Group:
    """Return the state as lines of text below a bar."""
    from rich.console import Group
    from rich.text import Text

    from napari_seg.cli.cohort_view import BarMarks, progress_bar
    from napari_seg.errors import one_line
    from napari_seg.progress import describe_seconds

    counts, failed = status.counts, status.counts["failed"]
    ended = status.total - status.left
    bar = progress_bar((ended - failed, failed, status.left), min(console.width - 9, 60), BarMarks(console))
    facts = [f"{counts['done']} of {status.total} done"]
    facts += [f"{counts[name]} {name}" for name in ("failed", "skipped") if counts[name]]
    facts += [f"{counts['waiting']} waiting"] if counts["waiting"] else []
    pace = [] if status.per_minute is None else [f"{status.per_minute:.3g} cases a minute"]
    pace += [] if status.seconds_left is None else [f"about {describe_seconds(round(status.seconds_left))} left"]
    lines = [Text.assemble((f"{status.state:<9}", "bold"), bar), _line("cases", ", ".join(facts))]
    lines += [_line("rate", ", ".join(pace))] if pace else []
    lines += [_line("runner", _describe_runner(one, status.read_at)) for one in status.runners]
    for row in status.running[:_MAX_RUNNING]:
        seconds = describe_seconds(max(status.read_at - (row.started or status.read_at), 0))
        again = f", attempt {row.attempts}" if row.attempts > 1 else ""
        # a case without a stage was read ahead, so that no worker has to wait for it
        stage = one_line(row.stage, 40) or ("waits for a free worker" if row.state == "running" else row.state)
        lines.append(_line("case", f"{one_line(row.name, 200)}: {stage}, {seconds}{again}"))
    if len(status.running) > _MAX_RUNNING:
        lines.append(_line("", f"and {len(status.running) - _MAX_RUNNING} more"))
    lines += [
        _line("failed", f"{one_line(row.name, 200)}: {row.code}: {one_line(row.message, 300)}", "red")
        for row in status.failures
    ]
    if failed > len(status.failures):
        lines.append(_line("", f"and {failed - len(status.failures)} earlier failures; see the report"))
    return Group(*lines)


def _line(head: str, text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(f"{head:<9}{text}", style)


def _describe_runner(one: RunnerStatus, now: float) -> str:
    from napari_seg.errors import one_line
    from napari_seg.progress import describe_seconds

    row = one.row
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started))
    who = f"process {row.pid} on {one_line(row.host, 80)}, napari-seg {one_line(row.version, 40)}, since {since}"
    if one.is_alive:
        return f"{who} ({describe_seconds(max(now - row.started, 0))})"
    if row.ended is not None:
        return f"{who}, ended {time.strftime('%Y-%m-%d %H:%M', time.localtime(row.ended))}"
    silent = "" if one.silent_seconds is None else f" for {describe_seconds(one.silent_seconds)}"
    return f"{who}, not running any more: no sign of life{silent}; the same predict command resumes the run"


def _exit_code(status: RunStatus) -> ExitCode:
    failed = status.counts["failed"]
    if not failed and status.state == "stopped":
        return ExitCode.SOME_FAILED
    return exit_code(failed, status.total - status.counts["skipped"])
