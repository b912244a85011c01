"""The network, its transforms and the inferer are found wherever a config has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_seg.bundles.config.resolve import ResolveError, Resolver
from napari_seg.bundles.config.sections import Sections, find_sections, targets

LOAD = {"_target_": "LoadImaged", "keys": "@key"}


def found(root: Path, **entries: Any) -> Sections:
    return find_sections(Resolver(entries, root))


def test_ids_of_the_specification_come_first(tmp_path: Path) -> None:
    evaluator = {"_target_": "SupervisedEvaluator", "network": "@other", "inferer": "@other"}
    entries = {"network_def": {}, "preprocessing": [LOAD], "inferer": {}, "other": {}, "key": ["image", "label"]}
    sections = Sections("network_def", "preprocessing", "inferer", ("image",))
    assert found(tmp_path, **entries, evaluator=evaluator) == sections


def test_the_only_evaluator_names_them_otherwise(tmp_path: Path) -> None:
    entries: dict[str, Any] = {
        "unet": {"_target_": "UNet"},
        "on_device": "$@unet.to(@device)",
        "steps": {"_target_": "Compose", "transforms": [LOAD]},
        "key": "scan",
        "test": {
            "loader": {"_target_": "DataLoader", "dataset": {"_target_": "Dataset", "transform": "$ @steps"}},
            "engine": {
                "_target_": "SupervisedEvaluator",
                "network": "@on_device",
                "val_data_loader": "@test#loader",
                "inferer": {"_target_": "SimpleInferer"},
            },
        },
    }
    assert found(tmp_path, **entries) == Sections("on_device", "steps", "test::engine::inferer", ("scan",))
    del entries["test"]["engine"]["inferer"]
    assert found(tmp_path, **entries).inferer == ""
    entries["second"] = {"_target_": "SupervisedEvaluator", "network": "@unet"}
    with pytest.raises(ResolveError, match="no network_def and no preprocessing and no inferer"):
        found(tmp_path, **entries)


def test_images_of_a_case_are_named(tmp_path: Path) -> None:
    entries = {"network_def": {}, "preprocessing": [LOAD], "inferer": {}, "key": ["artery", "vein", "label"]}
    assert found(tmp_path, **entries).image_keys == ("artery", "vein")
    assert found(tmp_path, network_def={}, preprocessing=[], inferer={}).image_keys == ("image",)


def test_targets_are_those_that_are_not_disabled(tmp_path: Path) -> None:
    entries = {
        "a": {"_target_": "A", "inner": [{"_target_": "B"}]},
        "c": {"_target_": "C", "_disabled_": True, "inner": {"_target_": "D"}},
        "e": {"_target_": "E", "_disabled_": "$foreign()"},
    }
    assert targets(Resolver(entries, tmp_path)) == [("a", "A"), ("e", "E"), ("a::inner::0", "B")]
