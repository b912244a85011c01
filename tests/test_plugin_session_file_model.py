"""Sessions: saved as one file, opened again as they were, without names of people."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.plugin import kept_data
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of, volume_of
from napari_seg.plugin.layers import confidence_layer, image_layers, labels_layer, layer_of
from napari_seg.plugin.placement import PLANES, place
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.session_file import restore
from napari_seg.plugin.session_file.archive import read_content
from napari_seg.plugin.session_file.model import SessionFileModel
from napari_seg.plugin.session_file.restore import open_session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import ConfidenceMaps, Segmentation, Volume

PATIENT = ("DOE^JANE", "Doe", "JANE", "doe", "jane", "4711-0815")


def viewer_on(path: Path, name: str | None = None) -> tuple[ViewerModel, SessionFileModel]:
    """Return a viewer that shows a scan and a model's result on it, and its session file model."""
    viewer = ViewerModel()
    model = SessionFileModel(session := Session(viewer), SegmentModel(session))
    volume = read(path)
    for one in image_layers(volume):
        viewer.add_layer(layer_of(one))
    scan = viewer.layers[0]
    title = f"{scan.name} - balls" if name is None else name
    labels = labels_layer(found_in(volume), place(volume.grid), title, scan=volume.source, algorithm=("balls", "1.0"))
    viewer.add_layer(layer_of(labels))
    return viewer, model


def opened(
    path: Path, viewer: ViewerModel | None = None, replaces: bool = False
) -> tuple[ViewerModel, SessionFileModel]:
    viewer = ViewerModel() if viewer is None else viewer
    model = SessionFileModel(session := Session(viewer), SegmentModel(session))
    model.open(path, replaces=replaces)
    session.jobs.wait()
    return viewer, model


