"""Every small input that once failed is right; the modules of each format make the same kinds themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.cli import main

# DICOM series


# segmentations and contours


@pytest.mark.parametrize("name", ["rs_of_A.dcm", "segA.dcm"])
def test_a_segmentation_of_another_scan(name: str, cases: Path, tmp_path: Path) -> None:
    folder = cases / "rtstruct_other_scan"
    words = ["convert", str(folder / name), str(tmp_path / "out.nii.gz"), "--scan"]
    assert main([*words, str(folder / "scanB")]) == 4
    assert main([*words, str(folder / "scanA")]) == 0


# NIfTI, MetaImage, NRRD and images


# training and evaluation
