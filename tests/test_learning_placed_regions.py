"""Places of regions are kept; what is kept for another localiser, or is no place of a region, is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_learning_training_set import case

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import LocaliseError
from napari_seg.geometry import Grid
from napari_seg.learning import placed_regions as module
from napari_seg.learning.placed_regions import REGIONS, placed_regions
from napari_seg.localise import Region
from napari_seg.volume import Volume

SCAN = Volume(np.zeros((1, 20, 20, 20), np.float32), Grid.around((0, -20, -10), (200, 200, 200), (10, 10, 10)))


class Localiser:
    """Places the regions of the shipped bundle in their template, and counts."""

    count = 0
    error: LocaliseError | None = None

    def __call__(self, volume: Volume, bundle: Any, progress: Any) -> Any:
        self.count += 1
        if self.error is not None:
            raise self.error
        spec = bundle.localiser
        grids = [Grid.around(one.center_mm, one.size_mm, spec.spacing_mm) for one in spec.regions]
        return [
            Region(one.name, grid.mirrored(0) if one.mirror else grid, one.labels, ())
            for one, grid in zip(spec.regions, grids, strict=True)
        ], ()


@pytest.fixture
def localiser(monkeypatch: pytest.MonkeyPatch) -> Localiser:
    found = Localiser()
    monkeypatch.setattr(module, "localise", found)
    return found


def place(folder: Path) -> list[Region]:
    return placed_regions(folder, case(1), SCAN, read_bundle(None))


def test_a_scan_is_located_once(localiser: Localiser, tmp_path: Path) -> None:
    first, second = place(tmp_path), place(tmp_path)
    assert localiser.count == 1
    assert [one.grid for one in second] == [one.grid for one in first]
    assert [(one.name, one.labels) for one in second] == [(one.name, one.labels) for one in first]
    assert [[s.name for s in one.segments] for one in second] == [
        [f"{side} {part} hippocampus" for part in ("anterior", "posterior")] for side in ("left", "right")
    ]


def test_a_scan_that_was_not_located_is_not_tried_again(localiser: Localiser, tmp_path: Path) -> None:
    localiser.error = LocaliseError("localise.outside", "the left part lies outside")
    for _ in range(2):
        with pytest.raises(LocaliseError, match=r"localise\.outside: the left part lies outside"):
            place(tmp_path)
    assert localiser.count == 1


def test_what_is_no_place_of_the_regions_is_not_believed(localiser: Localiser, tmp_path: Path) -> None:
    place(tmp_path)
    (path,) = (tmp_path / REGIONS).iterdir()
    content = json.loads(path.read_text())
    right = content["regions"][1]
    faults: list[Any] = [
        "",
        [],
        {"code": "x.y"},
        {"regions": content["regions"][:1]},
        {"regions": [right, right]},  # mirrored
        {"regions": [{**content["regions"][0], "shape": [100_000, 100_000, 100_000]}, right]},
        {"regions": [{**content["regions"][0], "shape": [-1, 5, 5]}, right]},
        {"regions": [{**content["regions"][0], "shape": 5}, right]},
        {"regions": [{**content["regions"][0], "affine": np.eye(3).tolist()}, right]},
        {"regions": [{**content["regions"][0], "affine": np.full((4, 4), np.nan).tolist()}, right]},
    ]
    for count, fault in enumerate(faults, 2):
        path.write_text(json.dumps(fault))
        place(tmp_path)
        assert localiser.count == count
    assert json.loads(path.read_text()) == content
