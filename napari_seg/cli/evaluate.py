"""`napari-seg evaluate`: compare label maps with references."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import exit_code, exit_code_of
from napari_seg.cli.values import named_label, tolerance, whole_number

if TYPE_CHECKING:
    from napari_seg.errors import NapariSegError, Notice
    from napari_seg.evaluation.data_set import References
    from napari_seg.evaluation.pairs import CaseScores, Pair
    from napari_seg.evaluation.statistics import Difference, Summary
    from napari_seg.training.gather.combine import Part

_SHOWN = 10
"""Number of structures that only one side contains which are named."""
_LISTED = 3
"""Number of failed cases with messages of the same kind which are named."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare label maps with references: Dice, HD95, NSD and more for each structure",
        description="Compares label maps with references on the same grid. If the references are a data set that train "
        "reads, such as one in BIDS, each result belongs to the scan that it was made from. Two other folders are "
        "paired by file name (case_01_seg.nii.gz, case_01_0000_seg.nii.gz or case_01.nii.gz belongs to "
        "case_01.nii.gz), in the same folders below them too, as predict --layout mirror writes them. 2D images (PNG, "
        "TIFF) are compared likewise, with distances in pixels. A structure that neither label map contains is left "
        "out of the mean; one that only one contains counts as 0, and as the diagonal of the field of view for HD95. "
        "A file without a partner counts as failed.",
    )
    parser.add_argument("predictions", type=Path, help="a label map (NIfTI or 2D image), or a folder of label maps")
    parser.add_argument(
        "references", type=Path, help="the reference, a folder of references, or a data set: its folder, or its list"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="also write cases.csv, summary.json and report.html into this folder"
    )
    parser.add_argument(
        "--labels",
        action="extend",
        nargs="+",
        default=[],
        type=named_label,
        metavar="NAME=VALUE",
        help="meaning of the references' values, as for train: liver=1 tumour=2,3 vessel=10-19; in the order of the "
        "model's classes if its label maps have no names. Without it, structures are matched by the names in the files "
        "and in dataset.json, and by number only if either side has no names. Voxels of ignore=255 are not compared. "
        "Classes that share values (regions) are compared one by one",
    )
    parser.add_argument(
        "--ignore",
        action="extend",
        nargs="+",
        default=[],
        type=whole_number,
        metavar="VALUE",
        help="ignore labels of the references; their voxels are not compared. Ignore labels in a dataset.json and the "
        "void label 255 are found without this option",
    )
    parser.add_argument(
        "--part",
        choices=("training", "validation", "test"),
        help="compare only this part of a data set, as train splits it; references is the folder of the data set",
    )
    parser.add_argument(
        "--trained",
        type=Path,
        metavar="OUT",
        help="folder that train wrote: --part is that of this training, with its --layout, --labels, --set patient=... "
        "and so on",
    )
    parser.add_argument("--scans", type=Path, help="scans with the same names, for the figures of the report")
    parser.add_argument("--versus", type=Path, help="label maps of another model, compared case by case")
    parser.add_argument(
        "--tolerance-mm",
        type=tolerance,
        default=1.0,
        help="tolerance of the NSD in mm, or in pixels for 2D images (default: 1.0)",
    )
    parser.add_argument(
        "--ignore-frame-of-reference",
        action="store_true",
        help="compare DICOM segmentations and contours even if their frame of reference is that of another scan",
    )
    parser.add_argument("--no-figures", "--no-pictures", action="store_true", help="write the report without figures")
    parser.add_argument("--json", action="store_true", help="print objects instead of the table")
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import InputError, counted
    from napari_seg.evaluation.labels import read_classes, split_ignored
    from napari_seg.evaluation.pairs import describe_label_maps, find_pairs
    from napari_seg.evaluation.report import (
        check_replaceable,
        differences,
        summaries,
        summary,
        write_cases,
        write_report,
    )
    from napari_seg.formats.atomic import make_output_folder

    if arguments.trained and not arguments.part:
        arguments.refuse("found --trained without --part; expected a part of the data, such as --part validation")
    classes, ignored = split_ignored(read_classes(arguments.labels))
    references = arguments.references
    data, fault = _data_set(references, arguments.part, arguments.trained)
    options = {
        "ignore_frame": arguments.ignore_frame_of_reference,
        "ignored": (*arguments.ignore, *ignored),
        "data": data,
    }
    if arguments.versus and arguments.versus.exists() and references.exists() and arguments.versus.samefile(references):
        text = f"found {references} for --versus and as references; expected the results of another model"
        raise InputError("input.same_file", text)
    pairs, unpaired = find_pairs(arguments.predictions, references, arguments.scans, classes, **options)
    if not pairs:
        if fault:
            raise fault
        found = describe_label_maps(arguments.predictions)
        expected = "" if data else describe_label_maps(references)
        if not found or not (expected or data):
            text = f"found no NIfTI file or 2D image in {references if found else arguments.predictions}"
            raise InputError("input.none", f"{text}, or in folders below; expected label maps (NIfTI, PNG, TIFF)")
        if data:
            reason = unpaired[0].message if unpaired else "the others are of another part"
            raise InputError(
                "input.none",
                f"found {found}, and no result of {'a case' if not arguments.part else f'the {arguments.part} part'} "
                f"of {references}; for example, {reason}",
            )
        turned, _ = find_pairs(references, arguments.predictions)
        swapped = f"results are given first: if they are in {references}, swap the two; " if turned else ""
        masks = "; masks of single structures in a folder are compared with a file that names them, or with --labels "
        masks = f"{masks}NAME=VALUE" if arguments.predictions.is_file() != references.is_file() else ""
        raise InputError(
            "input.none",
            f"found {found}, and as references {expected}, none of the same name; {swapped}expected case.nii.gz, "
            "case_seg.nii.gz or case_0000_seg.nii.gz for case.nii.gz, in the same folders, or a_case_seg.nii.gz for "
            "a/case.nii.gz, or the folder of a data set that train reads, whose scans the results were made from; to "
            f"compare two files of other names, give the paths of both{masks}",
        )
    other_pairs: list[Pair] = []
    if arguments.versus:
        other_pairs, _ = find_pairs(arguments.versus, references, classes=classes, **options)
        if len(pairs) == len(other_pairs) == 1 and pairs[0].reference == other_pairs[0].reference:
            other_pairs = [replace(other_pairs[0], name=pairs[0].name)]  # three files have three names
        if not {pair.name for pair in pairs} & {pair.name for pair in other_pairs}:
            text = f"found no label map in {arguments.versus} for a case that is compared; expected the same names"
            raise InputError("input.none", f"{text} as in {arguments.predictions}")
    if arguments.output:  # before long work
        make_output_folder(arguments.output)
        check_replaceable(arguments.output)
    quiet = arguments.json or not sys.stderr.isatty()
    results = _compare(pairs, arguments.tolerance_mm, quiet) + unpaired
    faults: list[NapariSegError] = []  # what was compared is printed before the first one ends the command
    if arguments.output:
        with _kept_in(faults):
            write_cases(results, arguments.output)  # first, because a large comparison and its statistics take longer
    versus = None
    if arguments.versus:
        compared = {result.name for result in results if not result.code}
        count = len(compared & {pair.name for pair in other_pairs})
        if count < len(compared):
            text = f"{arguments.versus} has {count} of {counted(len(compared), 'case')}; the others are not compared"
            print(f"napari-seg: {text}", file=sys.stderr)
        others = _compare(other_pairs, arguments.tolerance_mm, quiet)
        for result in others:
            if result.code:
                text = f"{arguments.versus.name}/{result.name}: {result.code}: {result.message}"
                print(f"napari-seg: not in the comparison: {text}", file=sys.stderr)
        with _kept_in(faults):
            versus, notices = differences(results, others)
            for notice in notices:
                print(f"napari-seg: {notice}", file=sys.stderr)
    table = summaries(results)
    if not arguments.json:
        _print_tables(results, table, arguments.tolerance_mm, versus)
        for text in _notice_lines(results):
            print(f"napari-seg: {text}", file=sys.stderr)
    if arguments.output:
        with _kept_in(faults):
            write_report(
                results,
                arguments.output,
                arguments.tolerance_mm,
                figures=not arguments.no_figures,
                versus=versus,
                table=table,
            )
            if not arguments.json:
                print(f"report   {arguments.output / 'report.html'}")
    if arguments.json:
        facts = summary(results, arguments.tolerance_mm, versus, table)
        facts |= {"code": faults[0].code, "message": faults[0].message} if faults else {}
        print(json.dumps(facts | {"cases": [result.as_dict() for result in results]}, indent=2))
    if faults:
        print(f"napari-seg: {faults[0]}", file=sys.stderr)
        return exit_code_of(faults[0])
    return exit_code(sum(bool(result.code) for result in results), len(results))


