"""A bundle that needs its own workflow gives what MONAI gives, on the scan's grid; nothing is guessed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from workflows import CONFIG, run_with_monai, write_workflow

from napari_seg.bundles import workflow as module
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.workflow import run_workflow
from napari_seg.errors import BundleError, Cancelled
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segmentation, Volume


def run(root: Path, volume: Volume, **options: Any) -> Segmentation:
    return run_workflow(volume, read_bundle(root, trust=True), **options)


def refusal(root: Path, volume: Volume) -> BundleError:
    with pytest.raises(BundleError) as caught:
        run(root, volume)
    return caught.value


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_result_equals_that_of_monai_also_between_bundles_whose_modules_share_names(
    head: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    high = float(np.median(head.array[head.array > 100]))
    other = run(write_workflow(tmp_path / "other", limit=high, factor=1), head).array
    assert set(np.unique(other)) == {0, 1, 2}
    np.testing.assert_array_equal(other > 0, head.array[0] > high)
    root = write_workflow(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    phantoms.write_nifti(head, tmp_path / "images" / "head.nii.gz")
    before = files_below(root)
    with caplog.at_level(logging.INFO, "napari_seg"):
        found = run(root, head)
    assert files_below(root) == before
    assert "bundle: renumbering" in caplog.text
    run_with_monai(root, tmp_path / "images", tmp_path / "results")
    (saved,) = (tmp_path / "results").rglob("*.nii.gz")
    expected = read(saved)
    np.testing.assert_array_equal(found.array, expected.array[0])
    assert set(np.unique(found.array)) == {0, 3, 6}
    np.testing.assert_array_equal(found.array > 0, head.array[0] > 100)
    assert found.grid == head.grid
    assert [(segment.label, segment.name) for segment in found.segments] == [(3, "lower"), (6, "upper")]
    assert found.notices == head.notices


def test_labels_between_whole_numbers_are_rounded_and_counted(head: Volume, tmp_path: Path) -> None:
    bundle, path = read_bundle(write_workflow(tmp_path / "bundle")), tmp_path / "saved.nii.gz"
    array = np.zeros(head.grid.shape, np.float32)
    array[1], array[2], array[3, 0, :2] = 3, 5.9999, (1.25, 2.5)
    write_map(array, head.grid, path)
    labels, (notice,) = module._read_labels(bundle, path, head.grid)
    np.testing.assert_array_equal(labels, np.rint(array))
    assert notice.code == "result.rounded"
    assert notice.message.startswith(f"2 of {array.size} voxels")
    assert [(s.label, s.name) for s in module._segments(bundle, labels)] == [
        (1, "segment 1"),
        (2, "segment 2"),
        (3, "lower"),
        (6, "upper"),
    ]


def test_a_result_on_another_grid_is_refused(head: Volume, tmp_path: Path) -> None:
    bundle, path = read_bundle(write_workflow(tmp_path / "bundle")), tmp_path / "saved.nii.gz"
    moved = head.grid.affine.copy()
    moved[0, 3] += 0.5
    shorter = np.zeros(np.subtract(head.grid.shape, (0, 0, 1)), np.float32)
    for array, affine in ((np.zeros(head.grid.shape, np.float32), moved), (shorter, head.grid.affine)):
        write_map(array, Grid(array.shape, affine), path)
        with pytest.raises(BundleError, match="on another grid than the scan's") as caught:
            module._read_labels(bundle, path, head.grid)
        assert caught.value.code == "bundle.workflow_output"


def test_a_failure_names_its_cause(head: Volume, tmp_path: Path) -> None:
    root = write_workflow(tmp_path / "bundle")
    (root / "scripts" / "late.py").write_text("import no_such_package\n")
    error = refusal(root, head)
    assert error.code == "bundle.workflow"
    assert "the package no_such_package is not installed" in error.message


def test_a_stopped_run_ends_its_process(head: Volume, tmp_path: Path) -> None:
    root = write_workflow(tmp_path / "bundle")
    (root / "scripts" / "late.py").write_text("import time\ntime.sleep(3600)\n")
    calls = []

    def stop(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if calls.count("segmenting") > 1:
            raise Cancelled()

    with pytest.raises(Cancelled):
        run(root, head, progress=stop)
    assert calls[0] == "loading"


def test_several_channels_and_images_reach_the_bundle(head: Volume, tmp_path: Path) -> None:
    two = replace(head, array=np.concatenate([head.array, 2 * head.array]))
    steps = CONFIG["preprocessing"]["transforms"]
    second = {"_target_": "Lambdad", "keys": "@image_key", "func": "$lambda x: x[[1]] / 2"}
    listed = write_workflow(
        tmp_path / "listed",
        preprocessing={"_target_": "Compose", "transforms": [steps[0], steps[1], second, *steps[2:]]},
    )
    named = write_workflow(
        tmp_path / "named",
        image_key="late",
        preprocessing={
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": ["early", "late", "label"]},
                {"_target_": "EnsureChannelFirstd", "keys": ["early", "late"]},
                {**second, "func": "$lambda x: x / 2"},
                *steps[2:],
                {"_target_": "CopyItemsd", "keys": "late", "names": "image"},
            ],
        },
        evaluating=None,
    )
    for root in (listed, named):
        found = run(root, two)
        np.testing.assert_array_equal(found.array > 0, head.array[0] > 100)
        assert [notice.code for notice in found.notices] == ["bundle.empty_labels"] * (root == named)
    assert refusal(named, head).code == "bundle.channels"


def test_code_that_changed_while_it_started_does_not_run(head: Volume, tmp_path: Path) -> None:
    root = write_workflow(tmp_path / "bundle")
    with pytest.raises(BundleError) as caught:
        run(root, head, digest="0" * 64)
    assert caught.value.code == "bundle.trust_changed"


def test_saved_channels_become_labels_by_the_thresholds_of_the_metadata(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_workflow(tmp_path / "bundle"))
    array = np.zeros((2, *head.grid.shape), np.float32)
    array[0, :3], array[1, 2:5] = 0.4, 0.7
    path = tmp_path / "saved.nii.gz"
    write_volume(replace(head, array=array, grid=head.grid), path)
    with pytest.raises(BundleError, match="saved 2 channels"):
        module._read_labels(bundle, path, head.grid)
    labels, notices = module._read_labels(replace(bundle, thresholds=(0.3, 0.6)), path, head.grid)
    assert [int(plane.max()) for plane in labels[:6]] == [1, 1, 2, 2, 2, 0]
    assert notices == ()


def test_a_result_in_another_voxel_order_is_put_in_the_scan_s(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_workflow(tmp_path / "bundle"))
    expected = (head.array[0] > 100).astype(np.uint8)
    turned = head.grid.reoriented("PSL")
    write_map(resample(expected, head.grid, turned, order=0).astype(np.float32), turned, tmp_path / "saved.nii")
    labels, _ = module._read_labels(bundle, tmp_path / "saved.nii", head.grid)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("value", [-1, 70_000, np.nan])
def test_values_that_are_no_labels_are_refused(value: float, head: Volume, tmp_path: Path) -> None:
    import nibabel

    bundle = read_bundle(write_workflow(tmp_path / "bundle"))
    nibabel.save(nibabel.Nifti1Image(np.full(head.grid.shape, float(value)), head.grid.affine), tmp_path / "saved.nii")
    with pytest.raises(BundleError) as caught:
        module._read_labels(bundle, tmp_path / "saved.nii", head.grid)
    assert caught.value.code == "bundle.workflow_output"
