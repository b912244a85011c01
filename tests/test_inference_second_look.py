"""A second look at a scan: disagreement and embedding, for each kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import write_plain_bundle, write_threshold_bundle
from nnunet_models import configuration, write_model
from task_models import write_task

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.second_look import second_look
from napari_seg.volume import Volume

OPTIONS = SegmentOptions(device="cpu", backend="torch")


@pytest.fixture
def scan() -> Volume:
    array = 100 * np.random.default_rng(0).normal(size=(1, 24, 22, 20)).astype(np.float32)
    return Volume(array, Grid((24, 22, 20), np.eye(4)), "scan", "")


def test_a_network_of_one_training(scan: Volume, tmp_path: Path) -> None:
    found = second_look(scan, write_plain_bundle(tmp_path / "plain"), OPTIONS)
    assert found.disagreement is not None
    assert found.disagreement.members == "windows shifted by 0 to 3 voxels"
    assert 0 < found.disagreement.overall < 1
    assert found.embedding is not None
    again = second_look(scan, tmp_path / "plain", OPTIONS, with_disagreement=False)
    assert again.disagreement is None
    assert again.embedding is not None
    assert np.array_equal(again.embedding, found.embedding)


def test_models_that_are_averaged_are_the_members(scan: Volume, tmp_path: Path) -> None:
    first = write_model(tmp_path, "3d_fullres", configuration((16, 16, 16)), seed=1)
    write_model(tmp_path, "3d_lowres", configuration((16, 16, 16), (2, 2, 2)), seed=2)
    found = second_look(scan, f"{first.parent}:3d_fullres+3d_lowres", OPTIONS)
    assert found.disagreement is not None
    assert found.disagreement.members == "2 models"
    assert 0 < found.disagreement.overall <= 1
    same = second_look(scan, f"{first.parent}:3d_fullres+3d_fullres", OPTIONS)
    assert same.disagreement is not None
    assert same.disagreement.overall == 0


def test_a_network_without_feature_maps_is_described_by_intensities(scan: Volume, tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "threshold", spacing=(1, 1, 1))
    found = second_look(scan, read_bundle(root, trust=True), OPTIONS)
    assert found.embedding is None
    assert found.description.shape == (13,)
    assert found.disagreement is not None
    assert set(found.disagreement.structures) <= {"bright", "upper"}


def test_only_the_required_structures_count(scan: Volume, tmp_path: Path) -> None:
    options = SegmentOptions(device="cpu", backend="torch", structures=("two",))
    found = second_look(scan, write_plain_bundle(tmp_path / "plain"), options)
    assert found.disagreement is not None
    assert set(found.disagreement.structures) == {"two"}


def test_a_model_that_is_run_as_it_is_has_no_members(scan: Volume, tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    config = root / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"SlidingWindowInferer"', '"SimpleInferer"'))
    config.write_text(config.read_text().replace(', "roi_size": [16, 16, 16], "overlap": 0.25', ""))
    with pytest.raises(BundleError) as caught:
        second_look(scan, root, OPTIONS)
    assert caught.value.code == "bundle.no_members"
    found = second_look(scan, root, OPTIONS, with_disagreement=False)
    assert (found.disagreement, found.embedding) == (None, None)


def test_a_task_of_several_models_has_no_members(scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path))
    write_task(tmp_path, "total_mr")
    with pytest.raises(BundleError) as caught:
        second_look(scan, "totalsegmentator:total_mr", OPTIONS)
    assert caught.value.code == "bundle.no_members"
    assert second_look(scan, "totalsegmentator:total_mr", OPTIONS, with_disagreement=False).embedding is None


def test_the_memory_is_planned(scan: Volume, tmp_path: Path) -> None:
    options = SegmentOptions(device="cpu", backend="torch", memory_bytes=2**20)
    with pytest.raises(EnvironmentFault) as caught:
        second_look(scan, write_plain_bundle(tmp_path / "plain"), options, with_disagreement=False)
    assert caught.value.code == "environment.memory"


def test_the_look_can_be_stopped(scan: Volume, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "segmenting" and done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        second_look(scan, write_plain_bundle(tmp_path / "plain"), OPTIONS, progress=stop)