def _data_set(path: Path, part: Part | None, trained: Path | None) -> tuple[References | None, NapariSegError | None]:
    """Return the data set at a path, or None and why it can't be read; without a part it may be other references."""
    from napari_seg.errors import TrainingError
    from napari_seg.evaluation.data_set import LISTS

    if part is None and not path.is_dir() and path.suffix.lower() not in LISTS:
        return None, None  # without a look at the training, which takes longer
    from napari_seg.training.part import found_data_set, part_of

    try:
        return found_data_set(path) if part is None else part_of(path, part, trained), None
    except TrainingError as error:
        fault = TrainingError(error.code, error.message.replace("with --labels-dir", "as the references"))
        if part is None and path.is_dir() and error.code == "dataset.no_cases":
            return None, fault  # folders of references that are named like those of a data set
        raise fault from error


@contextmanager
def _kept_in(faults: list[NapariSegError]) -> Iterator[None]:
    """Add an error to a list instead of raising it."""
    from napari_seg.errors import NapariSegError

    try:
        yield
    except NapariSegError as error:
        faults.append(error)


def _compare(pairs: Sequence[Pair], tolerance_mm: float, quiet: bool) -> list[CaseScores]:
    from rich.console import Console
    from rich.progress import track

    from napari_seg.evaluation.pairs import compare_pairs

    bar = track(pairs, "comparing", console=Console(file=sys.stderr), transient=True, disable=quiet)
    return compare_pairs(bar, tolerance_mm)


