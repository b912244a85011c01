"""Crops of accepted cases are what a network in boxes sees, mirrored ones too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.learning.accept import accept
from napari_seg.learning.crops import write_crops
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.localise import Region
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume

NAMES = [f"{side} {part} hippocampus" for side in ("left", "right") for part in ("anterior", "posterior")]


def test_both_sides_are_as_the_network_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    grid = Grid((20, 8, 8), np.array([[1.0, 0, 0, -10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    scan = Volume(np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32), grid)
    labels = np.zeros(grid.shape, np.uint8)
    labels[3:6, 5:7, 2:4], labels[3:6, 1:4, 2:4] = 1, 2  # left: low indices
    labels[14:17, 5:7, 2:4], labels[14:17, 1:4, 2:4] = 3, 4
    segments = tuple(Segment(n, name, (n, 0, 0)) for n, name in enumerate(NAMES, 1))
    given = Segmentation(labels, grid, segments)
    folder = tmp_path / "set"
    accept(given, scan, folder, Provenance())
    accept(given, Volume(scan.array + 1, grid), folder, Provenance(), annotated=[NAMES[0]])
    bundle = read_bundle(None)
    left, right = grid.box((0, 0, 0), (8, 8, 8)), grid.box((12, 0, 0), (20, 8, 8)).mirrored(0)
    regions = [
        Region("left", left, {1: 1, 2: 2}, bundle.segments[:2]),
        Region("right", right, {1: 3, 2: 4}, bundle.segments[2:]),
    ]
    monkeypatch.setattr("napari_seg.learning.crops.localise", lambda *_: (regions, ()))
    entries = write_crops(folder, read_training_set(folder), bundle, tmp_path / "boxes")
    assert [entry["name"] for entry in entries] == ["case0001_box1", "case0001_box2", "case0002_box1"]
    assert [entry["patient"] for entry in entries] == ["patient 1", "patient 1", "patient 2"]
    assert [entry["split"] for entry in entries] == ["training", "training", "validation"]
    assert "labelled" not in entries[0]
    assert entries[2]["labelled"] == ["anterior hippocampus"]
    images = [read(tmp_path / entry["image"]) for entry in entries]
    found = [read(tmp_path / entry["label"]).array[0] for entry in entries]
    assert np.array_equal(images[0].array, scan.array[:, :8])
    assert np.array_equal(images[1].array, scan.array[:, :11:-1]), "the right side is the mirror image of a left one"
    assert np.array_equal(found[0], labels[:8])
    assert np.array_equal(found[1], np.where(labels > 2, labels - 2, 0)[:11:-1])
    # readers turn images to RAS: the crops lie there already
    assert {image.grid.orientation for image in images} == {"RAS"}
    assert np.unique(found[2]).tolist() == [0, 1]


def test_the_grid_of_a_crop_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that is a crop already stays where it is."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    grid = Grid((12, 14, 10), np.diag([2.0, 1.0, 1.5, 1.0]))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 2:5, 2:5] = 7
    given = Segmentation(labels, grid, (Segment(7, "Anterior hippocampus", (1, 0, 0)),))
    accept(given, Volume(np.ones((1, *grid.shape), np.float32), grid), tmp_path / "set", Provenance())
    content = read_training_set(tmp_path / "set")
    (entry,) = write_crops(tmp_path / "set", content, read_bundle(None), tmp_path / "boxes")
    assert entry["labelled"] == ["anterior hippocampus"]
    label = read(tmp_path / entry["label"])
    assert label.grid.matches(grid)
    assert (label.array[0] == (labels > 0)).all()
