"""The comparison with TotalSegmentator: scans that are made, agreement of label maps, and the page of the report."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("psutil")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from totalsegmentator_parity import CASES, SCANS, agreement, oblique, write
from totalsegmentator_weights import GRIDS, models_of

from napari_seg.bundles.totalsegmentator.table import tasks

ABOUT = {
    "processor": "P",
    "cores": 2,
    "memory_gib": 24,
    "gpu": None,
    "system": "S",
    "python": "3.11",
    "versions": {"napari-seg": "1"},
    "load_before": 1.0,
}


def image(values: list[int]) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.array(values, np.uint8)[:, None, None], np.eye(4))


def test_small_structures_are_listed_apart() -> None:
    theirs, ours = image([1] * 40 + [2] * 5 + [0] * 5), image([1] * 39 + [2] * 4 + [0] * 7)
    found = agreement(ours, theirs, {1: "liver", 2: "gallbladder"})
    assert found["structures"] == 1
    assert found["least_dice"] == pytest.approx(78 / 79)
    assert found["below"] == {"liver": 0.98734}
    assert found["small"] == {"gallbladder": [5, 0.6667]}
    assert found["different"] == 3


def test_maps_of_different_shapes_are_an_error() -> None:
    assert "shapes differ" in agreement(image([1, 2]), image([1, 2, 3]), {})["error"]


def test_every_case_has_a_task_and_a_scan() -> None:
    assert {case.task for case in CASES.values()} <= set(tasks())
    assert {case.scan for case in CASES.values()} <= set(SCANS)


def test_models_that_are_made_have_a_channel_for_every_label() -> None:
    for task in (task for grid in GRIDS for task in grid.tasks):
        for model in models_of(task):
            assert model.channels > max(model.labels)


def test_the_oblique_scan_is_orthogonal_and_permuted() -> None:
    scan = oblique(nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.diag([3.0, 3, 3, 1])))
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3))
    assert nib.aff2axcodes(scan.affine) != ("R", "A", "S")


def test_the_page_shows_agreement_and_time_apart(tmp_path: Path) -> None:
    took = {"seconds": 80.0, "peak_gib": 4.0}
    run = {"equal": 1.0, "dice": 1.0, "least_dice": 0.99951, "structures": 9, "small": {"aorta": [3, 1.0]}}
    ours = {**run, "seconds": 20.0, "peak_gib": 1.0}
    write(tmp_path, "ct fast", {"theirs": took, "exact": ours}, ABOUT)
    write(tmp_path, "full fast", {"theirs": took, "exact": ours, "fast": {"error": "no memory"}}, ABOUT)
    page = (tmp_path / "totalsegmentator.md").read_text()
    assert "| ct fast | 9 | 100.0000% | – | 1.00000 (0.99951) | – | – | 20 / – / 80 | 1.00 / – / 4.00 |" in page
    assert "| full fast | --match exact |  | 20 | 1.00 | 4.0 | 0.25 |" in page
    assert "aorta (3: 1.000)" in page
    assert "full fast, fast: no memory" in page