def _print_tables(
    results: Sequence[CaseScores],
    rows: Mapping[str, Mapping[str, Summary]],
    tolerance_mm: float,
    versus: Mapping[str, Mapping[str, Difference]] | None,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from napari_seg.cli.progress import Output, figure
    from napari_seg.errors import counted, listed
    from napari_seg.evaluation.labels import MEAN
    from napari_seg.evaluation.report import one_sided, unit, values
    from napari_seg.evaluation.statistics import worst

    console = Output()
    mm = unit(results)
    table = Table("structure", "cases", "Dice", "95 %", "median", f"HD95 {mm}", f"NSD {tolerance_mm:g} {mm}")
    absent = [name for name, row in rows.items() if name != MEAN and not row["dice"].count]
    for name, row in rows.items():
        dice = row["dice"]
        if name in absent:
            continue
        if name == MEAN:
            table.add_section()
        table.add_row(
            escape(name),
            str(dice.count),
            figure(dice.mean, ".4f"),
            "–" if isnan(dice.low) else f"{dice.low:.3f} to {dice.high:.3f}",
            figure(dice.median, ".4f"),
            figure(row["hd95_mm"].mean, ".2f"),
            figure(row["nsd"].mean, ".4f"),
        )
    if is_any := any(not result.code for result in results):
        console.print(table)
    if absent:
        console.print(f"absent   {_absent(absent)}", markup=False)
    for heading, side, cases in zip(("missed", "extra"), ("references", "results"), one_sided(results), strict=True):
        if cases:
            names = listed([f"{name} ({counted(count, 'case')})" for name, count in cases.items()], _SHOWN)
            text = f"{heading:<8} only in the {side}: {names}; Dice 0, and HD95 the diagonal of the field of view"
            console.print(text, markup=False)
    means = values(results, MEAN, "dice")
    if is_any:
        console.print("worst    " + ", ".join(f"{name} {means[name]:.4f}" for name in worst(means)), markup=False)
    if versus:
        console.print("versus   differences: these results minus the others")
    absent = [name for name, metrics in (versus or {}).items() if name != MEAN and not metrics["dice"].count]
    for name, metrics in (versus or {}).items():
        if name in absent:
            continue
        text = "; ".join(
            f"{metric} {figure(d.mean, '+.4f')}"
            + ("" if isnan(d.low) else f" ({d.low:+.4f} to {d.high:+.4f}, p {d.p:.2g})")
            for metric, d in metrics.items()
        )
        count, number = metrics["dice"].count, metrics["dice"].one_empty
        empty = f" ({number} where only one of the results contains it, wrongly)" if number else ""
        console.print(f"versus   {name}, {counted(count, 'case')}{empty}: {text}", markup=False)
    if absent:
        console.print(f"versus   {_absent(absent)}", markup=False)
    failed = _failed(results)
    for kind, message in failed:
        console.print(f"failed   {_cases(kind)}: {message}", markup=False)
    if any(len(kind) > _LISTED for kind, _ in failed):
        console.print("         --json, and cases.csv of -o, list each failed case", markup=False)


def _failed(results: Sequence[CaseScores]) -> list[tuple[list[str], str]]:
    """Return the names of the failed cases with the code and the message for each kind of message.

    That of several cases is an example.

    Messages of one kind differ in the name of the case or in numbers.
    """
    kinds: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        if result.code:
            names = "|".join(map(re.escape, (result.name, result.name.rpartition("/")[2])))
            text = re.sub(rf"(?<![^\W_])({names})(?![^\W_])", "", result.message)
            kinds.setdefault((result.code, re.sub(r"\d[\d.e+]*", "", text)), {})[result.name] = text
    messages = {result.name: result.message for result in results}
    lines = []
    for (code, _), texts in kinds.items():
        name = next(iter(texts))
        example = "for example " if len(texts) > 1 and texts[name] != messages[name] else ""
        others = " (others: other numbers)" if len({*texts.values()}) > 1 else ""
        lines.append(([*texts], f"{code}: {example}{messages[name]}{others}"))
    return lines


def _cases(names: Sequence[str]) -> str:
    """Return the first names, with their number if there are more."""
    from napari_seg.errors import counted, listed

    few = listed(names, _LISTED)
    return f"{counted(len(names), 'case')} ({few})" if len(names) > _LISTED else few


def _absent(names: Sequence[str]) -> str:
    """Return in words which structures occur nowhere."""
    subject = f"{len(names)} structures occur" if len(names) > 1 else f"{names[0]} occurs"
    return f"{subject} on neither side in any case"


def _notice_lines(results: Sequence[CaseScores]) -> list[str]:
    """Return one line for each notice code, with the number of further cases that have it."""
    by_code: dict[str, list[Notice]] = {}
    for result in results:
        for notice in result.notices:
            by_code.setdefault(notice.code, []).append(notice)
    return [f"{some[0]}{f' (and {len(some) - 1} more)' if len(some) > 1 else ''}" for some in by_code.values()]
