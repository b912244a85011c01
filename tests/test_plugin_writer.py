"""napari's writer, which *Save Selected Layers* calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import labels_of, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Image

from napari_seg.errors import OutputError
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.formats.record import made_by_in, write_labels_record
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.writer import write_labels
from napari_seg.volume import Volume


@pytest.fixture
def scan(head: Volume, tmp_path: Path) -> Path:
    return phantoms.write_nifti(head, tmp_path / "scan.nii.gz")


@pytest.fixture
def viewer(scan: Path, monkeypatch: pytest.MonkeyPatch) -> ViewerModel:
    viewer = viewer_with_labels(read(scan))
    monkeypatch.setattr("napari.viewer.current_viewer", lambda: viewer)
    return viewer


def test_names_are_written_to_the_record(viewer: ViewerModel, tmp_path: Path) -> None:
    layer, model = labels_of(viewer), StructuresModel(Session(viewer))
    model.rename(1, "tumour core")
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    path = tmp_path / "mine.nii.gz"
    path.touch()
    write_labels_record(replace(model.snapshot().segmentation(), segments=()), path, ("earlier model", "7"))  # type: ignore[union-attr]
    assert write_labels(str(path), *layer.as_layer_data_tuple()[:2]) == [str(path)]
    assert [one.name for one in read_label_map(path).segments] == ["tumour core", "nose", "tail"]
    assert made_by_in(path) == ("balls", "1")
    assert not state_of(layer).is_unsaved


def test_labels_that_were_moved_are_refused(viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    layer.translate = np.add(layer.translate, (0, 0, 7))
    with pytest.raises(OutputError, match=r"output\.moved"):
        write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])


def test_a_file_of_an_open_scan_is_refused(viewer: ViewerModel, scan: Path, tmp_path: Path) -> None:
    """The dialog of napari asks whether to replace the file, and a person may say yes."""
    other = phantoms.write_nifti(read(scan), tmp_path / "other.nii.gz")
    viewer.layers.append(Image(np.zeros((2, 2, 2))))
    viewer.layers[-1]._set_source(viewer.layers[-1].source.model_copy(update={"path": str(other)}))
    layer = labels_of(viewer)
    state_of(layer).count_edit()
    for path in (scan, other):
        before = path.read_bytes()
        with pytest.raises(OutputError, match=r"output\.exists"):
            write_labels(str(path), *layer.as_layer_data_tuple()[:2])
        assert path.read_bytes() == before
    assert state_of(layer).is_unsaved
