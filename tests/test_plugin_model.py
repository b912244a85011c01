"""The Segment panel's behaviour and the layers it makes, on a viewer model: no window, nothing drawn."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image, Labels

import napari_seg.bundle
import napari_seg.inference
from napari_seg.bundle import Bundle
from napari_seg.errors import BundleError, InputError, Notice, OutputError
from napari_seg.formats.nifti import write_nifti
from napari_seg.geometry import Grid
from napari_seg.plugin.layers import SOFT_TISSUE_HU, contrast_limits, image_layers, labels_layer, segmentation_of
from napari_seg.plugin.model import Message, Progress, SegmentModel
from napari_seg.plugin.placement import METADATA_KEY, Placement, place
from napari_seg.plugin.reader import get_reader, read_layers
from napari_seg.plugin.writer import write_labels
from napari_seg.volume import Segment, Segmentation, Volume

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)), Segment(4, "tail", (9, 9, 9)))


def bundle(name: str = "balls") -> Bundle:
    return Bundle(
        root=Path("nowhere"),
        name=name,
        version="1",
        description="Finds balls.",
        modality="MR",
        in_channels=1,
        network_segments=SEGMENTS,
        segments=SEGMENTS,
        trusted=True,
    )


def thresholded(volume: Volume, bundle: Any, *, device: str = "auto", progress: Any = None) -> Segmentation:
    """Stands in for `segment`: bright is 1, middle is 3, nothing is 4."""
    for window in range(5):
        progress("segmenting", window, 5)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS, notices=(Notice("result.implausible", "tail: 0 ml"),))


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> ViewerModel:
    monkeypatch.setattr(napari_seg.bundle, "find_bundles", lambda: ([bundle(), bundle("cubes")], []))
    monkeypatch.setattr(napari_seg.inference, "segment", thresholded)
    return ViewerModel()


def show(viewer: ViewerModel, volume: Volume) -> Image:
    (layer_tuple,) = image_layers(volume)
    layer = Image(layer_tuple[0], **layer_tuple[1])
    viewer.add_layer(layer)
    return layer


def test_a_volume_becomes_an_image_layer(head: Volume) -> None:
    ((data, settings, kind),) = image_layers(replace(head, name="T1w"))
    layer = Image(data, **settings)
    assert kind == "image"
    assert layer.name == "T1w"
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert layer.axis_labels == ("I", "P", "L")
    assert np.shares_memory(layer.data, head.array)
    assert 0 <= layer.contrast_limits[0] < layer.contrast_limits[1] <= 936
    np.testing.assert_array_equal(layer.rotate, np.eye(3))


def test_each_channel_is_a_layer_of_the_same_volume(head: Volume) -> None:
    volume = replace(head, array=np.concatenate([head.array, head.array + 1]))
    layers = image_layers(volume)
    assert [settings["name"] for _, settings, _ in layers] == ["head 1", "head 2"]
    assert all(settings["metadata"][METADATA_KEY]["volume"] is volume for _, settings, _ in layers)


@pytest.mark.parametrize(
    ("array", "modality", "expected"),
    [
        (np.zeros((3, 3, 3)), "CT", SOFT_TISSUE_HU),
        (np.full((3, 3, 3), 5, np.int16), "MR", (5, 6)),
        (np.full((3, 3, 3), np.nan), "MR", (0, 1)),
        (np.r_[np.zeros(1727), 1e9].reshape(12, 12, 12), "MR", (0, 1e9)),
        (np.arange(1001).reshape(7, 11, 13), "", (1, 999)),
    ],
)
def test_contrast_limits(array: np.ndarray, modality: str, expected: tuple[float, float]) -> None:
    assert contrast_limits(array, modality) == pytest.approx(expected)


def test_labels_go_to_a_layer_and_back_bit_by_bit(head: Volume) -> None:
    segmentation = thresholded(head, None, progress=lambda *_: None)
    placement = Placement.from_metadata(image_layers(head)[0][1]["metadata"])
    assert placement is not None
    data, settings, _ = labels_layer(segmentation, placement, "result")
    layer = Labels(data, **settings)

    assert layer.data.dtype == np.uint8
    assert not np.shares_memory(layer.data, segmentation.array)
    np.testing.assert_allclose(layer.colormap.map(3), (0, 128 / 255, 1, 1), atol=1e-6)
    assert list(layer.features["name"]) == ["background", "left ball", "nose", "tail"]
    ml = segmentation.volumes_ml()
    np.testing.assert_allclose(layer.features["ml"][1:], [ml[1], ml[3], 0], atol=5e-4)

    back = segmentation_of(*layer.as_layer_data_tuple()[:2])
    np.testing.assert_array_equal(back.array, segmentation.array)
    assert back.array.dtype == segmentation.array.dtype
    assert back.grid == segmentation.grid
    assert back.segments == SEGMENTS


def test_labels_on_a_resampled_scan_come_back_bit_by_bit_but_where_painted(head: Volume) -> None:
    placement = place(head.grid, phantoms.rotation(3, -14, 20))
    assert not placement.is_view
    original = thresholded(head, None, progress=lambda *_: None)
    data, settings, _ = labels_layer(original, placement, "labels")
    np.testing.assert_array_equal(segmentation_of(data, settings).array, original.array)
    spot = tuple(n // 2 for n in data.shape)
    data[tuple(slice(n - 2, n + 3) for n in spot)] = 7
    edited = segmentation_of(data, settings)
    (i, j, k) = np.rint(head.grid.to_index(placement.shown.to_world(spot))).astype(int)
    assert edited.array[i, j, k] == 7
    assert set(np.unique(edited.array[edited.array != original.array])) == {7}
    assert edited.segments[-1].name == "label 7"


def test_a_label_painted_by_hand_is_named_too(head: Volume) -> None:
    segmentation = thresholded(head, None, progress=lambda *_: None)
    placement = Placement.from_metadata(image_layers(head)[0][1]["metadata"])
    assert placement is not None
    data, settings, _ = labels_layer(segmentation, placement, "result")
    data[0, 0, 0] = 7
    assert segmentation_of(data, settings).segments[-1] == Segment(7, "label 7", (153, 153, 153))


@pytest.mark.parametrize(
    ("labels", "metadata", "code"),
    [
        (np.zeros((2, 2, 2), np.uint8), {}, "output.no_geometry"),
        (np.zeros((2, 2, 2), np.uint8), None, "output.labels"),
        (np.full((14, 26, 20), -1), None, "output.labels"),
    ],
)
def test_labels_that_fit_no_scan_are_refused(head: Volume, labels: Any, metadata: Any, code: str) -> None:
    known = image_layers(head)[0][1]["metadata"]
    with pytest.raises(OutputError) as caught:
        segmentation_of(labels, {"name": "mine", "metadata": known if metadata is None else metadata})
    assert caught.value.code == code


def test_new_labels_adopt_the_scan_they_are_drawn_on(viewer: ViewerModel, head: Volume, tmp_path: Path) -> None:
    model = SegmentModel(viewer)
    show(viewer, head)
    viewer._new_labels()
    assert model.result is viewer.layers[-1]
    layer = viewer.layers[-1]
    layer.data[3, 4, 5] = 2
    (path,) = write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])
    saved = nibabel.nifti1.load(path)
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, head.grid.affine, atol=1e-5)
    index = np.argwhere(np.asarray(saved.dataobj) == 2)
    assert len(index) == 1
    placement = Placement.from_metadata(layer.metadata)
    assert placement is not None
    np.testing.assert_allclose(
        placement.to_layer_mm(head.grid.to_world(index[0])), layer.data_to_world((3, 4, 5)), atol=1e-4
    )


def test_the_scan_follows_the_active_layer(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(viewer)
    assert "Open a scan" in model.obstacle
    foreign = viewer.add_image(np.zeros((3, 4, 5)))
    assert "napari-seg" in model.obstacle
    first, second = show(viewer, head), show(viewer, replace(head, name="other"))
    assert model.layers == [first, second]
    assert model.layer is second
    viewer.layers.selection.active = first
    assert model.layer is first
    viewer.layers.selection.active = foreign
    assert model.layer is first
    assert model.obstacle == ""
    viewer.layers.remove(first)
    assert model.layer is second


def test_a_run_adds_one_new_named_and_coloured_layer(viewer: ViewerModel, head: Volume, tmp_path: Path) -> None:
    model = SegmentModel(viewer)
    image = show(viewer, head)
    for count in (1, 2):
        viewer.layers.selection.active = image
        run = model.start()
        assert model.obstacle
        run.execute()
        model.finish(run)
        assert len(viewer.layers) == 1 + count
    assert [layer.name for layer in viewer.layers] == ["head", "head - balls", "head - balls [1]"]
    layer = viewer.layers[1]
    assert isinstance(layer, Labels)
    np.testing.assert_array_equal(layer.scale, image.scale)
    np.testing.assert_array_equal(layer.translate, image.translate)
    assert [(s.name, s.color) for s in model.structures] == [(s.name, s.color) for s in SEGMENTS]
    assert model.structures[-1].ml == 0
    assert model.messages[0] == Message("warning", "tail: 0 ml (result.implausible)")
    # The largest structure is in view.
    point = tuple(round(i) for i in layer.world_to_data(viewer.dims.point))
    assert (layer.data[point[0]] == 3).any()

    expected = thresholded(head, None, progress=lambda *_: None)
    write_nifti(expected, tmp_path / "direct.nii.gz")
    saved = model.save(tmp_path / "panel")
    assert saved.name == "panel.nii.gz"
    assert saved.read_bytes()[10:] == (tmp_path / "direct.nii.gz").read_bytes()[10:]  # but for gzip's time stamp


def test_stop_leaves_the_viewer_as_it_was(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(viewer)
    show(viewer, head)
    run = model.start()
    model.stop()
    run.execute()
    model.finish(run)
    assert run.segmentation is None
    assert len(viewer.layers) == 1
    assert model.messages == [Message("info", "Stopped. Nothing was added.")]
    assert model.obstacle == ""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BundleError("bundle.untrusted", "balls is not trusted"), "balls is not trusted (bundle.untrusted)"),
        (MemoryError("no room"), "This should not have happened: MemoryError: no room"),
    ],
)
def test_a_run_that_fails_says_why(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(napari_seg.inference, "segment", fail)
    model = SegmentModel(viewer)
    show(viewer, head)
    run = model.start()
    run.execute()
    model.finish(run)
    assert model.messages == [Message("error", text)]
    assert len(viewer.layers) == 1


def test_progress_in_words() -> None:
    assert str(Progress("Loading the model")) == "Loading the model …"
    assert str(Progress("Segmenting", 3, 24)) == "Segmenting: 3 of 24"
    assert str(Progress("Segmenting", 3, 24, 12.4)) == "Segmenting: 3 of 24, 12 s left"
    assert str(Progress("Segmenting", 3, 24, 75)) == "Segmenting: 3 of 24, 1 min 15 s left"


def test_planes(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(viewer)
    show(viewer, head)
    model.show_plane("sagittal")
    assert viewer.dims.order == (2, 0, 1)


def test_a_closed_panel_lets_go_of_the_viewer(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(viewer)
    show(viewer, head)
    run = model.start()
    model.close()
    assert run.is_stopping
    viewer.layers.clear()
    assert model.layer is not None  # it no longer listens


def test_reader_opens_nifti_and_a_folder_of_series(head: Volume, tmp_path: Path) -> None:
    nifti = phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    phantoms.write_series(head, tmp_path / "study" / "series")
    phantoms.write_nifti(head, tmp_path / "study" / "copy.nii")
    read = get_reader(str(nifti))
    assert read is not None
    ((data, settings, _),) = read(str(nifti))
    assert settings["name"] == "head"
    placement = Placement.from_metadata(settings["metadata"])
    assert placement is not None
    np.testing.assert_array_equal(placement.restore(np.asarray(data)), head.array[0])

    read = get_reader(str(tmp_path / "study"))
    assert read is not None
    layers = read(str(tmp_path / "study"))
    assert len(layers) == 2
    np.testing.assert_allclose(layers[0][1]["translate"], layers[1][1]["translate"], atol=1e-3)


def test_reader_leaves_foreign_files_alone(tmp_path: Path) -> None:
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / ".zarray").write_text("{}")
    (tmp_path / "short").write_bytes(b"x")
    for path in (tmp_path / "folder.zarr", tmp_path / "short", tmp_path / "missing"):
        assert get_reader(str(path)) is None
    assert get_reader([str(tmp_path / "a.nii"), str(tmp_path / "b.nii")]) is None


def test_without_a_window_a_reader_error_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "text.nii.gz"
    path.write_text("no scan")
    assert get_reader(str(path)) is not None
    with pytest.raises(InputError):
        read_layers(str(path))


def test_a_second_scan_in_another_frame_is_shown_in_the_first_one(head: Volume) -> None:
    straight = Volume(np.ones((1, 5, 6, 7), np.int16), Grid((5, 6, 7), np.diag([2.0, 2, 2, 1])))
    frame = image_layers(straight)[0][1]["metadata"][METADATA_KEY]["frame"]
    ((data, settings, _),) = image_layers(head, frame)
    placement = Placement.from_metadata(settings["metadata"])
    assert placement is not None
    assert not placement.is_view
    assert data.shape == placement.shown.shape
    assert settings["metadata"][METADATA_KEY]["volume"] is head


def test_nothing_heavy_is_imported_with_the_plugin() -> None:
    code = (
        "import sys, napari_seg.plugin.reader, napari_seg.plugin.writer, napari_seg.plugin.sample\n"
        "light = set(sys.modules) & {'napari', 'qtpy'}\n"
        "import napari_seg.plugin.model\n"
        "heavy = set(sys.modules) & {'torch', 'monai', 'nibabel', 'SimpleITK', 'pydicom'}\n"
        "print('loaded:', *light, *heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "loaded:"