def texts(model: SessionFileModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def contents(path: Path) -> bytes:
    """Return everything that a session file holds, unpacked as far as it can be, with the names of its members."""
    parts = [path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            data = archive.read(member)
            parts += [member.filename.encode(), member.comment, member.extra, data]
            if data[:2] == b"\x1f\x8b":
                parts.append(gzip.decompress(data))
    return b"\n".join(parts)


@pytest.fixture(params=["nifti", "dicom"])
def scan(request: pytest.FixtureRequest, head: Volume, tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    if request.param == "nifti":
        return phantoms.write_nifti(head, folder / "head.nii.gz")
    phantoms.write_series(head, folder / "series")
    return folder / "series"


def test_a_session_is_opened_as_it_was_saved(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    image, labels = viewer.layers
    assert isinstance(labels, Labels)
    structures = StructuresModel(model.session)
    structures.rename(3, "proboscis")
    structures.recolor(3, (1, 2, 3))
    structures.draw(1, False)
    labels.data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    labels.selected_label, labels.contour, labels.opacity, labels.visible = 4, 2, 0.4, False
    image.colormap, image.contrast_limits, image.gamma, image.blending = "viridis", (3.5, 801.25), 0.8, "additive"
    prompts = {"4": {"positive": [[3, 4, 5]], "negative": [], "box": None}}
    kept_data.keep(labels, "prompts", prompts)
    viewer.dims.order = PLANES["coronal"]
    point = tuple(map(float, image.extent.world[0] + 7 * image.scale))
    viewer.dims.set_point(range(3), point)
    viewer.scene.camera.zoom, viewer.scene.camera.center = 3.25, (1.5, 2.5, 3.5)
    viewer.layers.selection.active = image

    path = tmp_path / "study" / "mine.napari-seg"
    assert state_of(labels).is_unsaved
    model.save(path)
    model.session.jobs.wait()
    assert "Saved the session: mine.napari-seg" in texts(model)
    assert not state_of(labels).is_unsaved
    assert not kept_data.has_unsaved(labels)

    other, back = opened(path)
    assert "(" not in texts(back)  # no code of an error
    assert back.missing == 0
    assert [layer.name for layer in other.layers] == [layer.name for layer in viewer.layers]
    again, found = other.layers
    assert isinstance(found, Labels)
    np.testing.assert_array_equal(found.data, labels.data)
    np.testing.assert_array_equal(again.data, image.data)
    for one, two in zip(viewer.layers, other.layers, strict=True):
        for name in ("visible", "opacity", "blending", "scale", "translate", "units", "axis_labels"):
            assert np.all(getattr(one, name) == getattr(two, name)), name
        placed, placed_again = placement_of(one), placement_of(two)
        assert placed.native == placed_again.native
        assert placed.shown.matches(placed_again.shown)
    for name in ("colormap", "contrast_limits", "contrast_limits_range", "gamma"):
        assert getattr(again, name) == getattr(image, name)
    assert (found.selected_label, found.contour) == (4, 2)
    info, old = LayerInfo.require(found), LayerInfo.require(labels)
    assert info.segments == old.segments
    assert info.algorithm == ("balls", "1.0")
    assert info.confidence == old.confidence
    assert info.scan.files
    assert [path.name for path in info.scan.files] == [path.name for path in old.scan.files]
    state = state_of(found)
    assert (state.painted, state.hidden, state.is_unsaved) == (True, {1}, False)
    np.testing.assert_allclose(found.colormap.map(np.array([1, 3, 4])), labels.colormap.map(np.array([1, 3, 4])))
    assert kept_data.kept(found) == {"prompts": prompts}
    assert other.layers.selection.active is again
    assert (other.dims.order, other.dims.ndisplay) == (viewer.dims.order, 2)
    np.testing.assert_allclose(other.dims.point, viewer.dims.point)
    assert other.scene.camera.zoom == 3.25
    assert other.scene.camera.center == (1.5, 2.5, 3.5)
    # what is saved now is the same
    np.testing.assert_array_equal(Snapshot.of(found).segmentation().array, Snapshot.of(labels).segmentation().array)


def test_what_a_model_found_is_known_after_reopening(scan: Path, tmp_path: Path) -> None:
    volume = read(scan)
    found = found_in(volume)
    rng = np.random.default_rng(0)
    maps = ConfidenceMaps(*(rng.integers(0, 256, volume.grid.shape).astype(np.uint8) for _ in range(2)))
    made = replace(found, confidence_maps=maps)
    viewer = ViewerModel()
    model = SessionFileModel(session := Session(viewer), SegmentModel(session))
    for one in image_layers(volume):
        viewer.add_layer(layer_of(one))
    (labels,) = label_layers_of(viewer, made, volume)
    labels.data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    path = tmp_path / "study" / "mine.napari-seg"
    model.save(path)
    model.session.jobs.wait()

    other, back = opened(path)
    assert "(" not in texts(back)
    info, old = LayerInfo.require(other.layers[1]), LayerInfo.require(labels)
    assert info.looked_for == old.looked_for == {segment.label for segment in found.segments}
    assert info.model_labels is not None
    np.testing.assert_array_equal(info.model_labels.unpack(), found.array)
    assert info.model_confidence is not None
    np.testing.assert_array_equal(info.model_confidence.unpack(), maps.confidence)
    assert Snapshot.of(other.layers[1]).segmentation().array.sum() != found.array.sum(), "corrected since"

    # the corrections open without it
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    assert json.loads(members["session.json"])["format"] == 2
    (name,) = (one for one in members if one.startswith("model_labels"))
    members[name] = b"x" * len(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    damaged = open_session(path)
    assert [fault.code for fault in damaged.faults] == ["session.damaged"]
    assert LayerInfo.require(damaged.layers[1]).model_labels is None
    np.testing.assert_array_equal(damaged.layers[1].data, other.layers[1].data)
    data = path.read_bytes()
    at = data.index(b"x" * 1000)
    path.write_bytes(data[:at] + b"y" + data[at + 1 :])  # its digest in the archive is another one
    assert [fault.code for fault in open_session(path).faults] == ["session.damaged"]


def label_layers_of(viewer: ViewerModel, found: Segmentation, volume: Volume) -> list[Labels]:
    """Add the result of a run to a viewer."""
    result = labels_layer(
        found, place(volume.grid), "found", scan=volume.source, algorithm=("balls", "1.0"), is_result=True
    )
    viewer.add_layer(layer_of(result))
    return [layer for layer in viewer.layers if isinstance(layer, Labels)]


def test_a_session_of_an_earlier_version_opens(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    path = tmp_path / "study" / "mine.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    content = json.loads(members["session.json"])
    assert content["format"] == 1, "nothing in it needs a later one"
    for layer in content["layers"]:
        for key in ("looked_for", "has_model_labels", "has_model_confidence"):
            layer.pop(key, None)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "session.json": json.dumps(content)}.items():
            archive.writestr(name, data)
    other, _ = opened(path)
    np.testing.assert_array_equal(other.layers[1].data, viewer.layers[1].data)
    assert LayerInfo.require(other.layers[1]).model_labels is None


def test_no_name_of_a_patient_is_in_the_file(head: Volume, tmp_path: Path) -> None:
    folder = tmp_path / "DOE^JANE" / "jane 4711-0815"
    folder.mkdir(parents=True)

    def named(k: int, dataset: Any) -> None:
        dataset.PatientName, dataset.PatientID = "DOE^JANE", "4711-0815"

    phantoms.write_series(head, folder / "series of doe", edit=named)
    phantoms.write_nifti(head, folder / "Doe_JANE_T1.nii.gz")
    for source, name in (
        (folder / "Doe_JANE_T1.nii.gz", None),
        (folder / "Doe_JANE_T1.nii.gz", "JANE Doe, liver"),
        (folder / "series of doe", "jane's tumour"),
        (folder / "series of doe", None),
    ):
        viewer, model = viewer_on(source, name)
        viewer.layers[0].name = f"my {viewer.layers[0].name}" if name else viewer.layers[0].name
        StructuresModel(model.session).rename(1, "left ball")
        path = folder / "Doe.napari-seg"
        model.save(path)
        model.session.jobs.wait()
        assert "Saved" in texts(model)
        everything = contents(path)
        for word in (*PATIENT, *phantoms.CANARIES, str(tmp_path), tmp_path.name):
            assert word.encode() not in everything, (word, source)
            assert word.lower().encode() not in everything.lower(), (word, source)
        other, back = opened(path)
        assert back.missing == 0
        assert [layer.name for layer in other.layers][1]
        if name is None:  # the names come from the scan again
            assert [one.name for one in other.layers] == [one.name for one in viewer.layers]


def test_scans_that_were_moved_and_renamed_are_found(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    model.save(scan.parent / "a.napari-seg")
    model.session.jobs.wait()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    shutil.move(scan.parent / "a.napari-seg", elsewhere / "b.napari-seg")
    moved = elsewhere / "below" / ("scan of today" + "".join(scan.suffixes))
    shutil.move(scan, moved)
    if moved.is_dir():
        for number, file in enumerate(sorted(moved.iterdir(), reverse=True)):
            file.rename(moved / f"{number}.x")
    back, _ = opened(elsewhere / "b.napari-seg")
    assert len(back.layers) == 2
    np.testing.assert_array_equal(back.layers[0].data, viewer.layers[0].data)
    if not moved.is_dir():
        assert [layer.name for layer in back.layers] == ["scan of today", "scan of today - balls"]


def test_scans_in_another_folder_are_asked_for(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    model.save(tmp_path / "away" / "a.napari-seg")
    model.session.jobs.wait()
    assert "output.not_written" in texts(model)  # the folder does not exist
    (tmp_path / "away").mkdir()
    viewer.layers[1].data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    assert state_of(viewer.layers[1]).is_unsaved
    model.save(tmp_path / "away" / "a")
    model.session.jobs.wait()
    other, back = opened(tmp_path / "away" / "a.napari-seg")
    assert back.missing == 1
    assert "(session.scan_missing)" in texts(back)
    (labels,) = other.layers
    np.testing.assert_array_equal(labels.data, viewer.layers[1].data)
    assert labels.name == "scan - balls"
    (tmp_path / "empty").mkdir()
    back.find_missing(tmp_path / "empty")
    back.session.jobs.wait()
    assert back.missing == 1
    back.find_missing(tmp_path / "study")
    back.session.jobs.wait()
    assert back.missing == 0
    assert [layer.name for layer in other.layers] == [layer.name for layer in viewer.layers]
    assert LayerInfo.require(labels).scan.files  # DICOM results refer to its images


def test_saving_over_a_session_keeps_the_scans_that_were_not_found(head: Volume, tmp_path: Path) -> None:
    """Two scans were open; the session is corrected on a computer that has one of them, and comes back."""
    home, laptop = tmp_path / "home", tmp_path / "laptop"
    home.mkdir()
    laptop.mkdir()
    viewer, model = viewer_on(phantoms.write_nifti(head, home / "second.nii.gz"))
    path = phantoms.write_nifti(replace(head, array=head.array + 1), home / "first.nii.gz")
    viewer.add_layer(layer_of(image_layers(read(path))[0]))
    viewer.layers[0].contrast_limits, viewer.layers[0].opacity = (3, 77), 0.5
    viewer.layers.selection.active = viewer.layers[1]
    model.save(home / "s.napari-seg")
    model.session.jobs.wait()
    shutil.copy(home / "s.napari-seg", laptop)
    shutil.copy(home / "first.nii.gz", laptop)

    away, back = opened(laptop / "s.napari-seg")
    assert [layer.name for layer in away.layers] == ["scan - balls", "first"]
    assert LayerInfo.require(away.layers[0]).scan.files == ()  # not those of the other scan, which has the same grid
    assert back.missing == 1
    away.layers[0].data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    assert back.suggested_path == laptop / "s.napari-seg"
    back.save(back.suggested_path)
    back.session.jobs.wait()
    assert "Not in the session file" not in texts(back)
    shutil.copy(laptop / "s.napari-seg", home)

    again, third = opened(home / "s.napari-seg")
    assert third.missing == 0
    assert [layer.name for layer in again.layers] == ["second", "second - balls", "first"]
    assert again.layers.selection.active is again.layers[1]
    assert tuple(again.layers[0].contrast_limits) == (3, 77)
    assert again.layers[0].opacity == 0.5
    assert [file.name for file in LayerInfo.require(again.layers[1]).scan.files] == ["second.nii.gz"]
    assert again.layers[1].data[3, 4, 5] == 4

    # the scan is opened by itself, so it is not missing in the file
    third.save(laptop / "s.napari-seg")
    third.session.jobs.wait()
    other, fourth = opened(laptop / "s.napari-seg")
    other.add_layer(layer_of(image_layers(read(home / "second.nii.gz"), placement_of(other.layers[0]).frame)[0]))
    fourth.save(laptop / "s.napari-seg")
    fourth.session.jobs.wait()
    content = read_content(laptop / "s.napari-seg")
    assert len(content.scans) == 2
    assert [layer.kind for layer in content.layers] == ["labels", "scan", "scan"]
    fourth.session.viewer.layers.clear()
    for one in image_layers(read(home / "first.nii.gz")):
        other.add_layer(layer_of(one))
    fourth.save(laptop / "s.napari-seg")
    fourth.session.jobs.wait()
    assert len(read_content(laptop / "s.napari-seg").scans) == 1  # other work under the same name


def test_a_session_with_labels_that_could_not_be_opened_is_not_replaced(head: Volume, tmp_path: Path) -> None:
    _, model = viewer_on(phantoms.write_nifti(head, tmp_path / "head.nii.gz"))
    path = tmp_path / "s.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    with pytest.MonkeyPatch.context() as patch:

        def too_large(grid: Any, file: Path, path: Path) -> Any:
            raise EnvironmentFault("environment.memory", "too large")

        patch.setattr(restore, "_labels_on", too_large)
        other, back = opened(path)
    assert [layer.name for layer in other.layers] == ["head"]
    before = path.read_bytes()
    back.save(path)
    back.session.jobs.wait()
    assert "head - balls" in texts(back)
    assert "(session.incomplete)" in texts(back)
    assert path.read_bytes() == before
    back.save(tmp_path / "t.napari-seg")
    back.session.jobs.wait()
    assert "Not in the session file: head - balls" in texts(back)


def test_a_session_opens_in_the_frame_that_another_scan_has_set(head: Volume, tmp_path: Path) -> None:
    path = phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    _, model = viewer_on(path)
    model.save(tmp_path / "s.napari-seg")
    model.session.jobs.wait()
    viewer = ViewerModel()
    back = SessionFileModel(session := Session(viewer), SegmentModel(session))
    back.open(tmp_path / "s.napari-seg")
    upright = replace(head, grid=Grid(head.grid.shape, np.diag([1.5, 1.25, 2.5, 1])))
    viewer.add_layer(layer_of(image_layers(upright)[0]))  # while the session is read
    session.jobs.wait()
    assert len(viewer.layers) == 3
    for layer in viewer.layers:
        np.testing.assert_allclose(placement_of(layer).frame, placement_of(viewer.layers[0]).frame)


def test_a_changed_scan_is_reported(head: Volume, tmp_path: Path) -> None:
    path = phantoms.write_nifti(head, tmp_path / "head.nii")
    _, model = viewer_on(path)
    model.save(tmp_path / "a.napari-seg")
    model.session.jobs.wait()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    other, back = opened(tmp_path / "a.napari-seg")
    assert "(session.scan_changed)" in texts(back)
    assert len(other.layers) == 1


def test_labels_of_a_changed_scan_are_given_to_it(head: Volume, tmp_path: Path) -> None:
    viewer, model = viewer_on(phantoms.write_nifti(head, tmp_path / "head.nii"))
    model.save(tmp_path / "a.napari-seg")
    model.session.jobs.wait()
    phantoms.write_nifti(replace(head, array=head.array + 1), tmp_path / "head.nii")
    viewer, model = opened(tmp_path / "a.napari-seg")
    assert "(session.scan_changed)" in texts(model)
    viewer.add_layer(layer_of(image_layers(read(tmp_path / "head.nii"))[0]))
    StructuresModel(model.session).give_scan()
    model.save(tmp_path / "a.napari-seg")
    model.session.jobs.wait()
    viewer, model = opened(tmp_path / "a.napari-seg")
    (found,) = (layer for layer in viewer.layers if isinstance(layer, Labels))
    assert LayerInfo.require(found).scan.files == (tmp_path / "head.nii",)


def test_a_change_in_the_middle_of_a_large_file_is_reported(tmp_path: Path) -> None:
    grid = phantoms.oblique_grid((64, 64, 40))
    volume = Volume(np.arange(64 * 64 * 40, dtype=np.int32).reshape(1, 64, 64, 40), grid)
    path = phantoms.write_nifti(volume, tmp_path / "large.nii")
    _, model = viewer_on(path)
    model.save(tmp_path / "a.napari-seg")
    model.session.jobs.wait()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    other, back = opened(tmp_path / "a.napari-seg")
    assert "other intensities" in texts(back)
    assert "(session.scan_changed)" in texts(back)
    assert len(other.layers) == 2  # on the same grid, with a warning


def test_images_without_files_are_saved_with_their_voxels(head: Volume, tmp_path: Path) -> None:
    viewer, model = ViewerModel(), None
    model = SessionFileModel(session := Session(viewer), SegmentModel(session))
    for one in image_layers(head):
        viewer.add_layer(layer_of(one))
    map_ = (head.array[0] % 256).astype(np.uint8)
    viewer.add_layer(layer_of(confidence_layer(map_, place(head.grid), "head, confidence")))
    smooth = viewer.add_image(
        viewer.layers[0].data.astype(np.float32) / 2,
        scale=viewer.layers[0].scale,
        name="half",
        translate=viewer.layers[0].translate,
        units="mm",
    )
    viewer.add_points(np.zeros((1, 3)), name="my points")
    model.save(tmp_path / "a.napari-seg")
    session.jobs.wait()
    assert "Not in the session file: my points" in texts(model)
    assert "holds the voxels of head, half, because no file does" in texts(model)
    back, _ = opened(tmp_path / "a.napari-seg")
    assert [layer.name for layer in back.layers] == ["head", "head, confidence", "half"]
    for one, two in zip(viewer.layers, back.layers, strict=False):
        np.testing.assert_array_equal(one.data, two.data)
        np.testing.assert_allclose(one.scale, two.scale)
        np.testing.assert_allclose(one.translate, two.translate, atol=1e-6)
    assert volume_of(back.layers[0]) is not None
    assert volume_of(back.layers[1]) is None
    assert volume_of(back.layers[2]) is not None
    assert back.layers[1].colormap.name == "inferno"
    np.testing.assert_allclose(smooth.data, back.layers[2].data)


def test_a_session_whose_scan_cannot_be_read_is_not_saved(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    labels = viewer.layers[1]
    assert isinstance(labels, Labels)
    path = tmp_path / "a.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    assert "Scans are referred to, not copied." in texts(model)
    before = path.read_bytes()

    labels.data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    (tmp_path / "study").rename(tmp_path / "away")
    model.save(path)
    model.session.jobs.wait()
    assert "connect their drive" in texts(model)
    assert "(file.unreadable)" in texts(model)
    assert path.read_bytes() == before
    assert state_of(labels).is_unsaved
    (tmp_path / "away").rename(tmp_path / "study")
    model.save(path)
    model.session.jobs.wait()
    assert not state_of(labels).is_unsaved


def test_labels_without_a_place_stay_unsaved(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    viewer.add_labels(np.zeros((4, 5), np.uint8), name="flat")
    model.save(tmp_path / "a.napari-seg")
    model.session.jobs.wait()
    assert "Not in the session file: flat" in texts(model)


def test_edits_during_the_saving_stay_unsaved(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    labels = viewer.layers[1]
    labels.data_setitem((np.array([3]), np.array([4]), np.array([5])), 4)
    model.save(tmp_path / "a.napari-seg")
    labels.data_setitem((np.array([3]), np.array([4]), np.array([6])), 4)
    kept_data.keep(labels, "prompts", {"4": {}})
    model.session.jobs.wait()
    assert state_of(labels).is_unsaved
    assert kept_data.has_unsaved(labels)
    back, _ = opened(tmp_path / "a.napari-seg")
    found = back.layers[1]
    assert found.data[3, 4, 5] == 4
    assert found.data[3, 4, 6] != 4


def test_a_session_replaces_or_joins_open_layers(scan: Path) -> None:
    viewer, model = viewer_on(scan)
    path = scan.parent / "a.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    zoom = viewer.scene.camera.zoom = 7.0
    assert len(opened(path, viewer)[0].layers) == 4
    assert viewer.scene.camera.zoom == zoom
    assert len(opened(path, viewer, replaces=True)[0].layers) == 2


def test_one_session_is_saved_or_opened_at_a_time(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    first, second = tmp_path / "a.napari-seg", tmp_path / "b.napari-seg"
    model.save(second)
    model.session.jobs.wait()
    for busy in (lambda: model.save(first), lambda: model.open(first, replaces=True)):
        busy()
        for refused in (
            lambda: model.save(second),
            lambda: model.open(second, replaces=True),
            lambda: model.find_missing(tmp_path),
        ):
            refused()
            assert "Wait until" in texts(model)
        model.session.jobs.wait()
        assert not model.is_busy
        assert model.path == first
    assert len(viewer.layers) == 2


def test_a_damaged_file_changes_nothing(scan: Path, tmp_path: Path) -> None:
    viewer, model = viewer_on(scan)
    (tmp_path / "a.napari-seg").write_bytes(b"no session")
    model.open(tmp_path / "a.napari-seg", replaces=True)
    model.session.jobs.wait()
    assert "(session.damaged)" in texts(model)
    assert len(viewer.layers) == 2


def test_a_scan_of_several_volumes_is_opened_at_the_same_one(head: Volume, tmp_path: Path) -> None:
    scan = phantoms.write_volumes(head, tmp_path / "two.nii.gz")
    from napari_seg.plugin.study.entries import find_entries
    from napari_seg.plugin.study.model import StudyModel

    (entry,) = find_entries(tmp_path / "two.nii.gz")
    layers, _ = StudyModel.read(entry, entry.read_options(1), None)
    viewer = ViewerModel()
    model = SessionFileModel(session := Session(viewer), SegmentModel(session))
    viewer.add_layer(layers[0])
    model.save(tmp_path / "a.napari-seg")
    session.jobs.wait()
    other, _ = opened(tmp_path / "a.napari-seg")
    (back,) = other.layers
    assert isinstance(back, Image)
    assert back.name == "two, volume 1"
    np.testing.assert_array_equal(back.data, layers[0].data)

    viewer.add_layer(StudyModel.read(entry, entry.read_options(0), None)[0][0])
    for number in (0, 1):
        labels = labels_layer(found_in(head), place(head.grid), "labels", scan=scan.read(number).source)
        viewer.add_layer(layer_of(labels))
    model.save(tmp_path / "a.napari-seg")
    session.jobs.wait()
    content = read_content(tmp_path / "a.napari-seg")
    assert [content.scans[layer.scan].volume for layer in content.layers] == [1, 0, 0, 1]


def test_the_model_of_the_session_is_chosen(scan: Path, tmp_path: Path) -> None:
    from bundles import write_threshold_bundle

    _, model = viewer_on(scan)
    folder = write_threshold_bundle(tmp_path / "mine")
    model._segmenting.folders.append(folder)
    model._segmenting.reload_bundles(str(folder))
    chosen = model._segmenting.bundle
    assert chosen is not None
    assert chosen.root == folder
    path = scan.parent / "a.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    assert str(tmp_path).encode() not in contents(path)
    _, back = opened(path)
    assert f"not on this computer: {chosen.name}" in texts(back)
    viewer = ViewerModel()
    again = SessionFileModel(session := Session(viewer), SegmentModel(session, [tmp_path / "mine"]))
    again._segmenting.choose_bundle(again._segmenting.bundles[0])
    again.open(path)
    session.jobs.wait()
    assert again._segmenting.bundle is not None
    assert again._segmenting.bundle.root == folder
    assert "model" not in texts(again)
    # other weights under the same name and version
    config = next((folder / "configs").glob("inference*"))
    config.write_text(config.read_text() + " ")
    viewer = ViewerModel()
    again = SessionFileModel(session := Session(viewer), SegmentModel(session, [folder]))
    again.open(path)
    session.jobs.wait()
    assert "has other weights or code" in texts(again)


def test_the_files_are_those_of_the_scan(scan: Path) -> None:
    """A scan is found by its content even if another one lies next to it under the old name."""
    viewer, model = viewer_on(scan)
    path = scan.parent / "a.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    another = Volume(phantoms.head().array + 1, phantoms.head().grid)
    if scan.is_dir():
        scan.rename(scan.parent / "first")
        phantoms.write_series(another, scan)
    else:
        scan.rename(scan.parent / "first.nii.gz")
        phantoms.write_nifti(another, scan)
    back, _ = opened(path)
    np.testing.assert_array_equal(back.layers[0].data, viewer.layers[0].data)


def test_an_oblique_scan_in_another_frame_is_found_and_a_filtered_copy_keeps_its_voxels(
    head: Volume, tmp_path: Path
) -> None:
    phantoms.write_nifti(head, tmp_path / "head.nii")
    volume = read(tmp_path / "head.nii")
    for filtered in (False, True):
        viewer = ViewerModel()
        model = SessionFileModel(session := Session(viewer), SegmentModel(session))
        viewer.add_layer(layer := layer_of(image_layers(volume, phantoms.rotation(20, -10, 35))[0]))
        if filtered:
            layer.data = layer.data / 2
        model.save(tmp_path / "a.napari-seg")
        session.jobs.wait()
        (back,) = opened(tmp_path / "a.napari-seg")[0].layers
        np.testing.assert_allclose(back.data, layer.data, atol=1e-3)
        assert placement_of(back).native.matches(placement_of(layer).shown if filtered else volume.grid)


def test_texts_that_tools_keep_hold_no_private_words(scan: Path) -> None:
    viewer, model = viewer_on(scan)
    kept_data.keep(viewer.layers[1], "notes", {"a": ["study of Canary", 3], "b": True})
    model.save(scan.parent / "a.napari-seg")
    model.session.jobs.wait()
    back, _ = opened(scan.parent / "a.napari-seg")
    (text, number) = kept_data.kept(back.layers[1])["notes"]["a"]
    assert number == 3
    assert "Canary" not in text or not scan.is_dir()
    assert "study" not in text  # the name of a folder


def test_a_script_without_a_window_reads_a_session(scan: Path) -> None:
    from napari_seg.plugin.reader import get_reader

    viewer, model = viewer_on(scan)
    path = scan.parent / "a.napari-seg"
    model.save(path)
    model.session.jobs.wait()
    read_session = get_reader(str(path))
    assert read_session is not None
    layers = read_session(str(path))
    assert [kind for _, _, kind in layers] == ["image", "labels"]
    assert [settings["name"] for _, settings, _ in layers] == [layer.name for layer in viewer.layers]
    np.testing.assert_array_equal(layers[1][0], viewer.layers[1].data)
    (scan.parent / "b.napari-seg").write_bytes(b"no session")
    with pytest.raises(InputError) as caught:
        read_session(str(scan.parent / "b.napari-seg"))
    assert caught.value.code == "session.damaged"
