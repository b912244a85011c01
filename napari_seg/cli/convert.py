"""`napari-seg convert`: convert a segmentation to another format."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from glob import escape
from pathlib import Path

from napari_seg.cli.read_options import add_read_options, read_options
from napari_seg.formats.kinds import DICOM_FORMATS


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a segmentation: NIfTI, DICOM SEG or RTSTRUCT, .seg.nrrd, STL, OBJ, CSV",
        description="Reads a segmentation (NIfTI, NRRD, DICOM SEG, RTSTRUCT) and writes it in the format given by the "
        "ending of OUTPUT: .nii.gz, .seg.nrrd (3D Slicer), .dcm, .stl or .obj (one file per structure), .csv or .json "
        "(volumes). Label maps and contours are written to a temporary file, read back and compared, then renamed.",
        epilog="Example: napari-seg convert head_seg.nii.gz head_seg.dcm --scan study/head",
    )
    parser.add_argument("input", type=Path, help="segmentation to convert, or a folder with a mask for each structure")
    parser.add_argument("output", type=Path, help="file to write; its ending selects the format")
    parser.add_argument(
        "--scan",
        type=Path,
        help="scan that was segmented: the DICOM series that a .dcm refers to, or the grid on which contours are "
        "rasterised",
    )
    parser.add_argument(
        "--dicom",
        choices=DICOM_FORMATS,
        default="seg",
        help="DICOM object to write: a binary segmentation, which most programs read; a label map segmentation (in the "
        "standard since 2024); or contours; default seg",
    )
    parser.add_argument(
        "--segments",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the structures to convert, in any case; default: all",
    )
    parser.add_argument(
        "--ignore-frame-of-reference",
        action="store_true",
        help="accept a segmentation whose frame of reference differs from the scan's, for example after "
        "de-identification; a warning is printed",
    )
    parser.add_argument(
        "--origin",
        choices=("manual", "semiautomatic", "automatic"),
        help="who made the segments, for a .dcm: a person, a person with a program, or a program; default: as the "
        "input states it, itself or in its record",
    )
    add_read_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import InputError, OutputError
    from napari_seg.formats.dicom.reference import OTHER_FRAME
    from napari_seg.formats.endings import SURFACE_ENDINGS, has_ending, nifti_ending
    from napari_seg.formats.find import find_scans
    from napari_seg.formats.kinds import format_of, write_label_map
    from napari_seg.formats.label_maps import (
        on_grid,
        read_label_map,
        with_all_segments_named,
        with_name_of_mask,
    )
    from napari_seg.formats.origin import origin_of, record_entries, sha256_of_file
    from napari_seg.formats.record import converted_record, new_record
    from napari_seg.volume import NO_SOURCE, LabelOrigin

    if not arguments.input.exists():
        raise InputError("input.missing", f"{arguments.input} does not exist; check the path")
    output = arguments.output
    existing = [output] if output.exists() else []
    if has_ending(output, SURFACE_ENDINGS):  # one file per segment
        existing += output.parent.glob(f"{escape(output.stem)}_*{output.suffix}")
    if existing and not arguments.overwrite:
        raise OutputError("output.exists", f"{existing[0]} already exists; choose another name, or pass --overwrite")
    format_of(output, arguments.dicom)
    if not output.parent.is_dir():
        why = "is a file; move it" if output.parent.exists() else "does not exist; create it"
        raise OutputError("output.no_folder", f"{output.parent} {why}, or choose another folder")
    scan = None
    if arguments.scan is not None:
        scans = find_scans(arguments.scan)
        if len(scans) != 1:
            raise InputError(
                "input.several_scans" if scans else "input.none",
                f"found {len(scans)} scans in {arguments.scan}; expected one: the scan that was segmented",
            )
        scan = scans[0].read(**read_options(arguments))
    source = NO_SOURCE if scan is None else scan.source
    try:
        segmentation = read_label_map(
            arguments.input,
            None if scan is None else scan.grid,
            arguments.segments,
            images=source.files if source.format == "dicom" else (),
            ignore_frame=arguments.ignore_frame_of_reference,
        )
    except InputError as error:
        if error.code == OTHER_FRAME:
            text = "if the segmentation belongs to this scan and only its identifiers differ"
            message = f"{error.message}, or pass --ignore-frame-of-reference {text}"
            raise InputError(error.code, message) from None
        raise
    if scan is not None:
        segmentation = on_grid(segmentation, scan.grid, arguments.input)
    for notice in segmentation.notices:
        print(f"napari-seg: {notice}", file=sys.stderr)
    named = with_all_segments_named(with_name_of_mask(segmentation, arguments.input))
    made_by = origin_of(arguments.input, arguments.segments and [one.name for one in segmentation.segments])
    if arguments.origin:
        by_hand = arguments.origin == "manual"
        made_by = LabelOrigin("MANUAL") if by_hand else replace(made_by, origin=arguments.origin.upper())
    record = converted_record(named, arguments.input, record_entries(made_by))
    with new_record(output, record, original=arguments.input):
        written = write_label_map(named, output, scan=source, dicom=arguments.dicom, made_by=made_by)
        if nifti_ending(output) and made_by.origin == "AUTOMATIC" and not arguments.segments:
            record["sha256"] = sha256_of_file(written[0])
    for path in written:
        print(path)
    return 0
