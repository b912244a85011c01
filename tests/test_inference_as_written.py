"""A bundle that the engine can't express runs through `segment` and the command line, as it is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import phantoms
import pytest
from workflows import write_workflow

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.ways import way_of
from napari_seg.cli.main import main
from napari_seg.errors import BundleError
from napari_seg.formats.read import read
from napari_seg.inference import as_written as module
from napari_seg.inference.estimate import estimate
from napari_seg.inference.segment import segment
from napari_seg.volume import Segmentation, Volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_workflow(tmp_path / "bundle")


@pytest.mark.usefixtures("inline_cohorts")
def test_the_command_line_runs_it_after_consent(
    head: Volume, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scan = phantoms.write_nifti(head, tmp_path / "scan.nii.gz")
    words = ["predict", str(scan), "-o", str(tmp_path / "out"), "--bundle", str(root), "--device", "cpu"]
    assert main(words) == 1
    assert "bundle.untrusted" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    printed = capsys.readouterr()
    assert "scripts/late.py: all lines run (8)" in printed.err
    assert "1 done, 0 failed" in printed.out
    labels = read(tmp_path / "out" / "scan_seg.nii.gz").array[0]
    np.testing.assert_array_equal(labels > 0, head.array[0] > 100)
    record = json.loads((tmp_path / "out" / "scan_seg.json").read_text())
    assert [(one["label"], one["name"]) for one in record["segments"]] == [(3, "lower"), (6, "upper")]
    with (root / "scripts" / "late.py").open("a") as file:
        file.write("\n")
    assert main([*words, "--overwrite"]) == 1
    assert "bundle.trust_changed" in capsys.readouterr().err


def test_cost_is_unknown_and_options_of_the_engine_are_reported(
    head: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(volume: Volume, *_: object) -> Segmentation:
        return Segmentation(np.zeros(volume.grid.shape, np.uint8), volume.grid, bundle.segments)

    monkeypatch.setattr(module, "run_workflow", run)
    assert way_of(read_bundle(root)).kind == "workflow"
    for call in (segment, estimate):
        with pytest.raises(BundleError, match="untrusted"):
            call(head, root, device="cpu")
    bundle = read_bundle(root, trust=True)
    assert estimate(head, bundle, device="cpu") is None
    with pytest.raises(BundleError, match=r"bundle\.tta"):
        segment(head, bundle, device="cpu", tta="mirror")
    found = segment(head, bundle, device="cpu", confidence_maps=True)
    assert "result.no_confidence" in [notice.code for notice in found.notices]
