"""Siemens mosaics: slices at the right places, several volumes, and mosaics without a description."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.volume import Segment, Segmentation, Volume


def csa_header(slices: int | None, normal: np.ndarray | None) -> bytes:
    """The part of Siemens' private header (version 2) that describes a mosaic."""
    tags = []
    if slices is not None:
        tags.append(("NumberOfImagesInMosaic", b"US  ", [f"{slices}"]))
    if normal is not None:
        tags.append(("SliceNormalVector", b"FD  ", [f"{value:.8f}" for value in normal]))
    answer = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, kind, values in tags:
        answer += struct.pack("<64si4siii", name.encode(), len(values), kind, 0, len(values), 77)
        for value in values:
            text = value.encode() + b"\0" * (-len(value) % 4)
            answer += struct.pack("<4i", len(value), len(value), 77, len(value)) + text
    return answer


def write_mosaic(
    volume: Volume,
    path: Path,
    *,
    is_reversed: bool = False,
    number: int = 1,
    edit: Callable[[Dataset], None] = lambda dataset: None,
    csa: Callable[[int, np.ndarray], bytes | None] = csa_header,
) -> None:
    """A volume as one image of 4 x 4 tiles; reversed: the last slice first."""
    write_series(volume, path.parent, slices=[0], file_name=path.name)
    dataset = pydicom.dcmread(path)
    columns, rows, count = volume.grid.shape
    order = list(range(count))[:: -1 if is_reversed else 1]
    pixels = np.zeros((4 * rows, 4 * columns), np.int16)
    for n, k in enumerate(order):
        pixels[n // 4 * rows :, n % 4 * columns :][:rows, :columns] = volume.array[0, :, :, k].T
    to_lps = np.array([-1, -1, 1])
    # the mosaic's corner: the first slice, grown around its centre
    corner = volume.grid.to_world((-1.5 * columns, -1.5 * rows, order[0])) * to_lps
    normal = volume.grid.directions[:, 2] * to_lps * (-1 if is_reversed else 1)
    dataset.ImagePositionPatient = [round(float(value), 6) for value in corner]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.SpacingBetweenSlices, dataset.SliceThickness = volume.grid.spacing_mm[2], 1.0
    dataset.Rows, dataset.Columns, dataset.PixelData = *pixels.shape, pixels.astype("<i2").tobytes()
    dataset.InstanceNumber = dataset.AcquisitionNumber = number
    dataset.SeriesInstanceUID = dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = "1.2.3"
    dataset.SOPInstanceUID = generate_uid()
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    if (header := csa(count, normal)) is not None:
        dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    edit(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_mosaic_becomes_slices_that_lie_right(tmp_path: Path, head: Volume, is_reversed: bool) -> None:
    write_mosaic(head, tmp_path / "m.dcm", is_reversed=is_reversed)
    (scan,) = find_scans(tmp_path)
    volume = scan.read()
    assert volume.grid.matches(head.grid)
    assert np.array_equal(volume.array, head.array)
    assert not volume.notices


def test_several_mosaics_are_the_volumes_of_one_scan(tmp_path: Path, head: Volume) -> None:
    for time in (0, 1, 2):
        brighter = Volume(head.array + np.int16(1000 * time), head.grid)
        write_mosaic(brighter, tmp_path / f"{5 - time}.dcm", number=time + 1)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match="AcquisitionNumber 1, 2, 3"):
        scan.read()
    for time in (0, 1, 2):
        assert np.array_equal(scan.read(volume=time).array, head.array + 1000 * time)


@pytest.mark.parametrize(
    ("csa", "edit"),
    [
        (lambda count, normal: None, lambda dataset: None),
        (lambda count, normal: csa_header(count, None), lambda dataset: None),
        (lambda count, normal: csa_header(count + 1, normal), lambda dataset: None),
        (lambda count, normal: csa_header(count, normal[::-1]), lambda dataset: None),
        (lambda count, normal: csa_header(count, normal)[:100], lambda dataset: None),
        (
            csa_header,
            lambda dataset: dataset.__delattr__("SpacingBetweenSlices") or dataset.__delattr__("SliceThickness"),
        ),
    ],
    ids=["no CSA", "no normal", "counts differ", "other normal", "cut", "no spacing"],
)
def test_a_mosaic_that_does_not_say_how_it_is_stacked_is_refused(
    tmp_path: Path, head: Volume, csa: Callable[[int, np.ndarray], bytes | None], edit: Callable[[Dataset], None]
) -> None:
    write_mosaic(head, tmp_path / "m.dcm", csa=csa, edit=edit)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError) as caught:
        scan.read()
    assert caught.value.code in ("series.mosaic", "file.bad_header")


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_labels_of_a_mosaic_become_dicom(tmp_path: Path, head: Volume, kind: str) -> None:
    write_mosaic(head, tmp_path / "m" / "m.dcm")
    (scan,) = find_scans(tmp_path / "m")
    volume = scan.read()
    labels = Segmentation((volume.array[0] > 500).astype(np.uint8), volume.grid, (Segment(1, "left", (255, 0, 0)),))
    path = tmp_path / "labels.dcm"
    write_label_map(labels, path, scan=volume.source, dicom=kind)  # type: ignore[arg-type]
    assert np.array_equal(read_label_map(path, volume.grid).array, labels.array)
