"""Ensembles: the probabilities of several models are averaged on the scan's grid."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunet_models import configuration, write_model
from scipy.ndimage import gaussian_filter

from napari_seg.bundles.output import Output
from napari_seg.errors import EnvironmentFault
from napari_seg.formats.temporary import remove_leftovers
from napari_seg.geometry import Grid
from napari_seg.inference import plan as planning
from napari_seg.inference.decide import average
from napari_seg.inference.segment import segment
from napari_seg.volume import Segmentation, Volume

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))


@pytest.fixture
def scan() -> Volume:
    """A scan whose first and last planes are empty."""
    array = gaussian_filter(np.random.default_rng(0).normal(size=(24, 22, 20)), 2) * 100
    array[:3] = array[:, :, -2:] = 0
    return Volume(array[None].astype(np.float32), Grid((24, 22, 20), np.diag([-1.0, 1.2, 1.5, 1.0])), "scan", "")


def write_two(folder: Path, *, seeds: tuple[int, int] = (1, 2), **changes: Any) -> str:
    """Write two models of a data set, of other voxel sizes, and return the name of their ensemble."""
    first = write_model(folder, "3d_fullres", configuration((16, 16, 16), (1.5, 1.2, 1)), seed=seeds[0], **changes)
    write_model(folder, "3d_lowres", configuration((16, 16, 16), (2, 2, 2)), seed=seeds[1], **changes)
    return f"{first.parent}:3d_fullres+3d_lowres"


def probabilities(scan: Volume, name: str) -> np.ndarray:
    """Return the probabilities of one model at the scan's voxels, by the same sums."""
    sums: list[np.ndarray] = []
    decide = average.ProbabilityAverage.decide

    def keep(self: average.ProbabilityAverage, *arguments: Any) -> dict[int, float]:
        sums.append(np.array(self._sums()))
        return decide(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(average.ProbabilityAverage, "decide", keep)
        folder, one = name.split(":")
        segment(scan, f"{folder}:{one}+{one}", device="cpu", backend="torch")
    return sums[0] / 2


def inner(found: Segmentation) -> np.ndarray:
    return found.array[3:, :, :-2]


def test_only_an_average_copies_blocks_of_the_voxels_of_the_scan(
    tmp_path: Path, scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    best_plan = planning.best_plan

    def watched(*known: Any, extends: bool) -> planning.Plan:
        seen.append(extends)
        return best_plan(*known, extends=extends)

    monkeypatch.setattr(planning, "best_plan", watched)
    folder, _ = write_two(tmp_path).split(":")
    whole = replace(scan, array=scan.array + 1000)  # nothing is cropped
    for name, is_copied in (("3d_fullres", False), ("3d_lowres", True), ("3d_fullres+3d_fullres", True)):
        seen.clear()
        segment(whole, f"{folder}:{name}", device="cpu", backend="torch")
        assert set(seen) == {is_copied}, name


def test_probabilities_are_averaged(tmp_path: Path, scan: Volume) -> None:
    name = write_two(tmp_path)
    found = segment(scan, name, device="cpu", backend="torch")
    folder = name.partition(":")[0]
    each = [probabilities(scan, f"{folder}:{one}") for one in ("3d_fullres", "3d_lowres")]
    mean = (each[0] + each[1]) / 2
    assert np.mean(inner(found) == mean.argmax(0)) > 0.9999
    assert not found.array[:3].any()
    assert not found.array[:, :, -2:].any()
    for label in found.confidence:
        assert found.confidence[label] == pytest.approx(mean.max(0)[inner(found) == label].mean(), abs=1e-4)
    assert [list(run["weights"]) for run in found.run["members"].values()] == [["fold_0"], ["fold_0"]]


def test_equal_models_give_the_labels_of_one(tmp_path: Path, scan: Volume) -> None:
    folder = write_two(tmp_path).partition(":")[0]
    one = segment(scan, f"{folder}:3d_lowres", device="cpu", backend="torch")
    two = segment(scan, f"{folder}:3d_lowres+3d_lowres", device="cpu", backend="torch")
    assert np.mean(one.array == two.array) > 0.9999
    assert len(np.unique(one.array)) > 1


def test_regions_have_thresholds_in_their_order(tmp_path: Path, scan: Volume) -> None:
    name = write_two(tmp_path, dataset_changes=REGIONS)
    found = segment(scan, name, device="cpu", backend="torch")
    folder = name.partition(":")[0]
    each = [probabilities(scan, f"{folder}:{one}") for one in ("3d_fullres", "3d_lowres")]
    whole, core = (each[0] + each[1]) / 2
    expected = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    assert np.mean(inner(found) == expected) > 0.9999


def test_a_temporary_file_gives_the_same(tmp_path: Path, scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_two(tmp_path)
    expected = segment(scan, name, device="cpu", backend="torch", confidence_maps=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(average, "MAX_FRACTION", 0)
    found = segment(scan, name, device="cpu", backend="torch", confidence_maps=True)
    assert np.array_equal(found.array, expected.array)
    assert found.confidence == expected.confidence
    assert found.confidence_maps is not None
    assert expected.confidence_maps is not None
    assert np.array_equal(found.confidence_maps.confidence, expected.confidence_maps.confidence)
    assert found.confidence_maps.confidence[0].min() == 255  # nothing was there to look at
    assert not list((tmp_path / "temporary").iterdir())


def test_a_full_disk_is_a_fault(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average, "MAX_FRACTION", 0)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(EnvironmentFault, match="No space left") as fault:
        average.ProbabilityAverage(scan.grid, (0, 0, 0), scan.grid.shape, 3, Output(), 2**30)
    assert fault.value.code == "environment.temporary"


def test_probabilities_of_a_killed_process_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    grid = Grid((4, 3, 3), np.eye(4))
    with average.ProbabilityAverage(grid, (0, 0, 0), grid.shape, 2, Output(), 0) as sums:
        assert [path.stat().st_size for path in tmp_path.rglob("probabilities")] == [4 * 2 * 36]
        sums._folder._lock.release()  # type: ignore[union-attr]  # as the system does
        remove_leftovers.__wrapped__()
        assert not list(tmp_path.iterdir())


def test_progress_covers_all_models(tmp_path: Path, scan: Volume) -> None:
    steps: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            steps.append((done, total))

    segment(scan, write_two(tmp_path), device="cpu", backend="torch", progress=progress)
    fractions = [done / total for done, total in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_what_no_model_looked_at_is_background() -> None:
    grid = Grid((4, 3, 3), np.eye(4))
    with average.ProbabilityAverage(grid, (1, 0, 0), (4, 3, 3), 2, Output(), 2**40) as sums:
        sums.count = 2
        values = np.zeros((2, 2, 3, 3), np.float32)
        values[1] = 1
        sums.add((slice(0, 2), slice(0, 3), slice(0, 3)), values)  # its first plane lies outside of the box
        sums.add((slice(1, 2), slice(0, 3), slice(0, 3)), values[:, :1])
        label_map = np.zeros(grid.shape, np.uint8)
        confidence = sums.decide(label_map, {1: 7}, None)
    assert label_map[:, 0, 0].tolist() == [0, 7, 0, 0]
    assert confidence == {1: 1.0}
