"""A config is told where its case, its results and its device are, and nothing else; nothing of it runs for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workflows import CONFIG, write_workflow

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.workflow_plan import plan_workflow
from napari_seg.errors import BundleError


def saving(**arguments: Any) -> dict[str, Any]:
    """Return the postprocessing with other arguments of its writer."""
    *steps, writer = CONFIG["postprocessing"]["transforms"]
    return {"_target_": "Compose", "transforms": [*steps, {**writer, **arguments}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evaluating": None, "evaluator": None}, "none of the ids run, evaluating, inference, evaluator"),
        ({"dataset": None}, "no Dataset with data"),
        ({"preprocessing": []}, "no LoadImaged with keys"),
    ],
)
def test_a_config_that_can_t_be_told_its_scan_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    root = write_workflow(tmp_path / "bundle", **changes)
    with pytest.raises(BundleError, match=reason) as caught:
        plan_workflow(read_bundle(root))
    assert caught.value.code == "bundle.workflow"


def test_only_places_the_case_and_the_device_differ_from_the_config(tmp_path: Path) -> None:
    label = {"_target_": "SaveImaged", "keys": "label", "output_dir": "$@bundle_root + '/labels'"}
    post = saving(output_dir="elsewhere")
    root = write_workflow(tmp_path / "bundle", postprocessing={**post, "transforms": [*post["transforms"], label]})
    plan = plan_workflow(read_bundle(root))
    folder = tmp_path / "run"
    assert plan.run_id == "evaluating"
    assert plan.overrides({"image": "a.nii"}, root, folder, "cpu") == {
        "bundle_root": str(root),
        "dataset_dir": str(folder / "images"),
        "output_dir": str(folder / "result"),
        "device": "cpu",
        "postprocessing::transforms::4::output_dir": str(folder / "result"),
        "postprocessing::transforms::5::output_dir": str(folder / "other"),
        "dataloader::num_workers": 0,
        "dataloader::persistent_workers": False,
        "dataset::data": [{"image": "a.nii"}],
    }
