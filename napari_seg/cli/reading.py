"""Arguments of all commands that read scans."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_seg.formats import Reading


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volume", type=int, metavar="N", help="which volume of 4D scans, counted from 0")
    parser.add_argument(
        "--resample-tilt",
        action="store_true",
        help="shift the slices of a tilted gantry onto a straight grid, where NIfTI results lie too; a DICOM "
        "segmentation gets the labels back on the slices themselves. Such scans are refused otherwise",
    )


def reading(arguments: argparse.Namespace) -> Reading:
    return {"volume": arguments.volume, "resample_tilt": arguments.resample_tilt}
