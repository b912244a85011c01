"""Model of the Structures tab on a viewer model: measure, show, name, colour, hide."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in, labels_of, measure, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.formats.label_maps import read_label_map
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of, segmentation_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.comparison import compare
from napari_seg.plugin.structures.export import export, obstacle
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Source, Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    return viewer_with_labels(head)


@pytest.fixture
def model(viewer: ViewerModel) -> StructuresModel:
    model = StructuresModel(Session(viewer))
    measure(model)
    return model


def test_rows_hold_volume_intensity_and_confidence(model: StructuresModel, head: Volume) -> None:
    found = found_in(head)
    ball, nose, tail = model.structures
    assert [row.name for row in (ball, nose, tail)] == ["left ball", "nose", "tail"]
    assert (ball.voxels, ball.ml) == (found.voxel_counts()[1], pytest.approx(found.volumes_ml()[1]))
    assert ball.mean_intensity == pytest.approx(head.array[0][found.array == 1].mean())
    assert (ball.confidence, nose.confidence) == (0.9, 0.8)
    assert (tail.voxels, tail.ml) == (0, 0)
    assert isnan(tail.mean_intensity)


def test_a_click_goes_to_the_structure(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    for label in (1, 3):
        model.show(label)
        index = tuple(round(i) for i in layer.world_to_data(viewer.dims.point))
        assert layer.data[index] == label
        assert layer.selected_label == label
    model.step(1)  # round, past the tail that was not found
    assert layer.selected_label == 1
    model.step(-1)
    assert layer.selected_label == 3


def test_volumes_follow_edits_and_undoing(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    due: list[int] = []
    model.measurement_due.connect(lambda: due.append(1))
    before = [row.voxels for row in model.structures]
    layer.data_setitem((np.array([0, 0]), np.array([0, 1]), np.array([0, 0])), 7)
    assert due
    measure(model)
    new = model.structures[-1]
    assert (new.label, new.name, new.voxels) == (7, "label 7", 2)
    assert all(isnan(row.confidence) for row in model.structures)  # the network gave these labels no more
    due.clear()
    layer.undo()
    assert due
    measure(model)
    assert [row.voxels for row in model.structures] == before


def test_measuring_copies_no_labels_and_drops_outdated_results(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    seen: list[Snapshot] = []
    original = model.measure

    def watched(snapshot: Snapshot, scan: Image | None) -> Any:
        seen.append(snapshot)
        return original(snapshot, scan)

    model.measure = watched  # type: ignore[method-assign]
    before = [row.voxels for row in model.structures]
    due: list[int] = []
    model.measurement_due.connect(lambda: due.append(1))
    model.start_measuring()
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    due.clear()
    model.session.jobs.wait()
    assert np.shares_memory(seen[0].labels, layer.data)
    assert due
    assert [row.voxels for row in model.structures] == before
    model.start_measuring()
    model.session.jobs.wait()
    assert model.structures[1].voxels == before[1] + 1


def test_labels_that_change_while_they_are_counted_are_counted_again(
    model: StructuresModel, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    due: list[int] = []
    monkeypatch.setattr(model.session, "show_messages", lambda *messages: shown.extend(messages))
    model.measurement_due.connect(lambda: due.append(1))

    def failing(snapshot: Snapshot, scan: Image | None) -> Any:
        raise ValueError("found no voxel")

    monkeypatch.setattr(model, "measure", failing)
    model.start_measuring()
    labels_of(viewer).data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    due.clear()
    model.session.jobs.wait()
    assert due
    assert not shown
    model.start_measuring()
    model.session.jobs.wait()
    assert len(shown) == 1  # an error that no edit explains is shown


def test_intensities_are_those_of_the_selected_scan(model: StructuresModel, viewer: ViewerModel, head: Volume) -> None:
    """Two scans on one grid, such as two channels or two phases."""
    due: list[int] = []
    model.measurement_due.connect(lambda: due.append(1))
    before, session = model.structures[0].mean_intensity, model.session
    first = session.scan
    ((data, settings, _),) = image_layers(replace(head, array=2 * head.array))
    second = viewer.add_layer(Image(data, **settings))
    viewer.layers.selection.active = labels_of(viewer)
    for scan, mean in ((first, before), (second, 2 * before)):
        session.choose_scan(scan)
        due.clear()
        session.show_messages()
        assert not due  # only the choice itself asks for a measurement
        model.start_measuring()
        session.jobs.wait()
        assert model.structures[0].mean_intensity == pytest.approx(mean)
        assert labels_of(viewer).features["mean"][1] == pytest.approx(mean, abs=0.01)
    due.clear()
    session.choose_scan(first)
    assert due
    viewer.layers.remove(second)
    viewer.layers.remove(first)
    model.start_measuring()
    session.jobs.wait()
    assert isnan(model.structures[0].mean_intensity)


def test_hidden_renamed_and_recoloured(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    model.draw(1, False)
    assert layer.colormap.map(1)[3] == 0
    assert not model.structures[0].shown
    model.draw(1, True)
    assert layer.colormap.map(1)[3] == 1
    model.rename(1, "  ball of the left ")
    model.rename(3, "  ")
    model.recolor(1, (1, 2, 3))
    assert [(row.name, row.color) for row in model.structures[:2]] == [
        ("ball of the left", (1, 2, 3)),
        ("nose", (0, 128, 255)),
    ]
    assert list(layer.features["name"])[1] == "ball of the left"
    text = export(Snapshot.of(layer), tmp_path / "named.seg.nrrd", "nrrd")
    assert text.startswith("Saved named.seg.nrrd (2 structures). Read back")
    saved = read_label_map(tmp_path / "named.seg.nrrd")
    assert (saved.segments[0].name, saved.segments[0].color) == ("ball of the left", (1, 2, 3))


def test_new_names_do_not_outdate_measurements(model: StructuresModel, viewer: ViewerModel) -> None:
    due: list[int] = []
    model.measurement_due.connect(lambda: due.append(1))
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    early, late = model.snapshot(), None
    layer.data_setitem((np.array([0]), np.array([0]), np.array([1])), 4)
    late = model.snapshot()
    assert early is not None
    assert late is not None
    model.rename(1, "ball")
    due.clear()
    model.take(model.measure(early, model.session.scan_on(early.layer)))
    assert due  # the labels were edited in the meantime
    model.take(model.measure(late, model.session.scan_on(late.layer)))
    assert model.structures[2].voxels == 2


def test_a_duplicate_is_a_layer_of_its_own(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    other = Labels(layer.data.copy(), **{**layer.as_layer_data_tuple()[1], "name": "copy"})
    viewer.add_layer(other)  # as napari's Duplicate does
    assert model.session.labels is other
    model.rename(1, "another")
    model.draw(3, False)
    assert state_of(other).is_unsaved
    assert not state_of(layer).is_unsaved
    assert segmentation_of(*layer.as_layer_data_tuple()[:2]).segments[0].name == "left ball"


def test_measurements_of_older_labels_are_not_shown(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    snapshot = model.snapshot()
    assert snapshot is not None
    before = [row.voxels for row in model.structures]
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    answer = model.measure(snapshot, model.session.scan_on(snapshot.layer))
    assert answer.counts.get(4) is None
    state_of(layer).counts = {1: 1}
    model.take(answer)
    assert state_of(layer).counts == {1: 1}
    model.take_comparison(compare(snapshot, snapshot))
    assert "edited during the comparison" in model.session.messages[0].text
    assert before != [row.voxels for row in model.structures]


def test_labels_from_a_file_find_the_images_of_their_scan(head: Volume, tmp_path: Path) -> None:
    phantoms.write_series(head, tmp_path / "series")
    series = replace(head, source=Source("dicom", tuple(sorted((tmp_path / "series").iterdir()))))
    viewer = ViewerModel()
    session = Session(viewer)
    placement = place(head.grid)
    labels = layer_of(labels_layer(found_in(head), placement, "from a file"))
    viewer.add_layer(labels)
    assert obstacle(session.labels, "seg") != ""
    viewer.add_layer(layer_of(image_layers(series)[0]))  # opened after them
    assert obstacle(session.labels, "seg") == ""


def test_a_closed_model_is_disconnected(model: StructuresModel, viewer: ViewerModel) -> None:
    model.close()
    model.session.close()
    labels_of(viewer).data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    viewer.layers.clear()
