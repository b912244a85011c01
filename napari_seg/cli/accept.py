"""`napari-seg accept`: put a scan with its corrected labels into a training set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.read_options import add_read_options, read_options

if TYPE_CHECKING:
    from napari_seg.volume import Segmentation


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "accept",
        help="put a scan with its corrected labels into a training set",
        description="Puts a scan and its corrected labels into a folder that napari-seg train and napari-seg improve "
        "read, with a record of who accepted them and from which model they come. A DICOM series stays where it is; "
        "the voxels of other scans are copied. Cases are numbered, and no names of files or patients are written. A "
        "scan that was accepted before gets the new labels.",
        epilog="Example: napari-seg accept results/head_seg.nii.gz head.nii.gz --into corrected --reader Ada",
    )
    parser.add_argument("labels", type=Path, help="corrected labels: NIfTI, NRRD, DICOM SEG or RTSTRUCT")
    parser.add_argument("scan", type=Path, help="scan that they belong to: a file, or the folder of a DICOM series")
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
    add_read_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import InputError
    from napari_seg.formats.find import find_scans
    from napari_seg.formats.label_maps import on_grid, read_label_map, with_all_segments_named
    from napari_seg.formats.record import UNKNOWN, made_by_in
    from napari_seg.learning.accept import accept
    from napari_seg.learning.training_set import Provenance, read_training_set

    for path in (arguments.labels, arguments.scan, *([arguments.before] if arguments.before else [])):
        if not path.exists():
            raise InputError("input.missing", f"{path} does not exist; check the path")
    scans = find_scans(arguments.scan)
    if len(scans) != 1:
        raise InputError(
            "input.several_scans" if scans else "input.none",
            f"found {len(scans)} scans in {arguments.scan}; expected one: the scan that was segmented",
        )
    scan = scans[0].read(**read_options(arguments))
    images = scan.source.files if scan.source.format == "dicom" else ()

    def read(path: Path) -> Segmentation:
        found = with_all_segments_named(read_label_map(path, scan.grid, images=images))
        return on_grid(found, scan.grid, path)

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
    )
    print(f"{case.name}  {case.part}, {case.patient}, accepted for the {_ordinal(case.revision)} time")
    if others := sum(one.patient == case.patient for one in read_training_set(arguments.into).cases) - 1:
        print(f"        of the same patient as {others} other cases; if they are of others, name each with --patient")
    for name, change in case.provenance.changes.items():
        added = "" if change.added is None else f", {change.added} voxels added, {change.removed} removed"
        print(f"        {name}: {change.ml:.2f} ml{added}")
    return ExitCode.DONE


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
