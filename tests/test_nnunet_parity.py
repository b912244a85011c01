"""The comparison with nnU-Net: agreement of label maps, and the page of the report."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("psutil")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from benchmarks.nnunet_cases import CASES
from nnunet_parity import agreement, chosen, describe, write

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


def test_agreement_counts_all_scans_together() -> None:
    theirs = {"a": np.array([0, 1, 1, 2]), "b": np.array([0, 0, 2, 2])}
    ours = {"a": np.array([0, 1, 2, 2]), "b": np.array([0, 0, 2, 2])}
    found = agreement(ours, theirs)
    assert found["equal"] == pytest.approx(7 / 8)
    assert found["least_dice"] == pytest.approx(2 / 3)
    assert found["dice"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    assert found["labels"] == 2


def test_the_page_has_a_row_for_every_run(tmp_path: Path) -> None:
    run = {"equal": 1.0, "dice": 1.0, "least_dice": 0.99951, "labels": 2, "seconds": 7.2, "peak_gib": 0.5}
    write(tmp_path, "regions:3d_fullres", {"about": "regions", "nnunet": run, "exact": run}, ABOUT)
    write(tmp_path, "axons:2d", {"about": "pictures", "nnunet": run, "exact": run, "fast": run}, ABOUT)
    page = (tmp_path / "nnunet.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| axons, 2d", "| regions, 3d_fullres"]
    assert "| 1.00000 (0.99951) |" in rows[1]
    assert "7 / – / 7" in rows[2]


def test_a_run_that_failed_leaves_its_cells_empty() -> None:
    page = describe({"machine": ABOUT, "rows": {"ct:3d_fullres": {"about": "CT", "exact": {"error": "no"}}}})
    assert "| ct, 3d_fullres | – | – | – (–) | – | – (–) | – |" in page


def test_chosen_scans_are_copied_with_all_channels(tmp_path: Path) -> None:
    scans = tmp_path / "imagesTs"
    scans.mkdir()
    for name in ("case_000_0000", "case_001_0000", "case_001_0001"):
        (scans / f"{name}.nii.gz").touch()
    folder = chosen(scans, tmp_path / "scans", [1])
    assert sorted(path.name for path in folder.iterdir()) == ["case_001_0000.nii.gz", "case_001_0001.nii.gz"]
    assert chosen(scans, tmp_path / "other", None) == scans


def test_numbers_of_data_sets_are_unique() -> None:
    assert len({case.number for case in CASES.values()}) == len(CASES)
