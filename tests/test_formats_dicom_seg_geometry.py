"""The grid of a DICOM segmentation follows from the positions of its frames, whatever its attributes state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset

from napari_seg.errors import InputError
from napari_seg.formats.dicom.seg import read_dicom_seg, same_labels
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.volume import Segment, Segmentation, Volume

Edit = Callable[[Dataset], None]


@pytest.fixture
def series(tmp_path: Path, head: Volume) -> Volume:
    """Slices are 2.5 mm apart."""
    phantoms.write_series(head, tmp_path / "series")
    return read(tmp_path / "series")


def box(scan: Volume, slices: Sequence[int], labels: Sequence[int] = (1,)) -> Segmentation:
    array = np.zeros(scan.grid.shape, np.uint16)
    for n, label in enumerate(labels):
        array[4 + 4 * n : 7 + 4 * n, 5:12, slices] = label
    return Segmentation(array, scan.grid, tuple(Segment(n, f"thing {n}", (255, 0, 0)) for n in labels))


def edited(segmentation: Segmentation, scan: Volume, path: Path, edit: Edit, kind: str = "binary") -> Path:
    write_dicom_seg(segmentation, scan.source, path, kind=kind)  # type: ignore[arg-type]
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


def lengths(**values: float | None) -> Edit:
    """Sets SpacingBetweenSlices and SliceThickness; None takes one away."""

    def edit(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        for keyword, value in values.items():
            measures.pop(keyword, None)
            if value is not None:
                setattr(measures, keyword, value)

    return edit


def shuffled(dataset: Dataset) -> None:
    """The same frames in another order."""
    order = np.random.default_rng(1).permutation(dataset.NumberOfFrames)
    pixels = dataset.pixel_array[order]
    frames = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [frames[n] for n in order]
    dataset.PixelData = pydicom.pixels.pack_bits(pixels)


@pytest.mark.parametrize(
    ("slices", "edit", "code"),
    [
        ([3, 4, 5, 6], lengths(SliceThickness=None), ""),
        ([3, 4, 5, 6], lengths(SliceThickness=None, SpacingBetweenSlices=None), ""),
        ([3, 4, 5, 6], lengths(SliceThickness=5), ""),
        ([3, 4, 5, 6], lengths(SpacingBetweenSlices=1), "geometry.spacing_contradicted"),
        ([3, 4, 5, 6], lengths(SpacingBetweenSlices=1.25), "geometry.spacing_contradicted"),
        ([3, 4, 5, 6], lengths(SpacingBetweenSlices=10, SliceThickness=None), "geometry.spacing_contradicted"),
        ([3, 4, 5, 6], lengths(SpacingBetweenSlices=0, SliceThickness=0), ""),
        ([3, 4, 5, 6], lengths(SpacingBetweenSlices=-2.5), ""),
        ([3, 4, 5, 6], shuffled, ""),
        ([3, 4, 9, 12], lengths(SliceThickness=None, SpacingBetweenSlices=None), ""),
        ([3, 5, 8], lengths(SliceThickness=None, SpacingBetweenSlices=None), ""),  # 5 and 7.5 mm apart
        ([3, 5, 8], lengths(), ""),
        ([3, 5, 8], shuffled, ""),
        ([3, 8], lengths(), "geometry.frames_apart"),
        ([3, 5, 7], lengths(SliceThickness=2), "geometry.frames_apart"),
        ([4], lengths(), ""),
        ([4], lengths(SpacingBetweenSlices=None), ""),
        ([4], lengths(SpacingBetweenSlices=1), "geometry.spacing_contradicted"),
        ([4], lengths(SliceThickness=None), ""),
    ],
)
def test_slice_spacing_comes_from_positions(
    series: Volume, tmp_path: Path, slices: list[int], edit: Edit, code: str
) -> None:
    meant = box(series, slices)
    found = read_dicom_seg(edited(meant, series, tmp_path / "x.dcm", edit))
    assert same_labels(found, meant)
    assert found.grid.shape[2] == slices[-1] - slices[0] + 1
    assert [notice.code for notice in found.notices] == ([code] if code else [])
    on_scan = read_label_map(tmp_path / "x.dcm", series.grid, images=series.source.files)
    assert np.array_equal(on_scan.array, meant.array)
    assert on_scan.notices == ()


def test_thick_slices_with_possible_gaps_are_reported(series: Volume, tmp_path: Path) -> None:
    """Every other slice, or a gap as wide as a slice: without SpacingBetweenSlices nothing tells which."""
    meant = box(series, [3, 5, 7])
    found = read_dicom_seg(edited(meant, series, tmp_path / "x.dcm", lengths(SpacingBetweenSlices=None)))
    assert found.grid.spacing_mm[2] == pytest.approx(5)
    assert [one.code for one in found.notices] == ["geometry.frames_apart"]
    on_scan = read_label_map(tmp_path / "x.dcm", series.grid, images=series.source.files)
    assert np.array_equal(on_scan.array, meant.array)
    assert on_scan.notices == ()


@pytest.mark.parametrize(
    ("slices", "edit", "code"),
    [
        ([3, 5, 7], lengths(SpacingBetweenSlices=5, SliceThickness=5), "geometry.other_grid"),
        ([3, 7, 13], lengths(SpacingBetweenSlices=5, SliceThickness=None), "geometry.other_grid"),
        ([3, 5, 7], lengths(SpacingBetweenSlices=None, SliceThickness=5), "geometry.frames_apart"),
        ([3], lengths(SpacingBetweenSlices=5, SliceThickness=5), "geometry.spacing_contradicted"),
        ([3, 4, 5], lengths(SpacingBetweenSlices=5, SliceThickness=5), ""),
    ],
)
def test_a_segmentation_of_thicker_slices_is_not_read_as_one_with_gaps(
    series: Volume, tmp_path: Path, slices: list[int], edit: Edit, code: str
) -> None:
    path = edited(box(series, slices), series, tmp_path / "x.dcm", edit)
    if code == "geometry.other_grid":
        with pytest.raises(InputError, match=r"geometry\.other_grid"):
            read_dicom_seg(path, scan=series.grid)
        assert read_dicom_seg(path).grid.spacing_mm[2] == pytest.approx(5)
    else:
        found = read_dicom_seg(path, scan=series.grid)
        assert [notice.code for notice in found.notices] == [code] * bool(code)


def test_the_scan_gives_the_spacing_that_the_file_does_not_state(series: Volume, tmp_path: Path) -> None:
    nothing = lengths(SliceThickness=None, SpacingBetweenSlices=None)
    for slices in ([4], [3, 5, 7]):
        meant = box(series, slices)
        path = edited(meant, series, tmp_path / "x.dcm", nothing)
        found = read_label_map(path, series.grid, images=series.source.files)
        assert np.array_equal(found.array, meant.array)
    with pytest.raises(InputError, match=r"geometry\.no_thickness"):
        read_dicom_seg(edited(box(series, [4]), series, tmp_path / "x.dcm", nothing))


def test_frames_that_fill_no_grid_are_refused(series: Volume, tmp_path: Path) -> None:
    def place(n: int, **values: Sequence[float]) -> Edit:
        def edit(dataset: Dataset) -> None:
            frame = dataset.PerFrameFunctionalGroupsSequence[n]
            for keyword, value in values.items():
                if keyword == "ImagePositionPatient":
                    value = [
                        a + b for a, b in zip(frame.PlanePositionSequence[0].ImagePositionPatient, value, strict=True)
                    ]
                    frame.PlanePositionSequence[0].ImagePositionPatient = value
                else:
                    frame.PlaneOrientationSequence = [Dataset()]
                    frame.PlaneOrientationSequence[0].ImageOrientationPatient = value

        return edit

    def forget_one(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence

    for edit, code in (
        (place(1, ImagePositionPatient=[3, 0, 0]), "uneven_spacing"),
        (place(3, ImagePositionPatient=[0.1, 0.2, 0.8]), "uneven_spacing"),
        (place(2, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "mixed_orientation"),
        (forget_one, "incomplete"),
    ):
        path = edited(box(series, [3, 4, 5, 6]), series, tmp_path / "x.dcm", edit)
        with pytest.raises(InputError, match=rf"geometry\.{code}"):
            read_dicom_seg(path)


def test_label_maps_of_16_bits_come_back(series: Volume, tmp_path: Path) -> None:
    meant = box(series, [3, 4, 5], (17, 256, 1035))
    found = read_dicom_seg(edited(meant, series, tmp_path / "x.dcm", lambda dataset: None, "labelmap"))
    assert same_labels(found, meant)
    assert [s.label for s in found.segments] == [17, 256, 1035]
    only = read_dicom_seg(tmp_path / "x.dcm", ["thing 1035"])
    assert np.unique(only.array).tolist() == [0, 1035]
    assert found.voxel_counts() == {17: 63, 256: 63, 1035: 63}


def test_values_that_no_segment_describes_are_reported(series: Volume, tmp_path: Path) -> None:
    def forget(dataset: Dataset) -> None:
        dataset.SegmentSequence = [item for item in dataset.SegmentSequence if item.SegmentNumber != 5]

    meant = box(series, [3, 4, 5], (1, 5))
    found = read_dicom_seg(edited(meant, series, tmp_path / "x.dcm", forget, "labelmap"))
    assert [notice.code for notice in found.notices] == ["labels.undescribed"]
    assert np.unique(found.array).tolist() == [0, 1]


def test_frames_of_segments_that_are_not_described_are_reported(series: Volume, tmp_path: Path) -> None:
    def forget(dataset: Dataset) -> None:
        dataset.SegmentSequence = dataset.SegmentSequence[:1]

    found = read_dicom_seg(edited(box(series, [3, 4, 5], (1, 5)), series, tmp_path / "x.dcm", forget))
    assert [notice.code for notice in found.notices] == ["labels.undescribed"]
    assert "segments 2" in found.notices[0].message


@pytest.mark.parametrize("millimetres", [0, 0.1, 0.4])
def test_positions_may_be_rounded_to_a_tenth_of_a_millimetre(
    series: Volume, tmp_path: Path, millimetres: float
) -> None:
    def rounded(dataset: Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence if millimetres else ():
            place = frame.PlanePositionSequence[0]
            numbers = np.array(place.ImagePositionPatient, float) / millimetres
            place.ImagePositionPatient = [f"{value:.1f}" for value in np.rint(numbers) * millimetres]

    meant = box(series, [3, 4, 5], (1, 2))
    path = edited(meant, series, tmp_path / "x.dcm", rounded)
    if millimetres > 0.1:
        with pytest.raises(InputError, match=r"geometry\.other_grid|geometry\.uneven_spacing"):
            read_label_map(path, series.grid, images=series.source.files)
        return
    found = read_label_map(path, series.grid, images=series.source.files)
    assert np.array_equal(found.array, meant.array)
    assert [notice.code for notice in found.notices] == ["geometry.rounded"] * bool(millimetres)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_segmentation_without_preamble_is_read(series: Volume, tmp_path: Path, kind: str) -> None:
    meant = box(series, [3, 4, 5])
    path = edited(meant, series, tmp_path / "x.dcm", lambda dataset: None, kind)
    dataset = pydicom.dcmread(path)
    bare = Dataset()
    bare.update(dataset)
    pydicom.dcmwrite(path, bare, implicit_vr=False, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert same_labels(read_label_map(path), meant)


def test_frames_need_not_begin_with_a_byte(tmp_path: Path) -> None:
    grid = phantoms.oblique_grid((5, 7, 9))
    phantoms.write_series(Volume(np.zeros((1, *grid.shape), np.int16), grid), tmp_path / "series")
    scan = read(tmp_path / "series")
    array = np.random.default_rng(0).integers(0, 2, grid.shape).astype(np.uint8)
    meant = Segmentation(array, scan.grid, (Segment(1, "noise", (255, 0, 0)),))
    write_dicom_seg(meant, scan.source, tmp_path / "x.dcm")
    assert same_labels(read_dicom_seg(tmp_path / "x.dcm"), meant)
    path = tmp_path / "x.dcm"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"file\.(truncated|bad_header)"):
        read_dicom_seg(path)
