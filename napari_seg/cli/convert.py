"""`napari-seg convert`: segmentations from one format to another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from napari_seg.cli.reading import add_reading, reading


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a segmentation into another format: NIfTI, DICOM SEG or RTSTRUCT, .seg.nrrd, STL, OBJ, CSV",
        description="Reads a segmentation (NIfTI, NRRD, DICOM SEG, RTSTRUCT) and writes it in the format that the "
        "ending of OUTPUT names: .nii.gz, .seg.nrrd (3D Slicer), .dcm, .stl or .obj (one file a segment), .csv or "
        ".json (volumes). Labels and contours are read back and compared before the file gets its name.",
        epilog="Example: napari-seg convert head_seg.nii.gz head_seg.dcm --scan study/head",
    )
    parser.add_argument("input", type=Path, help="the segmentation")
    parser.add_argument("output", type=Path, help="the file to write; its ending names the format")
    parser.add_argument(
        "--scan",
        type=Path,
        help="the scan it belongs to: the DICOM series that a .dcm refers to, or the grid that contours are filled on",
    )
    parser.add_argument(
        "--dicom",
        choices=["seg", "labelmap", "rtstruct"],
        default="seg",
        help="what a .dcm becomes: a binary segmentation, which most programs read; a label map segmentation, new in "
        "2024; or contours; default seg",
    )
    parser.add_argument(
        "--segments", nargs="+", default=[], metavar="NAME", help="the segments wanted; all if left out"
    )
    parser.add_argument(
        "--ignore-frame-of-reference",
        action="store_true",
        help="take a DICOM segmentation or contours for the scan's although their identifiers say that they are of "
        "another one, as after a de-identification that replaced them; a warning says so",
    )
    add_reading(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import InputError, OutputError
    from napari_seg.formats import find_scans, has_ending
    from napari_seg.formats.dicom.reference import OTHER_FRAME
    from napari_seg.formats.label_maps import named, on_grid, read_label_map, write_label_map
    from napari_seg.formats.surface import SURFACE_ENDINGS
    from napari_seg.volume import NO_SOURCE

    if not arguments.input.exists():
        raise InputError("input.missing", f"{arguments.input} does not exist; check the path")
    output = arguments.output
    there = [output] if output.exists() else []
    if has_ending(output, SURFACE_ENDINGS):  # one file a segment
        there += output.parent.glob(f"{output.stem}_*{output.suffix}")
    if there and not arguments.overwrite:
        raise OutputError("output.exists", f"{there[0]} is there already; name another, or pass --overwrite")
    scan = None
    if arguments.scan is not None:
        scans = find_scans(arguments.scan)
        if len(scans) != 1:
            raise InputError(
                "input.several_scans" if scans else "input.none",
                f"found {len(scans)} scans in {arguments.scan}; expected the one that the segmentation belongs to",
            )
        scan = scans[0].read(**reading(arguments))
    source = NO_SOURCE if scan is None else scan.source
    try:
        found = read_label_map(
            arguments.input,
            None if scan is None else scan.grid,
            arguments.segments,
            images=source.files if source.format == "dicom" else (),
            ignore_frame=arguments.ignore_frame_of_reference,
        )
    except InputError as error:
        if error.code == OTHER_FRAME:
            text = "or pass --ignore-frame-of-reference if only its identifiers are wrong"
            raise InputError(error.code, f"{error.message}, {text}") from None
        raise
    if scan is not None:
        found = on_grid(found, scan.grid, arguments.input)
    for notice in found.notices:
        print(f"napari-seg: {notice}", file=sys.stderr)
    for path in write_label_map(named(found), output, scan=source, dicom=arguments.dicom):
        print(path)
    return 0
