"""Volumes at the same positions are distinguished by times, echoes or b-values, never by irregular instance numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from phantoms import write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.scan import Scan
from napari_seg.volume import Segment, Segmentation, Volume

SLICES = 5
ORDER = np.random.default_rng(3).permutation(2 * SLICES)
"""Of the frames of an enhanced object: the first half are of its first volume."""


@pytest.fixture
def small(head: Volume) -> Volume:
    return Volume(head.array[..., 4 : 4 + SLICES], head.grid.box((0, 0, 4), (20, 26, 4 + SLICES)))


def scaled(volume: Volume, t: int) -> Volume:
    return Volume(volume.array + np.int16(1000 * t), volume.grid)


def write_dynamic(
    volume: Volume, folder: Path, count: int, mark: Callable[[int, int, Dataset], None], numbers: Sequence[int] = ()
) -> Scan:
    """`count` volumes in one series, the later ones brighter, with instance numbers in an order that tells nothing."""
    series = generate_uid()
    numbers = numbers or np.random.default_rng(5).permutation(count * SLICES).tolist()

    for t in range(count):

        def edit(k: int, dataset: Dataset, t: int = t) -> None:
            dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = "1.2.3"
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series, generate_uid()
            dataset.InstanceNumber = numbers[t * SLICES + k] + 1
            mark(t, k, dataset)

        write_series(scaled(volume, t), folder, edit=edit, file_name=f"t{t}-{{:04d}}")
    (scan,) = find_scans(folder)
    return scan


def assign(keyword: str, values: Sequence[Any]) -> Callable[[int, int, Dataset], None]:
    return lambda t, k, dataset: setattr(dataset, keyword, values[t])


def add_private(tag: int, vr: str, values: Sequence[Any]) -> Callable[[int, int, Dataset], None]:
    return lambda t, k, dataset: dataset.add_new(Tag(tag), vr, values[t])


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (assign("TemporalPositionIdentifier", [1, 2, 3]), "TemporalPositionIdentifier 1, 2, 3"),
        (assign("FrameReferenceTime", [1000, 61000, 121000]), "FrameReferenceTime 1000, 61000, 121000 ms"),
        (assign("AcquisitionNumber", [1, 2, 11]), "AcquisitionNumber 1, 2, 11"),
        (assign("EchoTime", [2.46, 4.92, 12.3]), "EchoTime 2.46, 4.92, 12.3 ms"),
        (assign("TriggerTime", [0, 95, 800]), "TriggerTime 0, 95, 800 ms"),
        (assign("DiffusionBValue", [0, 50, 1000]), "DiffusionBValue 0, 50, 1000 s/mm2"),
        (assign("InversionTime", [100, 200, 2000]), "InversionTime 100, 200, 2000 ms"),
        (assign("FlipAngle", [2, 5, 15]), "FlipAngle 2, 5, 15 degrees"),
        (assign("AcquisitionTime", ["120000", "120001.5", "120100"]), "AcquisitionTime 120000, 120001.5, 120100"),
        (
            assign("AcquisitionTime", ["083000.10", "083000.15", "083000.2"]),
            "AcquisitionTime 83000.1, 83000.15, 83000.2",
        ),
        (
            assign("AcquisitionDateTime", ["20200101235959", "20200102000001", "20200102000002"]),
            "AcquisitionDateTime 20200101235959, 20200102000001, 20200102000002",
        ),
        (assign("ComplexImageComponent", ["MAGNITUDE", "MIXED", "PHASE"]), "MAGNITUDE, MIXED, PHASE"),
        (add_private(0x00431039, "IS", [[0, 8, 0], [50, 8, 0], [1000, 8, 0]]), "b-value (GE), 3 different ones"),
        (assign("ConvolutionKernel", ["B30f", "B45f", "B70f"]), "ConvolutionKernel B30f, B45f, B70f"),
        (assign("SeriesTime", ["100000", "100100", "100200"]), "SeriesTime 100000, 100100, 100200"),
        (add_private(0x0019100C, "IS", [0, 50, 1000]), "b-value 0, 50, 1000 s/mm2"),
        (add_private(0x0019100C, "UN", [b"0 ", b"50", b"1000"]), "b-value 0, 50, 1000 s/mm2"),
    ],
)
def test_volumes_are_distinguished_by_attributes_that_differ(
    tmp_path: Path, small: Volume, mark: Callable[[int, int, Dataset], None], words: str
) -> None:
    scan = write_dynamic(small, tmp_path, 3, mark)
    with pytest.raises(ChoiceNeeded) as caught:
        scan.read()
    assert (caught.value.code, caught.value.count) == ("series.4d", 3)
    assert words in caught.value.message
    for t in range(3):
        volume = scan.read(volume=t)
        assert np.array_equal(volume.array, scaled(small, t).array)
        assert {path.name[:2] for path in volume.source.files} == {f"t{t}"}


def test_several_attributes_distinguish_volumes_together(tmp_path: Path, small: Volume) -> None:
    def mark(t: int, k: int, dataset: Dataset) -> None:
        dataset.TemporalPositionIdentifier, dataset.EchoTime = t // 2 + 1, [3, 8][t % 2]

    scan = write_dynamic(small, tmp_path, 4, mark)
    with pytest.raises(ChoiceNeeded, match=r"TemporalPositionIdentifier 1, 2 and EchoTime 3, 8 ms"):
        scan.read()
    for t in range(4):
        assert np.array_equal(scan.read(volume=t).array, scaled(small, t).array)


def test_gradient_directions_distinguish_volumes_of_one_b_value(tmp_path: Path, small: Volume) -> None:
    directions = [None, [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]

    def mark(t: int, k: int, dataset: Dataset) -> None:
        dataset.DiffusionBValue = 1000.0 if t else 0.0
        if directions[t]:
            dataset.DiffusionGradientOrientation = directions[t]

    scan = write_dynamic(small, tmp_path, 4, mark)
    seen = [int(scan.read(volume=t).array.min() // 1000) for t in range(4)]
    lowest = {path.name[:2]: [] for path in scan.files}
    for path in scan.files:
        lowest[path.name[:2]].append(int(pydicom.dcmread(path).InstanceNumber))
    # no direction comes before another: in the order of their first numbers, behind that without any
    assert seen == [0, *sorted((1, 2, 3), key=lambda t: min(lowest[f"t{t}"]))]


def test_volumes_before_and_after_midnight_come_in_order(tmp_path: Path, small: Volume) -> None:
    def mark(t: int, k: int, dataset: Dataset) -> None:
        dataset.AcquisitionDate, dataset.AcquisitionTime = [("20200101", "235959"), ("20200102", "000001")][t]

    scan = write_dynamic(small, tmp_path, 2, mark)
    assert [int(scan.read(volume=t).array.min() // 1000) for t in range(2)] == [0, 1]


@pytest.mark.parametrize(
    "mark",
    [
        assign("SequenceName", ["*ep_b0", "*ep_b1000#1", "*ep_b1000#2"]),
        add_private(0x001910BC, "DS", [0.0, 0.5, -0.5]),
    ],
)
def test_directions_in_other_attributes_distinguish_volumes(tmp_path: Path, small: Volume, mark: Any) -> None:
    scan = write_dynamic(small, tmp_path, 3, mark)
    found = [scan.read(volume=t) for t in range(3)]
    seen = [int(volume.array.min() // 1000) for volume in found]
    assert sorted(seen) == [0, 1, 2]
    for t, volume in zip(seen, found, strict=True):
        assert np.array_equal(volume.array, scaled(small, t).array)


def refused(scan: Scan) -> str:
    for volume in (None, 0):
        with pytest.raises(InputError) as caught:
            scan.read(volume=volume)
        assert caught.value.code == "series.4d"
        assert not isinstance(caught.value, ChoiceNeeded)
    return caught.value.message


@pytest.mark.parametrize(
    "mark",
    [
        lambda t, k, dataset: None,
        lambda t, k, dataset: setattr(dataset, "FrameReferenceTime", 1000 * t + 10 * k),
        lambda t, k, dataset: setattr(dataset, "EchoTime", 3 if k == 2 else [3, 8][t]),
    ],
)
def test_volumes_without_a_distinguishing_attribute_are_refused(tmp_path: Path, small: Volume, mark: Any) -> None:
    assert "no attribute distinguishes" in refused(write_dynamic(small, tmp_path, 2, mark))


def test_attributes_that_contradict_each_other_are_refused(tmp_path: Path, small: Volume) -> None:
    def mark(t: int, k: int, dataset: Dataset) -> None:
        dataset.TemporalPositionIdentifier, dataset.FrameReferenceTime = t + 1, [1000, 61000][(t + (k == 2)) % 2]

    message = refused(write_dynamic(small, tmp_path, 2, mark))
    assert "FrameReferenceTime and TemporalPositionIdentifier disagree" in message


def test_instance_numbers_of_one_volume_after_the_other_distinguish_them(tmp_path: Path, small: Volume) -> None:
    scan = write_dynamic(small, tmp_path, 3, lambda t, k, dataset: None, list(range(3 * SLICES)))
    with pytest.raises(ChoiceNeeded, match="order of instance numbers"):
        scan.read()
    for t in range(3):
        assert np.array_equal(scan.read(volume=t).array, scaled(small, t).array)


def test_instance_numbers_of_one_position_after_the_other_distinguish_nothing(tmp_path: Path, small: Volume) -> None:
    numbers = [n % SLICES * 3 + n // SLICES for n in range(3 * SLICES)]
    scan = write_dynamic(small, tmp_path, 3, lambda t, k, dataset: None, numbers)
    assert "no attribute distinguishes" in refused(scan)


def test_an_attribute_that_contradicts_regular_numbers_is_refused(tmp_path: Path, small: Volume) -> None:
    """At every position but one it tells the volumes apart, otherwise than the numbers."""

    def mark(t: int, k: int, dataset: Dataset) -> None:
        dataset.TemporalPositionIdentifier = 1 if k == 2 else (t + k) % 3 + 1

    scan = write_dynamic(small, tmp_path, 3, mark, range(3 * SLICES))
    assert "no attribute distinguishes" in refused(scan)


# enhanced objects


def frame_content(t: int) -> Mapping[str, Any]:
    content = Dataset()
    content.TemporalPositionIndex = t + 1
    return {"FrameContentSequence": [content]}


def echo(t: int) -> Mapping[str, Any]:
    item = Dataset()
    item.EffectiveEchoTime = [2.46, 4.92][t]
    return {"MREchoSequence": [item]}


def b_value(t: int) -> Mapping[str, Any]:
    item, direction = Dataset(), Dataset()
    direction.DiffusionGradientOrientation = [[1.0, 0, 0], [0, 1.0, 0]][t]
    item.DiffusionBValue, item.DiffusionGradientDirectionSequence = 1000.0, [direction]
    return {"MRDiffusionSequence": [item]}


def cardiac(t: int) -> Mapping[str, Any]:
    item = Dataset()
    item.NominalCardiacTriggerDelayTime = 40.0 * t
    return {"CardiacSynchronizationSequence": [item]}


def component(t: int) -> Mapping[str, Any]:
    item = Dataset()
    item.ComplexImageComponent = ["MAGNITUDE", "PHASE"][t]
    return {"MRImageFrameTypeSequence": [item]}


def energy(t: int) -> Mapping[str, Any]:
    item = Dataset()
    item.KVP = [80.0, 140.0][t]
    return {"CTXRayDetailsSequence": [item]}


def unexplained(t: int) -> Mapping[str, Any]:
    content = Dataset()
    content.DimensionIndexValues = [1, t + 1]  # no DimensionIndexSequence says of what
    return {"FrameContentSequence": [content]}


def dimensions(t: int) -> Mapping[str, Any]:
    content = Dataset()
    content.DimensionIndexValues = [1, 0, t + 1]  # the second is set for each slice
    return {"FrameContentSequence": [content]}


def write_enhanced_volumes(volume: Volume, path: Path, groups: Callable[[int], Mapping[str, Any]]) -> None:
    """One enhanced file of two volumes whose frames are shuffled."""
    order = ORDER
    both = np.concatenate([scaled(volume, t).array for t in (0, 1)], axis=-1)
    write_enhanced(volume, path, order=[n % SLICES for n in order])
    dataset = pydicom.dcmread(path)
    dataset.InstanceNumber = 1
    for n, frame in zip(order, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        for keyword, items in groups(int(n) // SLICES).items():
            setattr(frame, keyword, Items(items))
        if groups is dimensions:
            values = [*frame.FrameContentSequence[0].DimensionIndexValues]
            frame.FrameContentSequence[0].DimensionIndexValues = [values[0], int(n) % SLICES + 1, values[2]]
    if groups is dimensions:
        pointers = [Dataset() for _ in range(3)]
        for pointer, tag in zip(pointers, (0x00209056, 0x00209057, 0x00209128), strict=True):
            pointer.DimensionIndexPointer, pointer.FunctionalGroupPointer = tag, 0x00209111
        dataset.DimensionIndexSequence = pointers
    dataset.PixelData = np.stack([both[0, :, :, n].T for n in order]).astype("<i2").tobytes()
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (frame_content, "TemporalPositionIndex 1, 2"),
        (echo, "EffectiveEchoTime 2.46, 4.92 ms"),
        (b_value, "DiffusionGradientOrientation, 2 different ones"),
        (component, "ComplexImageComponent MAGNITUDE, PHASE"),
        (energy, "KVP 80, 140 kV"),
        (cardiac, "NominalCardiacTriggerDelayTime 0, 40 ms"),
        (unexplained, "dimension index 02 1, 2"),
        (dimensions, "dimension index 03 1, 2"),
    ],
)
def test_frames_of_enhanced_objects_are_distinguished_by_their_groups(
    tmp_path: Path, small: Volume, groups: Callable[[int], Mapping[str, Any]], words: str
) -> None:
    write_enhanced_volumes(small, tmp_path / "mf", groups)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded) as caught:
        scan.read()
    assert words in caught.value.message
    first, second = (0, 1) if groups is not b_value or ORDER[0] < SLICES else (1, 0)
    assert np.array_equal(scan.read(volume=0).array, scaled(small, first).array)
    assert np.array_equal(scan.read(volume=1).array, scaled(small, second).array)


def test_frames_without_a_distinguishing_attribute_are_refused(tmp_path: Path, small: Volume) -> None:
    write_enhanced_volumes(small, tmp_path / "mf", lambda t: {})
    (scan,) = find_scans(tmp_path)
    assert "no attribute distinguishes" in refused(scan)


def labelled(volume: Volume) -> Segmentation:
    array = (volume.array[0] % 1000 > 500).astype(np.uint8)
    return Segmentation(array, volume.grid, (Segment(1, "bright", (255, 0, 0)),))


@pytest.mark.parametrize("kind", ["seg", "labelmap", "rtstruct"])
@pytest.mark.parametrize("chosen", [0, 1])
def test_references_point_to_the_frames_of_the_chosen_volume(
    tmp_path: Path, small: Volume, kind: Any, chosen: int
) -> None:
    write_enhanced_volumes(small, tmp_path / "mf", frame_content)
    (scan,) = find_scans(tmp_path / "mf")
    volume = scan.read(volume=chosen)
    path = tmp_path / "labels.dcm"
    write_label_map(labelled(volume), path, scan=volume.source, dicom=kind)
    source = pydicom.dcmread(tmp_path / "mf").PerFrameFunctionalGroupsSequence
    of_frame = {n: int(frame.FrameContentSequence[0].TemporalPositionIndex) - 1 for n, frame in enumerate(source, 1)}
    written = pydicom.dcmread(path)
    chosen_frames = sorted(number for number, t in of_frame.items() if t == chosen)
    if kind == "rtstruct":
        study = written.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        assert study.RTReferencedSeriesSequence[0].ContourImageSequence[0].ReferencedFrameNumber == chosen_frames
        referred = [
            contour.ContourImageSequence[0].ReferencedFrameNumber
            for contour in written.ROIContourSequence[0].ContourSequence
        ]
    else:
        assert written.SourceImageSequence[0].ReferencedFrameNumber == chosen_frames
        images = [
            frame.DerivationImageSequence[0].SourceImageSequence[0]
            for frame in written.PerFrameFunctionalGroupsSequence
        ]
        referred = [image.ReferencedFrameNumber for image in images]
        for frame, number in zip(written.PerFrameFunctionalGroupsSequence, referred, strict=True):
            there = source[int(number) - 1].PlanePositionSequence[0].ImagePositionPatient
            assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, there, atol=1e-4)
    assert referred
    assert {of_frame[int(number)] for number in referred} == {chosen}


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_references_point_to_the_files_of_the_chosen_volume(tmp_path: Path, small: Volume, kind: Any) -> None:
    scan = write_dynamic(small, tmp_path / "series", 2, assign("EchoTime", [3, 8]))
    volume = scan.read(volume=1)
    write_label_map(labelled(volume), tmp_path / "x.dcm", scan=volume.source, dicom=kind)
    text = str(pydicom.dcmread(tmp_path / "x.dcm"))
    uids = {path.name[:2]: [] for path in scan.files}
    for path in scan.files:
        uids[path.name[:2]].append(str(pydicom.dcmread(path).SOPInstanceUID))
    assert not any(uid in text for uid in uids["t0"])
    assert any(uid in text for uid in uids["t1"])
    if kind == "seg":
        found = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(tmp_path / "x.dcm"))
        assert {str(uid) for _, _, uid in found.get_source_image_uids()} <= set(uids["t1"])
