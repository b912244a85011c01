"""Voxels enclosed by contours that coincide, overlap, or lie inside each other."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from numpy.typing import NDArray

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation.pairs import Pair, compare_pair
from napari_seg.formats.dicom.contours import enclosed, enclosed_by_odd, outlines
from napari_seg.formats.dicom.rtstruct import read_rtstruct
from napari_seg.formats.dicom.rtstruct_write import write_rtstruct
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.volume import Segment, Segmentation, Volume

SHAPE, PIXEL_MM = (30, 26), (0.8, 1.6)
Contour = NDArray[np.float64]


def box(i: float, j: float, width: float, height: float) -> Contour:
    """A rectangle of whole voxels that begins at voxel (i, j)."""
    return np.array([[i, j], [i + width, j], [i + width, j + height], [i, j + height]]) - 0.5


def mask(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    answer = np.zeros(SHAPE, bool)
    for i, j, width, height in boxes:
        answer[i : i + width, j : j + height] = True
    return answer


OUTER, HOLE, ISLAND = (4, 4, 16, 16), (7, 7, 9, 9), (10, 10, 3, 3)


@pytest.mark.parametrize(
    "copies",
    [
        lambda a: [a, a],
        lambda a: [a, a, a],
        lambda a: [a, a[::-1]],
        lambda a: [a, np.roll(a, 2, axis=0)],
        lambda a: [a, np.concatenate([a, a[:1]])],
        lambda a: [a, np.round(a * PIXEL_MM, 1) / PIXEL_MM],
        lambda a: [a, np.concatenate([(a + np.roll(a, -1, axis=0)) / 2, a])[[0, 5, 1, 6, 2, 7, 3, 4]]],
    ],
)
def test_contours_that_coincide_count_once(copies: object) -> None:
    found, is_overlapping = enclosed(copies(box(*OUTER)), SHAPE, PIXEL_MM)  # type: ignore[operator]
    assert np.array_equal(found, mask(OUTER))
    assert not is_overlapping


def test_contours_within_contours_are_holes_and_islands() -> None:
    nested = [box(*OUTER), box(*HOLE), box(*ISLAND)]
    expected = mask(OUTER) ^ mask(HOLE) ^ mask(ISLAND)
    for contours in (nested, nested[::-1], nested * 2):
        found, is_overlapping = enclosed(contours, SHAPE, PIXEL_MM)
        assert np.array_equal(found, expected)
        assert not is_overlapping
    ring = outlines(mask(OUTER) ^ mask(HOLE))
    assert len(ring) == 1  # a keyhole
    found, is_overlapping = enclosed([*ring, box(*ISLAND)], SHAPE, PIXEL_MM)
    assert np.array_equal(found, expected)
    assert not is_overlapping


def test_a_thin_wall_is_no_copy() -> None:
    outer, inner = np.array(box(*OUTER)), np.array(box(*OUTER))
    inner += np.sign(box(*OUTER).mean(axis=0) - inner) * 0.4  # a wall of 0.3 and 0.6 mm, between voxels
    found, is_overlapping = enclosed([outer, inner], SHAPE, PIXEL_MM)
    assert not found.any()
    assert not is_overlapping


@pytest.mark.parametrize(
    "contours",
    [
        [box(4, 4, 10, 8), box(10, 8, 9, 9)],
        [box(4, 4, 10, 8), box(4, 4, 10, 8), box(10, 8, 9, 9), box(10, 8, 9, 9)[::-1]],
        [box(4, 4, 10, 8), box(1, 6, 20, 3)],  # a cross: no corner of either lies in the other
        [box(4, 4, 12, 12), box(9, 7, 7.4, 4)],  # leads out of the other by less than a voxel
        [box(2, 2, 6, 6), box(6, 6, 6, 6), box(10, 10, 6, 6)],
    ],
)
def test_contours_that_overlap_are_united(contours: list[Contour]) -> None:
    for some in (contours, contours[::-1]):
        found, is_overlapping = enclosed(some, SHAPE, PIXEL_MM)
        assert np.array_equal(found, np.any([enclosed_by_odd([one], SHAPE) for one in some], axis=0))
        assert is_overlapping


def test_separate_and_touching_pieces() -> None:
    pieces = [(2, 2, 4, 4), (6, 2, 4, 4), (20, 15, 5, 5)]
    found, is_overlapping = enclosed([box(*piece) for piece in pieces], SHAPE, PIXEL_MM)
    assert np.array_equal(found, mask(*pieces))
    assert not is_overlapping


def test_outlines_of_noise_enclose_it() -> None:
    noise = np.random.default_rng(0).random(SHAPE) > 0.4
    found, is_overlapping = enclosed(outlines(noise), SHAPE, PIXEL_MM)
    assert np.array_equal(found, noise)
    assert not is_overlapping


@pytest.fixture
def series(tmp_path: Path, head: Volume) -> Volume:
    phantoms.write_series(head, tmp_path / "series")
    return read(tmp_path / "series")


@pytest.fixture
def structures(series: Volume, tmp_path: Path) -> pydicom.Dataset:
    """Contours of two boxes on slices 3 to 5; slices are 2.5 mm apart."""
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    labels[11:15, 5:12, 3:6] = 2
    segments = (Segment(1, "one", (255, 0, 0)), Segment(2, "two", (0, 255, 0)))
    write_rtstruct(Segmentation(labels, series.grid, segments), series.source, tmp_path / "contours.dcm")
    return pydicom.dcmread(tmp_path / "contours.dcm")


def moved(contour: pydicom.Dataset, series: Volume, by: tuple[float, float, float]) -> pydicom.Dataset:
    """A copy of a contour, moved by so many voxels."""
    answer = copy.deepcopy(contour)
    points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
    offset = (series.grid.affine[:3, :3] @ by) * [-1, -1, 1]
    answer.ContourData = [f"{value:.8g}" for value in (points + offset).ravel()]
    return answer


def test_structures_whose_contours_are_stored_twice_or_overlap(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path
) -> None:
    one = structures.ROIContourSequence[0].ContourSequence
    one.append(copy.deepcopy(one[0]))
    one.append(moved(one[1], series, (2, 3, 0)))
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid, ["One"])
    counts = np.count_nonzero(found.array, axis=(0, 1)).tolist()
    assert counts[3:6] == [35, 35 + 35 - 3 * 4, 35]
    (notice,) = found.notices
    assert (notice.code, notice.segment) == ("labels.contours_overlap", "one")
    assert "slices 4;" in notice.message
    for contour in one:
        contour.ContourGeometricType = "CLOSEDPLANAR_XOR"
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid, ["one"])
    assert np.count_nonzero(found.array, axis=(0, 1)).tolist()[3:6] == [0, 35 + 35 - 2 * 3 * 4, 35]
    assert found.notices == ()


def test_contours_of_one_structure_may_be_stored_in_several_items(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path
) -> None:
    first = structures.ROIContourSequence[0]
    second = copy.deepcopy(first)
    first.ContourSequence, second.ContourSequence = first.ContourSequence[:1], first.ContourSequence[1:]
    structures.ROIContourSequence.append(second)
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid)
    assert np.count_nonzero(found.array == 1, axis=(0, 1)).tolist()[3:6] == [35, 35, 35]
    assert found.notices == ()


def test_contours_on_every_second_slice_are_reported(series: Volume, tmp_path: Path) -> None:
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[4:9, 5:12, [2, 4, 6, 9]], labels[11:15, 5:12, 3:6] = 1, 2
    segments = (Segment(1, "one", (255, 0, 0)), Segment(2, "two", (0, 255, 0)))
    write_rtstruct(Segmentation(labels, series.grid, segments), series.source, tmp_path / "contours.dcm")
    found = read_rtstruct(tmp_path / "contours.dcm", series.grid)
    assert np.array_equal(found.array, labels)
    assert [(notice.code, notice.segment) for notice in found.notices] == [("labels.slices_skipped", "one")]


def test_structures_with_one_number_are_refused(structures: pydicom.Dataset, series: Volume, tmp_path: Path) -> None:
    third = copy.deepcopy(structures.StructureSetROISequence[1])
    third.ROINumber, third.ROIName = 3, "three"
    structures.StructureSetROISequence.append(third)
    structures.StructureSetROISequence[1].ROINumber = structures.ROIContourSequence[1].ReferencedROINumber = 1
    structures.save_as(tmp_path / "x.dcm")
    for only in ((), ("one",), ("two",)):
        with pytest.raises(InputError, match=r"file\.bad_header: .* one and two the number 1,"):
            read_rtstruct(tmp_path / "x.dcm", series.grid, only)
    assert not read_rtstruct(tmp_path / "x.dcm", series.grid, ["three"]).array.any()


def test_contours_without_a_description_are_reported(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path
) -> None:
    del structures.StructureSetROISequence[1]
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid)
    assert found.voxel_counts() == {1: 5 * 7 * 3}
    assert [notice.code for notice in found.notices] == ["labels.undescribed"]


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "POINT", None])
def test_structures_without_closed_contours_are_reported(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path, kind: str | None
) -> None:
    for contour in structures.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = kind
    del structures.ROIContourSequence[1].ContourSequence  # drawn nowhere, as programs write it
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid)
    assert not found.array.any()
    assert [(notice.code, notice.segment) for notice in found.notices] == [("labels.not_closed", "one")]


def test_a_structure_that_encloses_no_voxel_is_reported(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path
) -> None:
    region = structures.ROIContourSequence[0]
    (i, j, k), *_ = np.reshape(region.ContourSequence[0].ContourData, (-1, 3)).round(3).tolist()
    region.ContourSequence[0].ContourData = [i, j, k, i + 0.01, j, k, i, j + 0.01, k]
    region.ContourSequence = [moved(region.ContourSequence[0], series, (0.3, 0.3, 0))]
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid)
    assert not (found.array == 1).any()
    assert [(notice.code, notice.segment) for notice in found.notices] == [("labels.no_voxels", "one")]


def test_structures_off_the_slices_are_named(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    two = structures.ROIContourSequence[1].ContourSequence
    two += [moved(two[0], series, (0, 0, k)) for k in (-5, -4, 12)]
    structures.save_as(tmp_path / "x.dcm")
    with pytest.raises(InputError, match=r"not_on_slices: .* two has contours on slices -2 to -1, 15 outside.*'one'"):
        read_rtstruct(tmp_path / "x.dcm", series.grid)
    words = ["convert", str(tmp_path / "x.dcm"), str(tmp_path / "one.csv"), "--scan", str(tmp_path / "series")]
    assert main(words) == 4
    assert main([*words, "--segments", "one"]) == 0
    structures.ROIContourSequence[1].ContourSequence = [moved(two[0], series, (0, 0, 0.4))]
    structures.save_as(tmp_path / "x.dcm")
    with pytest.raises(InputError, match=r"two has contours off the planes of slices 3 "):
        read_rtstruct(tmp_path / "x.dcm", series.grid)


def test_coordinates_may_be_rounded_to_a_tenth_of_a_millimetre(tmp_path: Path) -> None:
    grid = phantoms.oblique_grid((20, 26, 14), (0.7, 0.8, 0.6))
    phantoms.write_series(Volume(np.zeros((1, *grid.shape), np.int16), grid), tmp_path / "series")
    scan = read(tmp_path / "series")
    labels = np.zeros(grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    path = tmp_path / "x.dcm"
    write_rtstruct(Segmentation(labels, scan.grid, (Segment(1, "one", (255, 0, 0)),)), scan.source, path)
    dataset = pydicom.dcmread(path)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.ContourData = [f"{float(value):.1f}" for value in contour.ContourData]
    dataset.save_as(path)
    assert np.array_equal(read_rtstruct(path, scan.grid).array, labels)


def test_structure_sets_without_preamble_are_read(structures: pydicom.Dataset, series: Volume, tmp_path: Path) -> None:
    bare = pydicom.Dataset()
    bare.update(structures)
    pydicom.dcmwrite(tmp_path / "x.dcm", bare, implicit_vr=True, little_endian=True)
    assert (tmp_path / "x.dcm").read_bytes()[128:132] != b"DICM"
    found = read_label_map(tmp_path / "x.dcm", series.grid, images=series.source.files)
    assert found.voxel_counts() == {1: 5 * 7 * 3, 2: 4 * 7 * 3}


def test_contours_beyond_a_cropped_segmentation_are_compared(
    structures: pydicom.Dataset, series: Volume, tmp_path: Path
) -> None:
    labels = read_rtstruct(tmp_path / "contours.dcm", series.grid)
    part = Segmentation(np.where(np.arange(14) < 5, labels.array, 0).astype(np.uint8), series.grid, labels.segments)
    write_label_map(part, tmp_path / "part.dcm", scan=series.source)  # slices 3 and 4 of 3 to 5
    result = compare_pair(Pair("x", tmp_path / "part.dcm", tmp_path / "contours.dcm"))
    assert not result.code, result.message
    assert {name: scores.dice for name, scores in result.scores.items()} == {"one": 0.8, "two": 0.8}
    write_label_map(labels, tmp_path / "whole.nii.gz")
    result = compare_pair(Pair("x", tmp_path / "whole.nii.gz", tmp_path / "contours.dcm"))
    assert [scores.dice for scores in result.scores.values()] == [1, 1]


def test_contours_beyond_the_scan_are_reported(structures: pydicom.Dataset, series: Volume, tmp_path: Path) -> None:
    one = structures.ROIContourSequence[0].ContourSequence
    one[0] = moved(one[0], series, (-8, 0, 0))
    structures.save_as(tmp_path / "x.dcm")
    found = read_rtstruct(tmp_path / "x.dcm", series.grid)
    assert [(notice.code, notice.segment) for notice in found.notices] == [("labels.beyond_scan", "one")]
    assert np.count_nonzero(found.array[..., 3] == 1) == 7


def test_outlines_of_more_than_64_kib_come_back(tmp_path: Path) -> None:
    grid = phantoms.oblique_grid((90, 90, 4), (0.7, 0.8, 2))
    phantoms.write_series(Volume(np.zeros((1, *grid.shape), np.int16), grid), tmp_path / "series")
    scan = read(tmp_path / "series")
    labels = np.zeros(grid.shape, np.uint8)
    labels[1:-1, 1:-1:2, 1], labels[1, 1:-1, 1] = 1, 1  # a comb
    path = tmp_path / "x.dcm"
    write_rtstruct(Segmentation(labels, scan.grid, (Segment(1, "comb", (255, 0, 0)),)), scan.source, path)
    assert path.stat().st_size > 1 << 17
    assert np.array_equal(read_rtstruct(path, scan.grid).array, labels)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian  # which makes it of unknown kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    assert np.array_equal(read_rtstruct(path, scan.grid).array, labels)
