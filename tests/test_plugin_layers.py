"""Volumes and segmentations as napari's layers and back, and the reader and writer that napari calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.layers import Image, Labels

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.plugin.labels_state import Snapshot
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import (
    image_layers,
    labels_layer,
    layer_of,
    segmentation_of,
    title_of,
)
from napari_seg.plugin.messages import as_gui_text, gui_text_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.reader import get_reader, read_layers
from napari_seg.plugin.structures.export import export
from napari_seg.plugin.writer import write_labels
from napari_seg.volume import Segment, Segmentation, Source, Volume

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)), Segment(4, "tail", (9, 9, 9)))


def thresholded(volume: Volume) -> Segmentation:
    """Bright is 1, middle is 3, nothing is 4."""
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS)


def info_in(settings: dict[str, Any]) -> LayerInfo:
    info = LayerInfo.in_settings(settings)
    assert info is not None
    return info


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
    assert all(info_in(settings).volume is volume for _, settings, _ in layers)


def test_labels_go_to_a_layer_and_back_bit_by_bit(head: Volume) -> None:
    segmentation = thresholded(head)
    placement = place(head.grid)
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
    original = thresholded(head)
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
    segmentation = thresholded(head)
    placement = place(head.grid)
    data, settings, _ = labels_layer(segmentation, placement, "result")
    data[0, 0, 0] = 7
    assert segmentation_of(data, settings).segments[-1] == Segment(7, "label 7", (153, 153, 153))


@pytest.mark.parametrize(
    ("labels", "metadata", "code"),
    [
        (np.zeros((2, 2, 2), np.uint8), {}, "output.no_geometry"),
        (np.zeros((2, 2, 2), np.uint8), None, "output.labels"),
        (np.full((14, 26, 20), -1), None, "output.labels"),
        (np.full((14, 26, 20), 65536, np.uint32), None, "output.labels"),
    ],
)
def test_labels_that_fit_no_scan_are_refused(head: Volume, labels: Any, metadata: Any, code: str) -> None:
    known = image_layers(head)[0][1]["metadata"]
    with pytest.raises(OutputError) as caught:
        segmentation_of(labels, {"name": "mine", "metadata": known if metadata is None else metadata})
    assert caught.value.code == code


def test_reader_opens_nifti_and_a_folder_of_series(head: Volume, tmp_path: Path) -> None:
    nifti = phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    phantoms.write_series(head, tmp_path / "study" / "series")
    phantoms.write_nifti(head, tmp_path / "study" / "copy.nii")
    opened = get_reader(str(nifti))
    assert opened is not None
    ((data, settings, _),) = opened(str(nifti))
    assert settings["name"] == "head"
    placement = info_in(settings).placement
    np.testing.assert_array_equal(placement.restore(np.asarray(data)), head.array[0])

    opened = get_reader(str(tmp_path / "study"))
    assert opened is not None
    layers = opened(str(tmp_path / "study"))
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
    frame = place(straight.grid).frame
    ((data, settings, _),) = image_layers(head, frame)
    placement = info_in(settings).placement
    assert not placement.is_view
    assert data.shape == placement.shown.shape
    assert info_in(settings).volume is head


def test_nothing_heavy_is_imported_with_the_plugin() -> None:
    code = (
        "import sys, napari_seg.plugin.reader, napari_seg.plugin.writer, napari_seg.plugin.sample\n"
        "light = set(sys.modules) & {'napari', 'qtpy'}\n"
        "import napari_seg.plugin.segment.model, napari_seg.plugin.structures.model\n"
        "heavy = set(sys.modules) & {'torch', 'monai', 'nibabel', 'SimpleITK', 'pydicom'}\n"
        "print('loaded:', *light, *heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "loaded:"


@pytest.mark.parametrize(
    ("orientation", "name", "file", "title"),
    [
        ("LPS", "MR_T2w_401", "1.dcm", "T2w axial"),
        ("LPS", "MR", "1.dcm", "MR axial"),
        ("PSR", "T1_w", "IM1", "T1 w sagittal"),
        ("LPS", "t2_tra_tse", "1.dcm", "t2 tra tse"),
        ("LPS", "T1_w", "T1_w.nii.gz", "T1 w"),
    ],
)
def test_a_scan_is_named_for_a_person(orientation: str, name: str, file: str, title: str) -> None:
    turned = Grid((4, 5, 6), np.eye(4)).reoriented(orientation)
    grid = Grid(turned.shape, turned.affine @ np.diag([1, 1, 3.5, 1]))  # slices follow each other along the last axis
    source = Source("nifti" if file.endswith(".nii.gz") else "dicom", (Path(file),))
    volume = Volume(np.zeros((1, *grid.shape)), grid, name=name, modality="MR", source=source)
    assert title_of(volume) == title


@pytest.mark.parametrize(("name", "title"), [("anat_T1w", "anat T1w axial"), ("T2_relax", "T2 relax axial")])
def test_the_plane_of_a_series_is_that_of_its_slices(name: str, title: str) -> None:
    grid = Grid((4, 5, 6), np.diag([-0.7, -0.667, 0.667, 1]))  # pixels that are not square: spacing tells no plane
    source = Source("dicom", (Path("1.dcm"),))
    volume = Volume(np.zeros((1, *grid.shape)), grid, name=name, modality="MR", source=source)
    assert title_of(volume) == title


def test_nifti_that_was_saved_here_is_opened_with_its_names(head: Volume, tmp_path: Path) -> None:
    placement = place(head.grid)
    layer = layer_of(labels_layer(thresholded(head), placement, "mine"))
    assert isinstance(layer, Labels)
    export(Snapshot.of(layer), tmp_path / "mine.nii.gz", "nifti")
    ((_, settings, kind),) = read_layers(str(tmp_path / "mine.nii.gz"))
    assert kind == "labels"
    assert list(settings["features"]["name"]) == ["background", "left ball", "nose", "tail"]
    known = info_in(settings)
    assert known.algorithm is None  # nobody but a person
    assert known.source == tmp_path / "mine.nii.gz"
    (tmp_path / "mine.json").write_text("{}")  # of another program
    export(Snapshot.of(layer), tmp_path / "mine.nii.gz", "nifti")
    assert (tmp_path / "mine.json").read_text() == "{}"


@pytest.mark.parametrize("ending", ["_seg.seg.nrrd", "_seg.dcm"])
def test_labels_that_were_saved_are_opened_as_labels(head: Volume, tmp_path: Path, ending: str) -> None:
    phantoms.write_series(head, tmp_path / "series")
    path = tmp_path / f"head{ending}"
    scan = Source("dicom", tuple(sorted((tmp_path / "series").iterdir())))
    write_label_map(thresholded(head), path, scan=scan)
    opened = get_reader(str(path))
    assert opened is not None
    ((data, settings, kind),) = opened(str(path))
    assert kind == "labels"
    assert settings["name"] == "head_seg"
    back = segmentation_of(data, settings)
    (nose,) = [s.label for s in back.segments if s.name == "nose"]
    expected = np.argwhere(thresholded(head).array == 3)
    np.testing.assert_allclose(
        np.sort(back.grid.to_world(np.argwhere(back.array == nose)), axis=0),
        np.sort(head.grid.to_world(expected), axis=0),
        atol=1e-3,
    )


TILTS = {"straight": (0, 0, 0), "tilted": (9, -6, 4), "steep": (25, 18, -30)}


def marked(orientation: str, tilt: str, shape: tuple[int, int, int] = (7, 10, 13)) -> tuple[Volume, tuple[int, ...]]:
    """A scan of which one voxel, whose index is given too, is far brighter than all others; each of these differs."""
    affine = np.eye(4)
    affine[:3, :3] = phantoms.rotation(*TILTS[tilt]) @ np.diag([0.7, 1.3, 2.1])
    affine[:3, 3] = (-31.0, 12.5, 40.25)
    grid = Grid(shape, affine).reoriented(orientation)
    array = np.random.default_rng(0).permutation(int(np.prod(shape))).astype(np.int16).reshape(grid.shape)
    mark = tuple(n // 3 for n in grid.shape)
    array[mark] = 9000
    return Volume(array[None], grid, name="marked"), mark


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
def test_opened_marked_and_saved_in_every_orientation(orientation: str, tilt: str, tmp_path: Path) -> None:
    volume, mark = marked(orientation, tilt)
    path = phantoms.write_nifti(volume, tmp_path / "marked.nii.gz")
    (image_tuple,) = read_layers(str(path))
    image = Image(image_tuple[0], **image_tuple[1])
    found = np.unravel_index(np.argmax(image.data), image.data.shape)
    # by hand: the tilt undone, napari's axes are the patient's I, P and L
    x, y, z = phantoms.rotation(*TILTS[tilt]).T @ volume.grid.to_world(mark)
    np.testing.assert_allclose(image.data_to_world(found), (-z, -y, -x), atol=1e-3)

    labels = (volume.array[0] % 5).astype(np.uint8)
    placement = LayerInfo.require(image).placement
    saved = Segmentation(labels, placement.native, ())
    layer = layer_of(labels_layer(saved, placement, "labels"))
    assert layer.data[found] == labels[mark]
    written = write_labels(str(tmp_path / "labels.nii.gz"), *layer.as_layer_data_tuple()[:2])
    back = read(written[0])
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_array_equal(back.grid.affine, read(path).grid.affine)


def test_a_slice_gives_its_whole_series(head: Volume, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    phantoms.write_series(head, folder)
    slices = sorted(folder.glob("*"))
    phantoms.write_series(head, folder / "below")  # another folder: not of this series
    for chosen in ([slices[3]], slices):
        paths = [str(path) for path in chosen]
        opened = get_reader(paths if len(paths) > 1 else paths[0])
        assert opened is not None
        ((data, settings, _),) = opened(paths if len(paths) > 1 else paths[0])
        assert sorted(data.shape) == sorted(head.grid.shape)
        assert set(info_in(settings).scan.files) == set(slices)


def test_slices_that_are_opened_together_are_opened_and_refused_once(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari.viewer
    from napari.components import ViewerModel
    from napari.utils import notifications

    said: list[str] = []
    monkeypatch.setattr(notifications, "show_error", said.append)
    viewer = ViewerModel()
    monkeypatch.setattr(napari.viewer, "current_viewer", lambda: viewer)

    def open_one_by_one(paths: list[Path]) -> int:
        """What napari does with files that are dropped together."""
        count = 0
        for path in paths:
            for layer in read_layers(str(path)):
                if len(layer) > 1:
                    viewer.add_layer(layer_of(layer))
                    count += 1
        return count

    slices = sorted(phantoms.write_series(head, tmp_path / "series"))
    assert open_one_by_one(slices) == 1
    viewer.layers.selection.clear()
    assert open_one_by_one(slices[:1]) == 0
    assert viewer.layers.selection.active is viewer.layers[0]
    broken = sorted(phantoms.write_series(head, tmp_path / "broken"))
    broken.pop(len(broken) // 2).unlink()
    assert open_one_by_one(broken) == 0
    (text,) = said
    assert text.endswith("(geometry.missing_slice)")
    assert text[0] != "g"  # the code comes last


LIBRARY = Path(__file__).parents[1] / "napari_seg"


def texts_of_the_library() -> list[str]:
    """Every text that a module which the window uses may say."""
    elsewhere = ("cli", "planning", "plugin")
    paths = [path for path in LIBRARY.rglob("*.py") if path.relative_to(LIBRARY).parts[0] not in elsewhere]
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_window_does_not_speak_of_the_command_line() -> None:
    texts = [text for text in texts_of_the_library() if re.search(r"(?<![\w.-])--[a-z]", text)]
    assert any("--volume" in text for text in texts)
    for text in texts:
        assert not re.search(r"(?<![\w.-])--[a-z]|napari-seg (bundles|models (list|search))", as_gui_text(text)), text
    fault = InputError("series.several_volumes", "5 times; choose one with --volume, 0 to 4")
    assert gui_text_of(fault) == (
        "5 times; choose one with the volume box below the list in the Study tab, 0 to 4 (series.several_volumes)"
    )
    for text in ("give more with --memory", "'napari-seg models list' lists them", "found --volume 9, expected 0 to 4"):
        assert "-" not in as_gui_text(text).replace("napari-seg >", "").replace("> napari-seg", "")
