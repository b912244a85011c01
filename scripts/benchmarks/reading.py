"""Reading a long CT series, beside the readers that others use."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measuring import Contender, compare, machine, spread, take_turns
from benchmarks.report import describe_machine, describe_spread, paragraph, table

SHAPE = (512, 512, 400)

READERS = {"napari-seg": "read_ours", "SimpleITK": "read_simpleitk", "pydicom": "read_pydicom"}
"""By name the function of this module that reads a folder."""


def reading(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of each reader, taking turns; files are in the system's cache, since a round before does not count."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    series = make_series(folder / "series_{}x{}x{}".format(*args.shape), args.shape)
    contenders = [
        Contender(name, serve, function, series, log=folder / f"reading_{name}.txt")
        for name, function in READERS.items()
    ]
    try:
        taken = take_turns(contenders, args.rounds + 1, 1)
    finally:
        for contender in contenders:
            contender.close()
    seconds = {name: [[step["read"] for step in turn] for turn in turns[1:]] for name, turns in taken.items()}
    rows = {
        name: {
            "seconds": spread([turn[0] for turn in turns]),
            "share_of_simpleitk": compare(turns, seconds["SimpleITK"]),
            "peak_gib": next(c.peak_bytes for c in contenders if c.name == name) / 2**30,
            "dtype": taken[name][-1][0]["dtype"],
        }
        for name, turns in seconds.items()
    }
    print(rows, file=sys.stderr)
    about = machine(["napari-seg", "SimpleITK", "pydicom", "numpy"])
    return {"machine": about, "shape": list(args.shape), "rounds": args.rounds, "readers": rows}


def make_series(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Uncompressed CT slices of noise, 0.8 x 0.8 x 1 mm, named against the order in which they lie."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    columns, rows, slices = shape
    if folder.is_dir() and len(list(folder.iterdir())) == slices:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    study, series, random = generate_uid(), generate_uid(), np.random.default_rng(0)
    for k in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, study
        image.Modality, image.SeriesDescription, image.InstanceNumber = "CT", "noise", k + 1
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [0.8, 0.8], 1
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelData = random.integers(0, 4096, (rows, columns), np.uint16).tobytes()
        image.save_as(folder / f"{slices - k:04d}.dcm", enforce_file_format=True)
    return folder


def serve(connection: Connection, function: str, series: Path) -> None:
    """Reads whenever it is asked to."""
    read: Callable[[Path], Any] = globals()[function]
    while True:
        answers = []
        for _ in range(connection.recv()):
            start = time.perf_counter()
            array = read(series)
            answers.append({"read": time.perf_counter() - start, "dtype": str(array.dtype)})
            del array
        connection.send(answers)


def read_ours(folder: Path) -> Any:
    """With everything that `napari_seg.read` checks; headers that it keeps from one time to the next are forgotten."""
    from napari_seg import read
    from napari_seg.formats.dicom import headers

    headers._read_header.cache_clear()
    return read(folder).array


def read_simpleitk(folder: Path) -> Any:
    """As SimpleITK's own example does."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def read_pydicom(folder: Path) -> Any:
    """The loop that most scripts have, in int16."""
    import numpy as np
    import pydicom

    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    slices.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    first = slices[0]
    return np.stack([image.pixel_array.astype(np.int16) for image in slices]) + np.int16(first.RescaleIntercept)


def describe_reading(figures: dict) -> str:
    """Return the section of benchmarks.md about reading."""
    lines = ["## Reading a series", ""]
    lines += paragraph(
        f"A CT series of {'×'.join(map(str, figures['shape']))} voxels, uncompressed, its files in the system's cache,",
        f"from the folder to an array; medians of {figures['rounds']} rounds with minimum and maximum. napari-seg",
        "finds the series, checks where every slice lies, and rescales; SimpleITK is `ImageSeriesReader` with",
        "`GetGDCMSeriesFileNames`, pydicom a loop over `dcmread`.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    rows = [
        [name, describe_spread(row["seconds"]), describe_spread(row["share_of_simpleitk"]), row["dtype"]]
        for name, row in figures["readers"].items()
    ]
    return "\n".join([*lines, *table(["reader", "s", "fraction of SimpleITK's time", "array"], rows), ""])
