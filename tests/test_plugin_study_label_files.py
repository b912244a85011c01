"""Files of labels in the Study tab and the reader: on the scan to which they belong, whichever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.errors import InputError
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.nifti import write_map, write_nifti
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.plugin.labels_on_scan import on_scan
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of, volume_of
from napari_seg.plugin.layers import image_layers, layer_of
from napari_seg.plugin.reader import read_layers
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.entries import Entry
from napari_seg.plugin.study.label_files import read_labels
from napari_seg.plugin.study.model import StudyModel
from napari_seg.volume import NO_SOURCE, Segment, Segmentation, Volume

SEGMENTS = (Segment(1, "ball", (255, 0, 0)), Segment(2, "nose", (0, 128, 255)))


VIEWERS: list[ViewerModel] = []
"""Holds the viewer of each test: sessions don't."""


@pytest.fixture(autouse=True)
def viewer() -> Iterator[ViewerModel]:
    VIEWERS.append(ViewerModel())
    yield VIEWERS[-1]
    VIEWERS.pop()


@pytest.fixture
def study(head: Volume, tmp_path: Path) -> Path:
    """A series, and labels of it in each format."""
    root = tmp_path / "study"
    phantoms.write_series(head, root / "series")
    scan = read(root / "series")
    found = Segmentation(labels_of(scan), scan.grid, SEGMENTS)
    write_label_map(found, root / "found.dcm", scan=scan.source)
    write_label_map(found, root / "contours.dcm", scan=scan.source, dicom="rtstruct")
    write_label_map(found, root / f"{scan.name}_seg.nii.gz")
    (root / f"{scan.name}_seg.json").write_text('{"program": "napari-seg 0.1.0", "segments": []}')
    write_label_map(found, root / "slicer.seg.nrrd")
    write_label_map(replace(found, segments=()), root / "plain.nii.gz")
    return root


def labels_of(scan: Volume) -> np.ndarray:
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[3:9, 4:12, 2:8] = 1
    labels[10:14, 4:12, 3:6] = 2
    return labels


def looked(path: Path) -> tuple[StudyModel, dict[str, Entry]]:
    model = StudyModel(Session(VIEWERS[-1]))
    model.list_path(path)
    model.session.jobs.wait()
    return model, {Path(entry.verdict.path).name: entry for entry in model.entries}


def open_scan(model: StudyModel, entry: Entry) -> None:
    model.show(model.read(entry, entry.read_options(0), model.frame()))


def open_labels(model: StudyModel, entry: Entry, path: Path | None = None) -> None:
    file = path or entry.labels
    assert file is not None
    model.show(model.read_labels(entry, file, model.scans(), model.frame()))


def test_rows_say_of_which_scan_labels_are(study: Path) -> None:
    model, found = looked(study)
    scan = next(entry for entry in model.entries if entry.labels is None and entry.folder == "series")
    name = scan.verdict.name
    assert found["found.dcm"].title == f"segmentation of {name}"
    assert found["contours.dcm"].title == f"contours of {name}"
    assert found[f"{name}_seg.nii.gz"].title == f"segmentation of {name}"
    assert found["slicer.seg.nrrd"].title == "slicer.seg.nrrd"
    assert all(found[file].can_open for file in ("found.dcm", "contours.dcm", "slicer.seg.nrrd"))
    assert found["plain.nii.gz"].can_be_labels
    assert not found["found.dcm"].can_be_labels


@pytest.mark.parametrize("file", ["found.dcm", "contours.dcm", "slicer.seg.nrrd", "plain.nii.gz"])
def test_labels_lie_on_the_open_scan(study: Path, file: str) -> None:
    model, found = looked(study)
    open_scan(model, found["series"])
    open_labels(model, found[file], study / file)
    scan, labels = model.session.viewer.layers
    assert isinstance(labels, Labels)
    assert labels.data.shape == scan.data.shape
    assert volume_of(scan).grid.matches(placement_of(labels).native)  # type: ignore[union-attr]
    assert LayerInfo.require(labels).scan == volume_of(scan).source  # type: ignore[union-attr]
    np.testing.assert_array_equal(placement_of(labels).restore(labels.data) > 0, labels_of(volume_of(scan)) > 0)  # type: ignore[arg-type]


