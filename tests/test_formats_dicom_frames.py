"""Frames of nuclear medicine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_series
from pydicom.dataset import Dataset

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.find import find_scans
from napari_seg.volume import Volume


@pytest.mark.parametrize("sign", [1, -1])
def test_slices_of_nuclear_medicine_follow_from_a_step(tmp_path: Path, head: Volume, sign: int) -> None:
    write_nuclear(head, tmp_path / "nm", sign)
    (scan,) = find_scans(tmp_path)
    volume = scan.read()
    assert volume.grid.matches(head.grid)
    assert np.array_equal(volume.array, head.array)


def test_gates_of_nuclear_medicine_are_volumes(tmp_path: Path, head: Volume) -> None:
    write_nuclear(head, tmp_path / "nm", 1, gates=2)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match="TimeSlotVector 1, 2"):
        scan.read()
    for gate in (0, 1):
        assert np.array_equal(scan.read(volume=gate).array, head.array + 1000 * gate)


def test_nuclear_medicine_without_a_step_is_refused(tmp_path: Path, head: Volume) -> None:
    write_nuclear(head, tmp_path / "nm", 1)
    dataset = pydicom.dcmread(tmp_path / "nm")
    del dataset.SpacingBetweenSlices
    dataset.save_as(tmp_path / "nm")
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"geometry\.incomplete"):
        scan.read()


def write_nuclear(volume: Volume, path: Path, sign: int, gates: int = 1) -> None:
    """One NM file whose first slice is the lowest or, with a negative step, the highest."""
    order = [(gate, k) for k in range(14) for gate in range(gates)]
    first = 0 if sign > 0 else 13
    write_series(volume, path.parent, slices=[first], file_name=path.name)
    dataset = pydicom.dcmread(path)
    detector = Dataset()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        setattr(detector, keyword, dataset[keyword].value)
        delattr(dataset, keyword)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.20", "NM"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    dataset.DetectorInformationSequence = [detector]
    dataset.SpacingBetweenSlices = sign * volume.grid.spacing_mm[2]
    dataset.SliceThickness = volume.grid.spacing_mm[2]
    dataset.NumberOfFrames = len(order)
    dataset.SliceVector = [k + 1 if sign > 0 else 14 - k for _, k in order]
    if gates > 1:
        dataset.TimeSlotVector = [gate + 1 for gate, _ in order]
    pixels = np.stack([volume.array[0, :, :, k].T + 1000 * gate for gate, k in order])
    dataset.PixelData = pixels.astype("<i2").tobytes()
    dataset.save_as(path)
