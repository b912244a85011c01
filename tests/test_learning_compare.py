"""Two models are compared on the same labels, case by case; scores are computed once."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import InputError
from napari_seg.formats.nifti import write_map
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.learning.accept import accept
from napari_seg.learning.compare import MEAN, SCORES, compared, evaluate
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume

NAN = math.nan


def test_rows_are_paired_and_structures_weigh_alike() -> None:
    before = {"a": {"liver": 0.5, "spleen": 0.7}, "b": {"liver": 0.6, "spleen": NAN}, "c": {"liver": 0.9}}
    after = {"a": {"liver": 0.7, "spleen": 0.8, "new": 0.3}, "b": {"liver": 0.7, "spleen": 0.1}}
    rows = {row.structure: row for row in compared(before, after)}
    assert list(rows) == ["liver", "new", "spleen", MEAN]
    liver = rows["liver"]
    assert (liver.cases, liver.before, liver.after) == (2, pytest.approx(0.55), pytest.approx(0.7))
    assert (math.isnan(liver.low), math.isnan(liver.high)) == (True, True), "two cases tell nothing about others"
    spleen = rows["spleen"]  # in b only the new model finds one, and there is none
    assert (spleen.cases, spleen.before, spleen.after) == (2, pytest.approx(0.85), pytest.approx(0.45))
    assert (spleen.one_empty, liver.one_empty, rows[MEAN].one_empty) == (1, 0, 1)
    assert math.isnan(rows["new"].before)
    assert (rows["new"].cases, rows["new"].after) == (1, 0.3)
    assert (rows[MEAN].cases, rows[MEAN].before, rows[MEAN].after) == (2, pytest.approx(0.7), pytest.approx(0.575))
    assert compared({}, {}) == []


def test_the_interval_is_that_of_the_patients() -> None:
    gains = [0.02, 0.05, 0.01, 0.04, 0.03, 0.06]
    before = {f"c{n}": {"liver": 0.5} for n in range(6)}
    after = {f"c{n}": {"liver": 0.5 + gain} for n, gain in enumerate(gains)}
    row = compared(before, after)[0]
    # t distribution with 5 degrees of freedom: 0.035 +- 2.5706 * 0.018708 / sqrt(6)
    assert (row.low, row.high) == (pytest.approx(0.015367, abs=1e-5), pytest.approx(0.054633, abs=1e-5))
    # a second scan of a patient is no further patient
    row = compared(before, after, {"c5": "p", "c4": "p"})[0]
    assert (row.cases, row.patients) == (6, 5)
    assert math.isnan(row.low)
    for n in range(20):
        before |= {f"again{n}": {"liver": 0.5}}
        after |= {f"again{n}": {"liver": 0.56}}
    one = compared(before, after, {f"again{n}": "c5" for n in range(20)} | {"c5": "c5"})[0]
    assert (one.cases, one.patients) == (26, 6)
    assert (one.low, one.high) == (pytest.approx(0.015367, abs=1e-5), pytest.approx(0.054633, abs=1e-5))
    same = compared(before, before)[0]
    assert (same.low, same.high) == (0, 0)


@pytest.mark.parametrize("count", [6, 8])
def test_chance_is_called_clear_in_one_of_twenty(count: int) -> None:
    draws = np.random.default_rng(0)
    names = [f"c{n}" for n in range(count)]
    before = {name: {"liver": 0.5} for name in names}
    clear = 0
    for _ in range(400):
        gains = draws.normal(0, 0.02, count)
        row = compared(before, {name: {"liver": 0.5 + gain} for name, gain in zip(names, gains, strict=True)})[0]
        clear += row.low > 0 or row.high < 0
    assert clear / 400 < 0.08


def test_segments_of_one_name_are_one_structure(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(scan: Volume, *_: object) -> Segmentation:
        array = np.zeros(scan.grid.shape, np.uint8)
        array[4:8, 4:8, 4:6] = [1, 2]
        return Segmentation(array, scan.grid, (Segment(1, "bright", (1, 1, 1)), Segment(2, "bright", (2, 2, 2))))

    bundle = read_bundle(bundles.write_threshold_bundle(tmp_path / "bundle"), trust=True)
    monkeypatch.setattr("napari_seg.learning.compare.segment", found)
    scores = evaluate(folder, read_training_set(folder), bundle)
    assert [one["bright"] for one in scores.values()] == [1, 1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two validation cases with a bright block, whose labels miss a part of it."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    for seed in range(2):
        array = np.random.default_rng(seed).uniform(0, 50, (1, 16, 16, 16)).astype(np.float32)
        array[0, 4:8, 4:8, 4:8] = 200
        grid = Grid((16, 16, 16), np.eye(4))
        labels = np.zeros(grid.shape, np.uint8)
        labels[4:8, 4:8, 4:6] = 3
        found = Segmentation(labels, grid, (Segment(3, "bright", (1, 1, 1)), Segment(4, "unknown", (2, 2, 2))))
        accept(found, Volume(array, grid), tmp_path / "set", Provenance(), part="validation")
    return tmp_path / "set"


def test_labels_are_compared_on_the_voxels_of_the_scan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(bundles.write_threshold_bundle(tmp_path / "bundle"), trust=True)
    monkeypatch.setattr("napari_seg.learning.compare.segment", _result)
    content = read_training_set(folder)
    scores = evaluate(folder, content, bundle)
    shutil.rmtree(folder / SCORES)
    for case in content.cases:  # as another program may write them
        found = read(folder / case.labels)
        write_map(found.array[0][::-1], found.grid.mirrored(0), folder / case.labels)
    assert evaluate(folder, content, bundle) == scores
    shutil.rmtree(folder / SCORES)
    path = folder / content.cases[0].labels
    write_map(found.array[0], Grid(found.grid.shape, found.grid.affine @ np.diag([2, 1, 1, 1])), path)
    with pytest.raises(InputError, match=r"geometry\.other_grid"):
        evaluate(folder, content, bundle)


def test_scores_are_those_of_the_results_and_computed_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bundles.write_threshold_bundle(tmp_path / "bundle")
    bundle = read_bundle(root, trust=True)
    bundle_names = [one.name for one in bundle.segments]
    monkeypatch.setattr("napari_seg.learning.compare.segment", _result)
    content = read_training_set(folder)
    scores = evaluate(folder, content, bundle)
    assert scores == {name: {"bright": pytest.approx(2 * 32 / (32 + 64))} for name in ("case0001", "case0002")}
    assert bundle_names
    monkeypatch.setattr("napari_seg.learning.compare.segment", None)
    assert evaluate(folder, content, bundle) == scores
    # another version of this program may resample or blend otherwise
    with monkeypatch.context() as patch:
        patch.setattr("napari_seg.learning.compare.__version__", "999")
        with pytest.raises(TypeError):
            evaluate(folder, content, bundle)
    # other labels, other scores
    changed = replace(content, cases=(replace(content.cases[0], labels="./labelsTr/case0001_r2.nii.gz"),))
    with pytest.raises(Exception, match="case0001_r2"):
        evaluate(folder, changed, bundle)
    (file,) = (folder / SCORES).iterdir()
    file.write_text('{"a": {"bright": 7}}')
    monkeypatch.setattr("napari_seg.learning.compare.segment", _result)
    assert evaluate(folder, content, bundle) == scores


def _result(scan: Volume, bundle: Any) -> Segmentation:
    return Segmentation((scan.array[0] > 100).astype(np.uint8), scan.grid, (Segment(1, "Bright", (1, 1, 1)),))