def test_a_seg_opened_before_its_scan_goes_onto_its_grid(study: Path) -> None:
    model, found = looked(study)
    open_labels(model, found["found.dcm"])
    (alone,) = model.session.viewer.layers
    assert alone.data.shape != labels_of(read(study / "series")).shape  # empty slices are left out
    state_of(alone).edits = 1
    open_scan(model, found["series"])
    scan, labels = model.session.viewer.layers
    assert isinstance(labels, Labels)
    assert labels.data.shape == scan.data.shape
    assert LayerInfo.require(labels).scan == volume_of(scan).source  # type: ignore[union-attr]
    assert state_of(labels).is_unsaved


def test_a_scan_does_not_cover_labels_that_were_opened_before_it(study: Path) -> None:
    model, found = looked(study)
    open_labels(model, found["plain.nii.gz"], study / "plain.nii.gz")
    open_scan(model, found["series"])
    scan, labels = model.session.viewer.layers
    assert volume_of(scan) is not None  # type: ignore[arg-type]
    assert isinstance(labels, Labels)
    open_scan(model, found["series"])  # such as another sequence with the same voxels
    assert model.session.viewer.layers[-1] is labels
    assert model.session.viewer.layers[0] is scan


def test_contours_bring_their_scan(study: Path) -> None:
    model, found = looked(study)
    open_labels(model, found["contours.dcm"])
    scan, labels = model.session.viewer.layers
    assert volume_of(scan) is not None
    np.testing.assert_array_equal(labels.data.shape, scan.data.shape)


