"""What a volume carries so that segmentations and contours of it refer to its images without reading them again."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest

from napari_seg.errors import OutputError
from napari_seg.formats.dicom import headers
from napari_seg.formats.dicom.read import series_reader
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.read import read
from napari_seg.volume import Segment, Segmentation, Source, Volume


def labels_of(volume: Volume) -> Segmentation:
    array = np.zeros(volume.grid.shape, np.uint8)
    array[4:9, 5:12, 3:7] = 1
    return Segmentation(array, volume.grid, (Segment(1, "box", (255, 0, 0)),))


def references(path: Path) -> list[tuple[str, Any]]:
    """Return the identifiers of the images that a result refers to, in the order in which it does."""
    dataset, found = pydicom.dcmread(path), []

    def note(_: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.keyword in ("ReferencedSOPInstanceUID", "ReferencedFrameNumber", "FrameOfReferenceUID"):
            found.append((element.keyword, element.value))

    dataset.walk(note)
    return found


@pytest.mark.parametrize("kind", ["seg", "labelmap", "rtstruct"])
def test_headers_are_parsed_once_and_the_geometry_is_solved_once(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    paths = phantoms.write_series(head, tmp_path / "series")
    headers._read_header.cache_clear()
    parsed, solved = Counter[Path](), Counter[str]()
    parse, dcmread = pydicom.filereader.read_partial, pydicom.dcmread

    def counted(stream: Any, *args: Any, **options: Any) -> Any:
        parsed[Path(stream.name)] += 1
        return parse(stream, *args, **options)

    plain = headers._parse_plain

    def counted_plain(stream: Any) -> Any:
        found = plain(stream)
        parsed[Path(stream.name)] += found is not None
        return found

    monkeypatch.setattr(pydicom.filereader, "read_partial", counted)
    monkeypatch.setattr(headers, "_parse_plain", counted_plain)
    (scan,) = find_scans(tmp_path / "series")
    read_here = series_reader(scan.files, name=scan.name)
    assert parsed == Counter(paths)  # found and handed over to the worker

    from napari_seg.formats.dicom import read as module

    arrange = module.arrange

    def arranged(*args: Any, **options: Any) -> Any:
        solved["arrange"] += 1
        return arrange(*args, **options)

    monkeypatch.setattr(module, "arrange", arranged)
    volume = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(read_here))(scan.files)))
    assert np.array_equal(volume.array, head.array)
    assert parsed == Counter(paths)
    assert solved == {"arrange": 1}
    write_label_map(labels_of(volume), tmp_path / "out.dcm", scan=volume.source, dicom=kind)  # type: ignore[arg-type]
    again = {path: count for path, count in (parsed - Counter(paths)).items() if path in paths}
    assert again == {volume.source.files[0]: 1}  # for the attributes of the patient and the study
    assert solved == {"arrange": 1}
    assert dcmread(tmp_path / "out.dcm").PatientName


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_results_refer_to_the_same_images_whether_these_are_read_or_only_named(
    tmp_path: Path, head: Volume, kind: str
) -> None:
    phantoms.write_series(head, tmp_path / "series", slices=range(14)[::-1])
    volume = read(tmp_path / "series")
    named = Source("dicom", tuple(sorted(volume.source.files)))
    for scan, name in ((volume.source, "a.dcm"), (named, "b.dcm")):
        write_label_map(labels_of(volume), tmp_path / name, scan=scan, dicom=kind)  # type: ignore[arg-type]
    found = references(tmp_path / "a.dcm")
    assert found == references(tmp_path / "b.dcm")
    assert volume.source.stack is not None
    assert volume.source.stack.solved is not None
    instances = [pydicom.dcmread(path).SOPInstanceUID for path in volume.source.files]
    assert [one.sop_instance_uid for one in volume.source.stack.solved.instances] == instances
    assert {uid for keyword, uid in found if keyword == "ReferencedSOPInstanceUID"} >= set(instances)


def test_the_first_image_alone_is_read_again(tmp_path: Path, head: Volume) -> None:
    phantoms.write_series(head, tmp_path / "series")
    volume = read(tmp_path / "series")
    write_label_map(labels_of(volume), tmp_path / "a.dcm", scan=volume.source)
    for path in volume.source.files[1:]:
        path.unlink()
    write_label_map(labels_of(volume), tmp_path / "b.dcm", scan=volume.source)
    assert references(tmp_path / "a.dcm") == references(tmp_path / "b.dcm")


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_images_that_are_gone_or_replaced_are_refused(tmp_path: Path, head: Volume, kind: str) -> None:
    phantoms.write_series(head, tmp_path / "series")
    volume = read(tmp_path / "series")
    first = volume.source.files[0]
    dataset = pydicom.dcmread(first)
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.save_as(first)
    with pytest.raises(OutputError, match=r"output\.no_dicom.*replaced after it was read"):
        write_label_map(labels_of(volume), tmp_path / "out.dcm", scan=volume.source, dicom=kind)  # type: ignore[arg-type]
    first.unlink()
    with pytest.raises(OutputError, match=r"output\.no_dicom.*is its folder there"):
        write_label_map(labels_of(volume), tmp_path / "out.dcm", scan=volume.source, dicom=kind)  # type: ignore[arg-type]
    assert not (tmp_path / "out.dcm").exists()


def test_images_in_different_frames_of_reference_are_refused(tmp_path: Path, head: Volume) -> None:
    def scatter(k: int, dataset: pydicom.Dataset) -> None:
        dataset.FrameOfReferenceUID = pydicom.uid.generate_uid()

    phantoms.write_series(head, tmp_path / "series", edit=scatter)
    volume = read(tmp_path / "series")
    with pytest.raises(OutputError, match=r"output\.no_dicom.*no FrameOfReferenceUID that all its images share"):
        write_label_map(labels_of(volume), tmp_path / "out.dcm", scan=volume.source)


def test_images_that_fill_no_grid_are_refused(tmp_path: Path, head: Volume) -> None:
    phantoms.write_series(head, tmp_path / "series")
    volume = read(tmp_path / "series")
    named = Source("dicom", tuple(path for n, path in enumerate(volume.source.files) if n != 5))
    with pytest.raises(OutputError, match=r"output\.no_dicom.*missing between"):
        write_label_map(labels_of(volume), tmp_path / "out.dcm", scan=named)


def test_a_source_is_small_and_private(tmp_path: Path, head: Volume) -> None:
    phantoms.write_series(head, tmp_path / "series")
    volume = read(tmp_path / "series")
    stack = pickle.dumps(volume.source.stack)
    assert len(stack) < 300 * head.grid.shape[2] + 2000
    assert not any(canary.encode() in pickle.dumps(volume.source) for canary in phantoms.CANARIES)
    uid = pydicom.dcmread(volume.source.files[0]).SOPInstanceUID
    assert uid.encode() in stack
    assert uid not in repr(volume)
