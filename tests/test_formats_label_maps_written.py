"""Segmentations written in every format and read back: the same voxels in the patient, the same names."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from napari_seg.errors import InputError, OutputError
from napari_seg.evaluation.matching import match
from napari_seg.formats.dicom import seg_write
from napari_seg.formats.dicom.contours import outlines
from napari_seg.formats.dicom.rtstruct import read_rtstruct
from napari_seg.formats.dicom.rtstruct_write import write_rtstruct
from napari_seg.formats.dicom.seg import read_dicom_seg, same_labels
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.dicom.source import read_source, source_images
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import on_grid, read_label_map
from napari_seg.formats.nrrd import read_seg_nrrd, write_seg_nrrd
from napari_seg.formats.read import read
from napari_seg.formats.surface import surface_of
from napari_seg.geometry import Grid
from napari_seg.volume import NO_SOURCE, LabelOrigin, Segment, Segmentation, Term, Volume

LEFT, HIPPOCAMPUS, STRUCTURE = (
    Term("7771000", "SCT", "Left"),
    Term("5366008", "SCT", "Hippocampus"),
    Term("91723000", "SCT", "Anatomical Structure"),
)
SEGMENTS = (
    Segment(1, "left thing", (200, 30, 10), category=STRUCTURE, kind=HIPPOCAMPUS, modifier=LEFT),
    Segment(5, "Größe", (3, 200, 10)),
    Segment(7, "nowhere", (3, 20, 210)),
)


def labelled(grid: Grid) -> Segmentation:
    """Blobs with holes, islands and corners that touch, and an empty first slice."""
    noise = gaussian_filter(np.random.default_rng(0).random(grid.shape), 1.2)
    array = np.zeros(grid.shape, np.uint8)
    array[noise > np.quantile(noise, 0.6)] = 1
    array[noise > np.quantile(noise, 0.85)] = 5
    array[:, :, 0] = 0
    return Segmentation(array, grid, SEGMENTS)


@pytest.fixture
def series(tmp_path: Path, head: Volume) -> Volume:
    phantoms.write_series(head, tmp_path / "series")
    return read(tmp_path / "series")


@pytest.fixture(params=["one by one", "reversed", "enhanced"])
def any_series(request: pytest.FixtureRequest, tmp_path: Path, head: Volume) -> Volume:
    if request.param == "enhanced":
        phantoms.write_enhanced(head, tmp_path / "series.dcm")
        return read(tmp_path / "series.dcm")
    count = head.grid.shape[2]
    phantoms.write_series(head, tmp_path / "series", slices=range(count)[:: -1 if request.param == "reversed" else 1])
    return read(tmp_path / "series")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_dicom_segmentations_come_back(any_series: Volume, tmp_path: Path, kind: str) -> None:
    meant = labelled(any_series.grid)
    write_dicom_seg(
        meant,
        any_series.source,
        tmp_path / "seg.dcm",
        kind=kind,
        made_by=LabelOrigin("AUTOMATIC", ("a model", "1.2"), is_model=True),
    )
    found = read_dicom_seg(tmp_path / "seg.dcm")
    numbered = replace(
        meant,
        array=np.array([0, 1, 0, 0, 0, 2, 0, 3], np.uint8)[meant.array] if kind == "binary" else meant.array,
    )
    assert same_labels(found, numbered)
    assert found.grid.shape[2] < meant.grid.shape[2]
    labels = (1, 2, 3) if kind == "binary" else (1, 5, 7)
    tissue = {"category": seg_write.TISSUE, "kind": seg_write.TISSUE}
    expected = [replace(s, label=n) for n, s in zip(labels, SEGMENTS, strict=True)]
    assert list(found.segments) == [expected[0], *(replace(s, **tissue) for s in expected[1:])]
    back = match(meant, on_grid(found, meant.grid, tmp_path)).reference
    assert np.array_equal(back.array, meant.array)

    dataset, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(any_series.source.files[0])
    assert dataset.StudyInstanceUID == source.StudyInstanceUID
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert dataset.PatientID == source.PatientID
    assert str(dataset.PatientName) == str(source.PatientName)
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    described = next(item for item in dataset.SegmentSequence if item.SegmentNumber)  # 0 is a label map's background
    assert described.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "a model"
    referenced = {
        item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced <= {pydicom.dcmread(file).SOPInstanceUID for file in any_series.source.files}


def test_frames_lie_where_another_reader_sees_them(series: Volume, tmp_path: Path) -> None:
    meant = labelled(series.grid)
    write_dicom_seg(meant, series.source, tmp_path / "seg.dcm", kind="labelmap")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    for label in (1, 5):
        places = []
        for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            rows, columns = np.nonzero(dataset.pixel_array[n] == label)
            places.append(position + columns[:, None] * cosines[0] * column_mm + rows[:, None] * cosines[1] * row_mm)
        expected = series.grid.to_world(np.argwhere(meant.array == label)) * [-1, -1, 1]
        np.testing.assert_allclose(np.concatenate(places).mean(axis=0), expected.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(np.concatenate(places).min(axis=0), expected.min(axis=0), atol=1e-4)


def test_a_mark_of_anonymisation_is_carried_on(tmp_path: Path, head: Volume) -> None:
    def anonymise(k: int, dataset: pydicom.Dataset) -> None:
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "by hand"
        del dataset.PatientName
        del dataset.PatientID

    phantoms.write_series(head, tmp_path / "series", edit=anonymise)
    volume = read(tmp_path / "series")
    write_dicom_seg(labelled(volume.grid), volume.source, tmp_path / "seg.dcm")
    write_rtstruct(labelled(volume.grid), volume.source, tmp_path / "contours.dcm")
    for name in ("seg.dcm", "contours.dcm"):
        dataset = pydicom.dcmread(tmp_path / name)
        assert (dataset.PatientIdentityRemoved, dataset.DeidentificationMethod) == ("YES", "by hand")
        assert not dataset.PatientName


def test_what_a_segmentation_must_refer_to(tmp_path: Path, head: Volume) -> None:
    def forget(k: int, dataset: pydicom.Dataset) -> None:
        del dataset.FrameOfReferenceUID

    phantoms.write_series(head, tmp_path / "series", edit=forget)
    volume = read(tmp_path / "series")
    for write in (write_dicom_seg, write_rtstruct):
        for scan in (volume.source, NO_SOURCE):
            with pytest.raises(OutputError, match=r"output\.no_dicom"):
                write(labelled(volume.grid), scan, tmp_path / "out.dcm")
    assert {path.name for path in tmp_path.iterdir()} == {"series"}


def test_segments_that_overlap_are_read_one_at_a_time(series: Volume, tmp_path: Path) -> None:
    import highdicom

    both = np.zeros((*series.grid.shape[::-1], 2), np.uint8)
    both[2:5, 3:9, 4:8, 0] = 1
    both[4:8, 3:9, 4:8, 1] = 1
    names = [Segment(1, "one", (1, 2, 3)), Segment(2, "other", (1, 2, 3))]
    volume = highdicom.Volume(
        both,
        series.grid.affine[:, [2, 1, 0, 3]],
        "PATIENT",
        frame_of_reference_uid=pydicom.dcmread(series.source.files[0]).FrameOfReferenceUID,
        channels={"SegmentNumber": [1, 2]},
        from_reference_convention="RAS",
    )
    dataset = highdicom.seg.Segmentation(
        source_images(*read_source(series.source, "x.dcm"), thickness_mm=1.0),
        volume,
        "BINARY",
        [seg_write._description(s, LabelOrigin("AUTOMATIC", ("x", "1"), is_model=True)) for s in names],
        highdicom.UID(),
        1,
        highdicom.UID(),
        1,
        "m",
        "m",
        "1",
        "1",
    )
    dataset.save_as(tmp_path / "both.dcm")
    with pytest.raises(InputError, match=r"labels\.overlap: other shares 24 voxels"):
        read_dicom_seg(tmp_path / "both.dcm")
    for n, name in enumerate(("one", "other")):
        found = on_grid(read_dicom_seg(tmp_path / "both.dcm", [name]), series.grid, tmp_path)
        assert np.array_equal(found.array > 0, both[..., n].transpose(2, 1, 0) > 0)
    with pytest.raises(InputError, match=r"labels\.unknown: .* it has one, other"):
        read_dicom_seg(tmp_path / "both.dcm", ["neither"])


def test_contours_come_back(any_series: Volume, tmp_path: Path) -> None:
    meant = labelled(any_series.grid)
    write_rtstruct(meant, any_series.source, tmp_path / "contours.dcm")
    found = read_rtstruct(tmp_path / "contours.dcm", any_series.grid)
    assert [s.name for s in found.segments] == ["left thing", "Größe", "nowhere"]
    assert [s.color for s in found.segments] == [s.color for s in SEGMENTS]
    assert np.array_equal(match(meant, found).reference.array, meant.array)
    dataset = pydicom.dcmread(tmp_path / "contours.dcm")
    images = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert len(images.ContourImageSequence) == len(any_series.source.files)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID
    half_a_slice = np.eye(4)
    half_a_slice[2, 3] = 0.5
    shifted = Grid(any_series.grid.shape, any_series.grid.affine @ half_a_slice)
    with pytest.raises(InputError, match=r"geometry\.not_on_slices"):
        read_rtstruct(tmp_path / "contours.dcm", shifted)


def test_a_hole_is_joined_to_its_outline_by_hand() -> None:
    mask = np.ones((5, 4), bool)
    mask[2, 1:3] = False
    (ring,) = outlines(mask)
    # round 5 x 4 voxels, half a voxel out, and round a hole of 1 x 2, half a voxel in
    assert ring.min(axis=0).tolist() == [-0.5, -0.5]
    assert ring.max(axis=0).tolist() == [4.5, 3.5]
    area = abs(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - np.roll(ring[:, 0], -1) * ring[:, 1])) / 2
    # corners are cut: 4 x 1/8 of the outline; the hole through half-way points is a hexagon of 2 - 4/8
    assert area == pytest.approx(5 * 4 - 4 / 8 - (2 - 4 / 8))


def test_slicers_segmentations_come_back(head: Volume, tmp_path: Path) -> None:
    meant = labelled(head.grid)
    write_seg_nrrd(meant, tmp_path / "x.seg.nrrd")
    found = read_seg_nrrd(tmp_path / "x.seg.nrrd")
    assert np.array_equal(found.array, meant.array)
    assert found.grid.matches(meant.grid)
    assert found.segments == meant.segments
    image = SimpleITK.ReadImage(str(tmp_path / "x.seg.nrrd"))
    assert image.GetMetaData("Segment1_Name") == "Größe"
    assert image.GetMetaData("Segment1_LabelValue") == "5"
    index = [int(n) for n in np.argwhere(meant.array == 5)[0]]
    assert image[index] == 5
    place = image.TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose(np.array(place) * [-1, -1, 1], head.grid.to_world(index), atol=1e-4)


def test_surfaces_enclose_their_segments() -> None:
    grid = phantoms.oblique_grid()
    mask = np.zeros(grid.shape, bool)
    mask[4:14, 6:20, 3:11] = True
    points, triangles = surface_of(mask, grid)
    corners = points[triangles]
    volume = np.einsum("ni,ni->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    # the surface runs half a voxel outside of the centres, with its edges and corners cut
    inside_mm3 = 10 * 14 * 8 * grid.voxel_ml * 1000
    assert 0.9 * inside_mm3 < volume < inside_mm3
    centre = grid.to_world(np.argwhere(mask)).mean(axis=0) * [-1, -1, 1]
    np.testing.assert_allclose((points.min(axis=0) + points.max(axis=0)) / 2, centre, atol=1.5)


def test_an_ending_names_the_format(series: Volume, tmp_path: Path) -> None:
    meant = labelled(series.grid)
    for name in ("a.nii.gz", "a.seg.nrrd", "a.csv", "a.json", "a.dcm"):
        assert write_label_map(meant, tmp_path / name, scan=series.source) == [tmp_path / name]
    write_label_map(meant, tmp_path / "contours.dcm", scan=series.source, dicom="rtstruct")
    written = write_label_map(meant, tmp_path / "a.stl")
    assert [path.name for path in written] == ["a_left_thing.stl", "a_Gr_e.stl"]  # what has no voxel has no surface
    assert (84 + 50 * int(np.fromfile(written[0], "<u4", 1, offset=80)[0])) == written[0].stat().st_size
    obj = write_label_map(meant, tmp_path / "a.obj")[0].read_text().splitlines()
    assert obj[0].startswith("# SPACE=LPS")
    assert {line[0] for line in obj[1:]} == {"v", "f"}
    for name in ("a.nii.gz", "a.seg.nrrd", "a.dcm", "contours.dcm"):
        found = match(meant, read_label_map(tmp_path / name, series.grid)).reference
        assert np.array_equal(found.array, meant.array), name
    with pytest.raises(InputError, match=r"labels\.needs_grid"):
        read_label_map(tmp_path / "contours.dcm")
    rows = list(csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8")))
    assert rows == [
        {key: str(value) for key, value in row.items()} for row in json.loads((tmp_path / "a.json").read_text())
    ]
    assert rows[1]["name"] == "Größe"
    assert int(rows[1]["voxels"]) == np.count_nonzero(meant.array == 5)
    with pytest.raises(OutputError, match=r"output\.format"):
        write_label_map(meant, tmp_path / "a.xyz")


def test_no_half_a_file_is_left(series: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: object, **__: object) -> Segmentation:
        other = labelled(series.grid)
        return replace(other, array=np.roll(np.minimum(other.array, 1), 1, axis=0))

    for place in ("dicom.seg_write.read_dicom_seg", "nrrd.read_seg_nrrd", "dicom.rtstruct_write.read_rtstruct"):
        monkeypatch.setattr(f"napari_seg.formats.{place}", changed)
    before = sorted(tmp_path.iterdir())
    names: Sequence[tuple[str, str]] = [("x.dcm", "seg"), ("x.dcm", "rtstruct"), ("x.seg.nrrd", "seg")]
    for name, kind in names:
        with pytest.raises(OutputError, match=r"output\.not_equal"):
            write_label_map(labelled(series.grid), tmp_path / name, scan=series.source, dicom=kind)
    assert sorted(tmp_path.iterdir()) == before


def test_results_are_no_scans(series: Volume, tmp_path: Path) -> None:
    meant = labelled(series.grid)
    write_label_map(meant, tmp_path / "series" / "a.dcm", scan=series.source)
    write_label_map(meant, tmp_path / "series" / "b.dcm", scan=series.source, dicom="rtstruct")
    write_label_map(meant, tmp_path / "series" / "c.seg.nrrd")
    assert len(find_scans(tmp_path / "series")) == 1


def test_marks_among_contours_do_not_count(series: Volume, tmp_path: Path) -> None:
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    path = tmp_path / "contours.dcm"
    write_rtstruct(Segmentation(labels, series.grid, (Segment(1, "box", (255, 0, 0)),)), series.source, path)
    dataset = pydicom.dcmread(path)
    mark = copy.deepcopy(dataset.ROIContourSequence[0].ContourSequence[0])
    mark.ContourGeometricType, mark.NumberOfContourPoints, mark.ContourData = "POINT", 1, [1000, 1000, 1000]
    dataset.ROIContourSequence[0].ContourSequence.append(mark)
    dataset.save_as(path)
    assert np.array_equal(read_rtstruct(path, series.grid).array, labels)


def test_words_in_place_of_dates_are_not_passed_on(head: Volume, tmp_path: Path) -> None:
    def spoil(k: int, dataset: pydicom.Dataset) -> None:
        dataset.PatientBirthDate, dataset.StudyTime, dataset.PatientSex = "CANARY", "CANARY", "CANARY"

    phantoms.write_series(head, tmp_path / "series", edit=spoil)
    volume = read(tmp_path / "series")
    labels = (volume.array[0] > 500).astype(np.uint8)
    segmentation = Segmentation(labels, volume.grid, (Segment(1, "bright", (255, 0, 0)),))
    for write, name in ((write_dicom_seg, "seg.dcm"), (write_rtstruct, "contours.dcm")):
        write(segmentation, volume.source, tmp_path / name)
        assert b"CANARY" not in (tmp_path / name).read_bytes()


def test_segments_of_like_names_get_surfaces_of_their_own(tmp_path: Path) -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:4, 1:4, 1:4], labels[5:8, 5:8, 5:8] = 1, 2
    segments = (Segment(1, "Kidney (L)", (255, 0, 0)), Segment(2, "kidney L", (0, 255, 0)))
    written = write_label_map(Segmentation(labels, Grid(labels.shape, np.eye(4)), segments), tmp_path / "s.stl")
    assert [path.name for path in written] == ["s_1_Kidney_L.stl", "s_2_kidney_L.stl"]


def test_a_segmentation_that_is_cut_is_refused(series: Volume, tmp_path: Path) -> None:
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    path = tmp_path / "seg.dcm"
    write_dicom_seg(Segmentation(labels, series.grid, (Segment(1, "box", (255, 0, 0)),)), series.source, path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"file\.(truncated|bad_header)"):
        read_dicom_seg(path)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_dcmqi_reads_the_same_labels_at_the_same_place(any_series: Volume, tmp_path: Path, kind: str) -> None:
    """Needs `pip install dcmqi`."""
    program = Path(pytest.importorskip("dcmqi").__file__).parent / "bin" / "segimage2itkimage"
    meant = labelled(any_series.grid)
    write_dicom_seg(meant, any_series.source, tmp_path / "seg.dcm", kind=kind)
    (tmp_path / "out").mkdir()
    words = ["--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path / "out", "--mergeSegments"]
    done = subprocess.run([str(word) for word in (program, *words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (image,) = (tmp_path / "out").glob("*.nrrd")
    found = on_grid(read_label_map(image), meant.grid, image)
    numbers = (1, 2, 3) if kind == "binary" else (1, 5, 7)
    for segment, number in zip(SEGMENTS, numbers, strict=True):
        assert np.array_equal(found.array == number, meant.array == segment.label), segment.name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_folder_whose_name_is_not_utf8_gets_the_labels_too(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    meant = labelled(Grid((6, 5, 4), np.diag([1.0, 1.5, 2.0, 1.0])))
    write_label_map(meant, folder / "x.seg.nrrd")
    found = read_label_map(folder / "x.seg.nrrd")
    assert np.array_equal(found.array, meant.array)
    assert [one.name for one in found.segments] == [one.name for one in SEGMENTS]
    assert list(folder.iterdir()) == [folder / "x.seg.nrrd"]


@pytest.mark.parametrize("name", ["liver ", " liver", "a\\new", "a\\\\n", "\\"])
def test_names_with_spaces_and_backslashes_come_back_in_seg_nrrd(tmp_path: Path, name: str) -> None:
    grid = Grid((2, 2, 2), np.eye(4))
    one = Segmentation(np.ones(grid.shape, np.uint8), grid, (Segment(1, name, (1, 2, 3)),))
    write_seg_nrrd(one, tmp_path / "x.seg.nrrd")
    assert read_seg_nrrd(tmp_path / "x.seg.nrrd").segments[0].name == name


def test_an_empty_structure_with_a_large_label_is_written_as_contours(series: Volume, tmp_path: Path) -> None:
    meant = labelled(series.grid)
    large = replace(meant, segments=(*SEGMENTS, Segment(1035, "cortex", (1, 2, 3))))
    write_rtstruct(large, series.source, tmp_path / "x.dcm")
    assert [one.name for one in read_rtstruct(tmp_path / "x.dcm", series.grid).segments][-1] == "cortex"
