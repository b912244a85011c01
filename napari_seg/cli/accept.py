"""`napari-seg accept`: put a scan with its corrected labels into a training set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.read_options import add_read_options, read_options
from napari_seg.cli.train import named_value

if TYPE_CHECKING:
    from napari_seg.formats.scan import Scan
    from napari_seg.volume import Segmentation


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "accept",
        help="put a scan with its corrected labels into a training set",
        description="Puts a scan and its corrected labels into a folder that napari-seg train and napari-seg improve "
        "read, with a record of who accepted them and from which model they come. A DICOM series stays where it is; "
        "the voxels of other scans are copied. Cases are numbered, and no names of files or patients are written. A "
        "scan that was accepted before gets the new labels with --replace.",
        epilog="Example: napari-seg accept results/head_seg.nii.gz head.nii.gz --into corrected --reader Ada",
    )
    parser.add_argument("labels", type=Path, nargs="?", help="corrected labels: NIfTI, NRRD, DICOM SEG or RTSTRUCT")
    parser.add_argument(
        "scan", type=Path, nargs="?", help="scan that they belong to: a file, or the folder of a DICOM series"
    )
    parser.add_argument("--into", type=Path, required=True, metavar="SET", help="folder of the training set")
    parser.add_argument("--reader", default="", metavar="NAME", help="name of the person who accepts them")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="LABELS",
        help="the labels as the model made them: the record says then what was changed",
    )
    parser.add_argument(
        "--checked",
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
        "--patient", default="", metavar="ID", help="identifier of the patient, which is not written into the set"
    )
    parser.add_argument(
        "--copy-series", action="store_true", help="copy the voxels of a DICOM series, so that the set can be moved"
    )
    parser.add_argument(
        "--names",
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
        "--discard", metavar="CASE", help="remove a case, such as case0007, from SET; what models have learned stays"
    )
    parser.add_argument(
        "--with-rounds",
        action="store_true",
        help="with --discard: also remove the lists and crops of the improvements that it was part of, which can't be "
        "resumed then",
    )
    add_read_options(parser)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.discard:
        if arguments.labels:
            parser.error("--discard takes no LABELS and no SCAN")
        return _discard(arguments)
    if not arguments.scan:
        parser.error("expected LABELS and SCAN, or --discard CASE")
    if arguments.with_rounds:
        parser.error("--with-rounds belongs to --discard CASE")
    return run(arguments)


def _discard(arguments: argparse.Namespace) -> int:
    from napari_seg.learning.accept import discard
    from napari_seg.learning.training_set import read_training_set

    discard(arguments.into, arguments.discard, with_rounds=arguments.with_rounds)
    left = len(read_training_set(arguments.into).cases)
    print(f"{arguments.discard}  discarded; {left} case{'s are' if left != 1 else ' is'} left")
    return ExitCode.DONE


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import InputError
    from napari_seg.formats.find import find_scans
    from napari_seg.formats.label_maps import on_grid, read_label_map, with_all_segments_named
    from napari_seg.formats.record import UNKNOWN, made_by_in
    from napari_seg.learning.accept import accept
    from napari_seg.learning.training_set import Provenance, moved_to_training, read_training_set
    from napari_seg.training.choices import distinct

    for path in (arguments.labels, arguments.scan, *([arguments.before] if arguments.before else [])):
        if not path.exists():
            raise InputError("input.missing", f"{path} does not exist; check the path")
    scans = find_scans(arguments.scan)
    if len(scans) != 1:
        raise InputError(
            "input.several_scans" if scans else "input.none",
            f"found {len(scans)} scans in {arguments.scan}; expected one: the scan that was segmented",
        )
    if not arguments.same_scan:
        for path in filter(None, (arguments.labels, arguments.before)):
            _check_scan(path, scans[0])
    scan = scans[0].read(**read_options(arguments))
    images = scan.source.files if scan.source.format == "dicom" else ()

    def read(path: Path) -> Segmentation:
        found = with_all_segments_named(read_label_map(path, scan.grid, images=images))
        return on_grid(_named(found, names), scan.grid, path)

    names = distinct(arguments.names, "--names")
    earlier = read_training_set(arguments.into)
    made_by = made_by_in(arguments.before or arguments.labels)
    case = accept(
        read(arguments.labels),
        scan,
        arguments.into,
        Provenance(arguments.reader, model=None if made_by == UNKNOWN else made_by),
        before=read(arguments.before) if arguments.before else None,
        annotated=arguments.checked,
        part=arguments.part,
        patient=arguments.patient,
        copy_series=arguments.copy_series,
        may_replace=arguments.replace,
    )
    content = read_training_set(arguments.into)
    print(f"{case.name}  {case.part}, {case.patient}, accepted for the {_ordinal(case.revision)} time")
    if moved := moved_to_training(earlier, content):
        print(f"        {', '.join(moved)}: now for training, because scans of the same patient are trained on")
    if others := sum(one.patient == case.patient for one in content.cases) - 1:
        print(f"        of the same patient as {others} other cases; if they are of others, name each with --patient")
    for name, change in case.provenance.changes.items():
        added = "" if change.added is None else f", {change.added} voxels added, {change.removed} removed"
        print(f"        {name}: {change.ml:.2f} ml{added}")
    return ExitCode.DONE


def _check_scan(labels: Path, scan: Scan) -> None:
    """Refuse labels whose record says that they were made from other files.

    Raises:
        InputError: `accept.other_scan`.
    """
    from napari_seg.cohort.outputs import sha256_of
    from napari_seg.errors import InputError
    from napari_seg.formats.record import read_record, record_path

    stated = (read_record(record_path(labels)) or {}).get("input_sha256")
    if stated and stated != sha256_of(scan.files):
        text = f"{labels.name} was made from other files than {scan.files[0].name}"
        raise InputError(
            "accept.other_scan", f"{text}; expected the scan that was segmented; if it is that scan, pass --same-scan"
        )


def _named(segmentation: Segmentation, names: Mapping[str, str]) -> Segmentation:
    """Return labels with the names of the command line.

    Raises:
        InputError: `labels.unknown`, there is no such value.
    """
    from napari_seg.errors import InputError

    known = {str(one.label) for one in segmentation.segments}
    if unknown := [value for value in names if value not in known]:
        text = f"found no value {', '.join(unknown)} to name; expected {', '.join(sorted(known, key=int))}"
        raise InputError("labels.unknown", f"{text}; check --names")
    segments = tuple(replace(one, name=names.get(str(one.label), one.name)) for one in segmentation.segments)
    return replace(segmentation, segments=segments)


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
