"""`napari-seg accept`: put scans with their corrected labels into a training set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode, exit_code, with_code
from napari_seg.cli.read_options import add_read_options, read_options
from napari_seg.cli.values import named_value

if TYPE_CHECKING:
    from napari_seg.learning.accept_files import AcceptedFile, AcceptOptions, CorrectedLabels
    from napari_seg.learning.training_set import AcceptedCase, TrainingSet

_MAX_NAME = 200
_MAX_LISTED = 8


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "accept",
        help="put scans with their corrected labels into a training set",
        description="Puts scans and their corrected labels into a folder that napari-seg train and napari-seg improve "
        "read, with a record of who accepted them and from which model they come. Of a folder of results, each one "
        "that was corrected is accepted with its scan; one that fails does not stop the others. A DICOM series stays "
        "where it is; the voxels of other scans are copied. Cases are numbered, and no names of files or patients are "
        "written. A scan that was accepted before gets other labels with --replace.",
        epilog="Examples: napari-seg accept results/head_seg.nii.gz head.nii.gz --into accepted --reader Ada; "
        "napari-seg accept corrected scans --before results --into accepted. Exit status: 0 if all were accepted, "
        "unchanged or left out, 3 if some failed, 4 if all failed, 2 if there is nothing to accept.",
    )
    parser.add_argument(
        "labels",
        type=Path,
        nargs="*",
        help="corrected labels (NIfTI, NRRD, DICOM SEG or RTSTRUCT), several of them, a folder of them, or a folder "
        "with a mask for each structure of SCAN",
    )
    parser.add_argument(
        "scan",
        type=Path,
        nargs="?",
        help="scan that they belong to: a file, or the folder of a DICOM series; for several labels the folder of all "
        "scans, in which each one is found by the record of the result, or by its name",
    )
    parser.add_argument("--into", type=Path, required=True, metavar="SET", help="folder of the training set")
    parser.add_argument("--reader", default="", metavar="NAME", help="name of the person who accepts them")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="LABELS",
        help="the labels as the model made them, or the folder of the results, in which they have the same names: the "
        "record says then what was changed",
    )
    parser.add_argument(
        "--checked",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="structures that were checked; nothing is learned about others from this case; default: all of LABELS",
    )
    parser.add_argument(
        "--part",
        choices=("training", "validation"),
        help="what the case is for; validation compares models and is never trained on; default: validation for the "
        "second of each five patients",
    )
    parser.add_argument(
        "--patient",
        default="",
        metavar="ID",
        help="identifier of the patient of all LABELS, which is not written into the set; default: as the DICOM series "
        "state it, or the part of a file's name such as sub-01; other scans are of one patient each",
    )
    parser.add_argument(
        "--copy-series", action="store_true", help="copy the voxels of a DICOM series, so that the set can be moved"
    )
    parser.add_argument(
        "--names",
        action="extend",
        nargs="+",
        default=[],
        type=named_value,
        metavar="VALUE=NAME",
        help="names of the values, such as 1=liver, if the files do not hold them",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put the labels in place of those with which the scan was accepted before",
    )
    parser.add_argument(
        "--same-scan",
        action="store_true",
        help="the scan is the one that was segmented, although its files have changed since",
    )
    parser.add_argument(
        "--uncorrected",
        action="store_true",
        help="also accept the results of a folder that are as the model made them: you checked them, they are right",
    )
    parser.add_argument(
        "--discard", metavar="CASE", help="remove a case, such as case0007, from SET; what models have learned stays"
    )
    parser.add_argument(
        "--with-rounds",
        action="store_true",
        help="with --discard: also remove the lists and crops of the improvements that it was part of, which can't be "
        "resumed then",
    )
    parser.add_argument("--json", action="store_true", help="print objects instead of lines")
    add_read_options(parser)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.discard:
        if arguments.labels:
            parser.error("--discard takes no LABELS and no SCAN")
        return _discard(arguments)
    if len(arguments.labels) < 2:  # the last one is the scan
        parser.error("expected LABELS and SCAN, or --discard CASE")
    if arguments.with_rounds:
        parser.error("--with-rounds belongs to --discard CASE")
    *arguments.labels, arguments.scan = arguments.labels
    is_one = len(arguments.labels) == 1 and not arguments.labels[0].is_dir()
    if arguments.before and not is_one and not arguments.before.is_dir():
        parser.error("--before is a folder if there are several labels")
    return run(arguments)


def _discard(arguments: argparse.Namespace) -> int:
    from napari_seg.learning.accept import discard
    from napari_seg.learning.training_set import read_training_set

    discard(arguments.into, arguments.discard, with_rounds=arguments.with_rounds)
    left = len(read_training_set(arguments.into).cases)
    print(f"{arguments.discard}  discarded; {left} case{'s are' if left != 1 else ' is'} left")
    return ExitCode.DONE


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.learning.accept_files import AcceptOptions, find_corrected
    from napari_seg.learning.training_set import read_training_set
    from napari_seg.training.choices import distinct

    options = AcceptOptions(
        reader=arguments.reader,
        checked=arguments.checked,
        part=arguments.part,
        patient=arguments.patient,
        copy_series=arguments.copy_series,
        may_replace=arguments.replace,
        names=distinct(arguments.names, "--names"),
        is_same_scan=arguments.same_scan,
        with_uncorrected=arguments.uncorrected,
        reading=read_options(arguments),
    )
    found = find_corrected(arguments.labels, arguments.scan, options, arguments.before)
    earlier = read_training_set(arguments.into)
    results: list[AcceptedFile] = []
    try:
        for one in _accepted(found, options, arguments):
            results.append(one)
    except BaseException as error:
        if results:
            _print_ended(results, len(found) - len(results), earlier, arguments, error)
        raise
    content = read_training_set(arguments.into)
    if arguments.json:
        _print_json(results)
    elif found[0].is_alone:
        _print_case(results[0], content)
    else:
        _print_table(results)
    if not arguments.json:
        if arguments.before:
            _print_without_before([one for one in found if one.before is None and not one.is_scan])
        _print_moved(earlier, content)
    return exit_code(sum(one.state == "failed" for one in results), len(results))


def _accepted(
    found: Sequence[CorrectedLabels], options: AcceptOptions, arguments: argparse.Namespace
) -> Iterator[AcceptedFile]:
    from rich.console import Console
    from rich.progress import Progress

    from napari_seg.learning.accept_files import accept_file, accept_or_fault

    if found[0].is_alone:
        yield accept_file(found[0], arguments.into, options)
        return
    quiet = arguments.json or not sys.stderr.isatty()
    with Progress(console=Console(file=sys.stderr), transient=True, disable=quiet) as bar:
        for one in bar.track(found, description="accepting"):
            yield accept_or_fault(one, arguments.into, options)


def _print_ended(
    results: Sequence[AcceptedFile],
    left: int,
    earlier: TrainingSet,
    arguments: argparse.Namespace,
    ended: BaseException,
) -> None:
    """Print what was accepted before an error, or before the person stopped the command.

    Args:
        results: results of the label maps until then.
        left: number of the others.
        earlier: content of the training set before.
        arguments: arguments of the command.
        ended: why it ended; its code is the last entry of JSON output.
    """
    from napari_seg.errors import NapariSegError
    from napari_seg.learning.accept_files import AcceptedFile
    from napari_seg.learning.training_set import read_training_set

    text = f"{'1 label map was' if left == 1 else f'{left} label maps were'} not finished"
    if arguments.json:
        fault = f"{type(ended).__name__}; please report it"
        error = with_code(ended) or NapariSegError("internal.error", fault)
        _print_json([*results, AcceptedFile("", "failed", code=error.code, message=f"{error.message}; {text}")])
        arguments.json = False  # `main` prints the error for a person and nothing else
        return
    _print_table(results)
    print(f"        {text}", flush=True)
    _print_moved(earlier, read_training_set(arguments.into))


def _print_json(results: Sequence[AcceptedFile]) -> None:
    print(json.dumps([_as_dict(one) for one in results], indent=2), flush=True)


def _print_case(result: AcceptedFile, content: TrainingSet) -> None:
    case = result.case
    assert case is not None
    times = "with the same labels before" if result.state == "unchanged" else f"for the {_ordinal(case.revision)} time"
    print(f"{case.name}  {case.part}, {case.patient}, accepted {times}")
    if result.state == "unchanged":
        return
    if others := sum(one.patient == case.patient for one in content.cases) - 1:
        print(f"        of the same patient as {others} other cases; if they are of others, name each with --patient")
    for name, change in case.provenance.changes.items():
        added = "" if change.added is None else f", {change.added} voxels added, {change.removed} removed"
        print(f"        {name}: {change.ml:.2f} ml{added}")


def _print_without_before(found: Sequence[CorrectedLabels]) -> None:
    if found:
        text = f"{_listed([one.name for one in found])}: found no labels of the same name in the folder of --before"
        print(f"        {text}; the record does not say what was changed")


def _listed(names: Sequence[str]) -> str:
    from napari_seg.errors import listed, one_line

    return listed([one_line(name, _MAX_NAME) for name in names], _MAX_LISTED)


def _print_moved(earlier: TrainingSet, content: TrainingSet) -> None:
    from napari_seg.learning.training_set import moved_to_training

    if moved := moved_to_training(earlier, content):
        print(f"        {', '.join(moved)}: now for training, because scans of the same patient are trained on")


def _print_table(results: Sequence[AcceptedFile]) -> None:
    """Print a table of the accepted cases, a line for each one that failed, and the numbers of all."""
    from rich.markup import escape
    from rich.table import Table

    from napari_seg.cli.progress import Output
    from napari_seg.errors import one_line

    console = Output()
    table = Table("labels", "case", "part", "state", "voxels changed")
    table.columns[0].overflow = "fold"  # names of cases often differ only at their end
    for one in results:
        if (case := one.case) is not None:
            is_again = case.revision > 1 and one.state == "accepted"
            changes = _changes(case) if one.state == "accepted" else ""
            state = "accepted again" if is_again else one.state
            table.add_row(escape(one_line(one.name, _MAX_NAME)), case.name, case.part, state, changes)
    if table.row_count:
        console.print(table)
    for one in results:
        if one.state == "failed":
            console.print(f"failed   {one_line(one.name, _MAX_NAME)}: {one.code}: {one.message}", markup=False)
    counts = {state: sum(one.state == state for one in results) for state in ("accepted", "unchanged", "failed")}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()), markup=False)
    patients = len({one.case.patient for one in results if one.case is not None})
    unknown = sum(one.state == "accepted" and one.case is not None and not one.case.who for one in results)
    if unknown > 1:
        text = (
            f"{patients} patients: {unknown} cases name none and count as one patient each; if some are of one patient"
        )
        console.print(f"{text}, accept them together with --patient, or both parts may share patients", markup=False)
    if scans := [one.name for one in results if one.state == "left out" and one.message]:
        text = "lie among the scans, are taken for scans without labels, and were left out"
        console.print(f"{_listed(scans)}: {text}", markup=False)
    if left_out := sum(one.state == "left out" and not one.message for one in results):
        are = "result is" if left_out == 1 else "results are"
        text = f"{left_out} {are} as the model made them and left out; --uncorrected accepts them, too"
        console.print(text, markup=False)


def _changes(case: AcceptedCase) -> str:
    """Return how many voxels were added and removed in all structures; "" if the labels before are unknown."""
    changes = [one for one in case.provenance.changes.values() if one.added is not None]
    return f"+{sum(one.added or 0 for one in changes)} -{sum(one.removed or 0 for one in changes)}" if changes else ""


def _as_dict(one: AcceptedFile) -> dict[str, object]:
    case = one.case
    return {
        "labels": one.name,
        "state": one.state,
        "case": None if case is None else case.name,
        "part": None if case is None else case.part,
        "patient": None if case is None else case.patient,
        "revision": None if case is None else case.revision,
        "changes": {} if case is None else {name: asdict(change) for name, change in case.provenance.changes.items()},
        "code": one.code,
        "message": one.message,
    }


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
