"""Slices of a tilted gantry are shifted onto a straight grid, and labels back onto the slices."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from phantoms import oblique_grid, write_series

from napari_seg.errors import InputError
from napari_seg.formats.dicom.rtstruct import read_rtstruct
from napari_seg.formats.dicom.rtstruct_write import write_rtstruct
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.find import find_scans
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Source, Volume

SLICES = 14


def ball(places: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Values that follow from the place in the patient alone, smoothly: brightest in the centre."""
    return 1000 * np.exp(-(((places - centre_mm) / 6) ** 2).sum(axis=-1))


def write_tilted(folder: Path, degrees: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A ball by a gantry that leans so far along columns and rows; (K, J, I, 3) places of pixels, the ball's middle."""
    grid = oblique_grid()
    step = grid.affine[:3, 2] + 2.5 * grid.directions[:, :2] @ np.tan(np.radians(degrees))
    affine = grid.affine.copy()
    affine[:3, 2] = step
    k, j, i = np.indices(grid.shape[::-1])
    places = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    centre = places[SLICES // 2, 12, 9]
    values = np.rint(ball(places, centre)).astype(np.int16).transpose(2, 1, 0)[None]

    def tilt(k: int, dataset: pydicom.Dataset) -> None:
        position = affine[:3, 3] + k * step
        dataset.ImagePositionPatient = [round(float(v), 6) for v in position * (-1, -1, 1)]

    write_series(Volume(values, grid), folder, edit=tilt, slices=np.random.default_rng(0).permutation(SLICES).tolist())
    return places, centre


@pytest.mark.parametrize("degrees", [(0, 14), (-20, 0), (11, -7)])
def test_a_tilted_scan_lies_where_it_was_scanned(tmp_path: Path, degrees: tuple[float, float]) -> None:
    places, centre = write_tilted(tmp_path, degrees)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"geometry\.shear.*--resample-tilt"):
        scan.read()
    volume = scan.read(resample_tilt=True)
    assert [notice.code for notice in volume.notices] == ["geometry.tilt_resampled"]
    assert volume.grid.contains(places).all()  # no pixel is lost
    i, j, k = np.indices(volume.grid.shape)
    expected = ball(volume.grid.to_world(np.stack([i, j, k], axis=-1)), centre)
    # what lies between two pixels is their mean, which is off by the ball's curve; half a pixel beside is off by 90
    assert np.abs(volume.array[0] - expected).max() < 30


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_labels_go_back_to_the_slices(tmp_path: Path, kind: str) -> None:
    places, _ = write_tilted(tmp_path / "series", (11, -7))
    (scan,) = find_scans(tmp_path / "series")
    volume = scan.read(resample_tilt=True)
    labels = (volume.array[0] > 300).astype(np.uint8) + (volume.array[0] > 700)
    segments = (Segment(1, "shell", (255, 0, 0)), Segment(2, "core", (0, 0, 255)))
    segmentation = Segmentation(labels.astype(np.uint8), volume.grid, segments)
    write_dicom_seg(segmentation, Source("dicom", scan.files), tmp_path / "seg.dcm", kind=kind)
    found = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(tmp_path / "seg.dcm"))
    images = [pydicom.dcmread(path) for path in volume.source.files]
    uids = [image.SOPInstanceUID for image in images]
    pixels = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert pixels.shape == (SLICES, *places.shape[1:3])
    scanned = np.stack([image.pixel_array for image in images])
    assert np.array_equal(np.unique(pixels), [0, 1, 2])
    # to half a pixel: where the scan is clearly above or below a limit, the label is what it must be
    assert (pixels[scanned > 800] == 2).all()
    assert (pixels[scanned < 200] == 0).all()
    for frame in found.PerFrameFunctionalGroupsSequence:
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        assert min(np.abs(position - np.array(image.ImagePositionPatient, float)).max() for image in images) < 1e-4


def test_contours_lie_on_the_slices(tmp_path: Path) -> None:
    write_tilted(tmp_path / "series", (0, 14))
    (scan,) = find_scans(tmp_path / "series")
    volume = scan.read(resample_tilt=True)
    labels = (volume.array[0] > 300).astype(np.uint8)
    segmentation = Segmentation(labels, volume.grid, (Segment(1, "ball", (255, 0, 0)),))
    write_rtstruct(segmentation, volume.source, tmp_path / "contours.dcm")
    assert np.array_equal(read_rtstruct(tmp_path / "contours.dcm", volume.grid).array, labels)
    contours = pydicom.dcmread(tmp_path / "contours.dcm").ROIContourSequence[0].ContourSequence
    images = {str(image.SOPInstanceUID): image for image in map(pydicom.dcmread, volume.source.files)}
    for contour in contours:
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        normal = np.cross(*np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float))
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        assert np.abs((points - np.array(image.ImagePositionPatient, float)) @ normal).max() < 1e-3


def test_a_straight_scan_stays_as_it_is(tmp_path: Path, head: Volume) -> None:
    write_series(head, tmp_path)
    (scan,) = find_scans(tmp_path)
    volume = scan.read(resample_tilt=True)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, head.array)
    assert isinstance(volume.grid, Grid)
    assert volume.grid.matches(head.grid)
    assert volume.notices == ()


def test_an_implausible_tilt_is_refused_before_memory_is_taken(tmp_path: Path, head: Volume) -> None:
    def lean(k: int, dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient = [1e6 * k, 0, float(dataset.ImagePositionPatient[2])]

    write_series(head, tmp_path, edit=lean)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"geometry\.shear.*up to 45 degrees"):
        scan.read(resample_tilt=True)
