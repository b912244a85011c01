"""Command-line arguments shared by all commands that read scans."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from napari_seg.cli.values import whole_number

if TYPE_CHECKING:
    from napari_seg.formats.scan import ReadOptions


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--volume",
        type=whole_number,
        metavar="N",
        help="index of the volume to read from 4D scans, or of the page of 2D images, from 0",
    )
    parser.add_argument(
        "--resample-tilt",
        action="store_true",
        help="resample the slices of a tilted gantry onto a rectangular grid, which NIfTI results use too; in a DICOM "
        "segmentation the labels are resampled back onto the slices. Without this option such scans are refused",
    )


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """Return the keyword arguments of `Scan.read`."""
    return {"volume": arguments.volume, "resample_tilt": arguments.resample_tilt}