def test_labels_of_another_frame_of_reference_do_not_go_onto_a_scan(head: Volume, study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    phantoms.write_series(head, other)
    for number, file in enumerate(sorted(other.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.FrameOfReferenceUID, dataset.SeriesInstanceUID = "1.2.3.4", "1.2.3.5"
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = "1.2.3.6", f"1.2.3.7.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file)
    model, found = looked(study)
    open_labels(model, found["found.dcm"])
    (labels,) = model.session.viewer.layers
    scan = model.session.viewer.add_layer(layer_of(image_layers(read(other))[0]))
    assert labels in model.session.viewer.layers
    assert LayerInfo.require(labels).scan == NO_SOURCE
    with pytest.raises(InputError) as caught:
        on_scan(Snapshot.of(labels), scan)
    assert caught.value.code == "geometry.other_frame_of_reference"


def test_overlapping_segments_become_several_layers(study: Path) -> None:
    from highdicom.seg import Segmentation as DicomSegmentation

    scan = read(study / "series")
    dataset = DicomSegmentation.from_dataset(pydicom.dcmread(study / "found.dcm"))
    frames = dataset.PerFrameFunctionalGroupsSequence
    of_nose = [n for n, f in enumerate(frames) if f.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2]
    pixels = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    pixels = pixels[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns].reshape(dataset.NumberOfFrames, -1)
    pixels[of_nose] = 1
    dataset.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    dataset.save_as(study / "both.dcm")
    read_back = read_labels(study / "both.dcm", [scan])
    assert [[s.name for s in one.segments] for one in read_back.maps] == [["ball"], ["nose"]]
    assert read_back.maps[0].voxel_counts()[1] == 6 * 8 * 6


def test_overlapping_layers_of_slicer_become_several_layers(tmp_path: Path) -> None:
    layers = np.zeros((2, 6, 5, 4), np.uint8)
    layers[0, 1:4, 1:4, 1:3] = layers[1, 2:6, 1:4, 1:3] = 1
    header = ["NRRD0004", "type: uint8", "dimension: 4", "space: left-posterior-superior", "sizes: 2 6 5 4"]
    header += ["space directions: none (1,0,0) (0,1,0) (0,0,2)", "kinds: list domain domain domain", "encoding: raw"]
    header += ["space origin: (0,0,0)"]
    for number, name in enumerate(("liver", "tumour")):
        header += [f"Segment{number}_ID:={name}", f"Segment{number}_Name:={name}"]
        header += [f"Segment{number}_Layer:={number}", f"Segment{number}_LabelValue:=1"]
    path = tmp_path / "two.seg.nrrd"
    path.write_bytes("\n".join(header).encode() + b"\n\n" + layers.tobytes(order="F"))
    found = read_labels(path, [])
    assert [[s.name for s in one.segments] for one in found.maps] == [["liver"], ["tumour"]]
    assert [sum(one.voxel_counts().values()) for one in found.maps] == [18, 24]


def test_labels_on_other_voxels_are_resampled_on_request(head: Volume) -> None:
    session = Session(VIEWERS[-1])
    coarse = head.grid.affine.copy()
    coarse[:3, :3] *= 2
    grid = Grid(tuple(n // 2 for n in head.grid.shape), coarse)  # type: ignore[arg-type]
    small = Volume(np.zeros((1, *grid.shape), np.int16), grid, name="small")
    for volume in (small, replace(head, name="large")):
        session.viewer.add_layer(layer_of(image_layers(volume, None)[0]))
    first, second = session.scans
    session.viewer.layers.selection.active = first
    session.viewer._new_labels()
    labels = session.labels
    assert labels is not None
    labels.data[2:5, 3:6, 2:6] = 1
    moved = on_scan(Snapshot.of(labels), second)
    assert placement_of(moved).native == head.grid
    voxels = {layer: np.count_nonzero(layer.data) * placement_of(layer).native.voxel_ml for layer in (labels, moved)}
    assert voxels[moved] == pytest.approx(voxels[labels], rel=0.2)


def test_a_dropped_seg_lies_on_the_open_scan(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = ViewerModel()
    monkeypatch.setattr("napari.viewer.current_viewer", lambda: viewer)
    scan = viewer.add_layer(layer_of(image_layers(read(study / "series"))[0]))
    ((data, settings, kind),) = read_layers(str(study / "found.dcm"))
    assert (kind, data.shape) == ("labels", scan.data.shape)
    labels = layer_of((data, settings, kind))
    assert LayerInfo.require(labels).scan == volume_of(scan).source  # type: ignore[union-attr]


def test_nifti_with_names_in_its_header_opens_as_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari.viewer.current_viewer", lambda: None)
    array = np.zeros((4, 3, 2), np.uint8)
    array[1] = 5
    found = Segmentation(array, Grid((4, 3, 2), np.eye(4)), (Segment(5, "liver", (255, 0, 0)),))
    write_nifti(found, tmp_path / "total.nii.gz")
    ((_, settings, kind),) = read_layers(str(tmp_path / "total.nii.gz"))
    assert kind == "labels"
    assert [one.name for one in LayerInfo.in_settings(settings).segments] == ["liver"]  # type: ignore[union-attr]


def test_a_folder_of_masks_opens_as_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari.viewer.current_viewer", lambda: None)
    for row, name in enumerate(("liver", "spleen")):
        array = np.zeros((4, 3, 2), np.uint8)
        array[row] = 1
        write_map(array, Grid((4, 3, 2), np.eye(4)), tmp_path / f"{name}.nii.gz")
    ((_, settings, kind),) = read_layers(str(tmp_path))
    assert kind == "labels"
    assert [one.name for one in LayerInfo.in_settings(settings).segments] == ["liver", "spleen"]  # type: ignore[union-attr]
    write_map(np.arange(24, dtype=np.uint8).reshape(4, 3, 2), Grid((4, 3, 2), np.eye(4)), tmp_path / "mr.nii.gz")
    assert [kind for _, _, kind in read_layers(str(tmp_path))] == ["image"] * 3
