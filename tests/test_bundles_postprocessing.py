"""A bundle whose postprocessing makes other labels than the engine would is refused, by what its config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import write_threshold_bundle

from napari_seg.bundles.config import read_config
from napari_seg.bundles.postprocessing import unsupported_steps
from napari_seg.bundles.spec import read_bundle, shipped_root
from napari_seg.bundles.trust import check_runnable
from napari_seg.errors import BundleError

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
ABOVE = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}


def composed(*steps: Any) -> dict[str, Any]:
    return {"postprocessing": {"_target_": "Compose", "transforms": list(steps)}}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"postprocessing": None},
        composed(SOFTMAX, INVERT, ARGMAX, SAVE),
        composed(ARGMAX, INVERT | {"nearest_interp": True}, SAVE),  # as MONAI's wholeBody_ct_segmentation
        composed(SOFTMAX | {"_target_": "monai.transforms.ActivationsD"}, "@argmax") | {"argmax": ARGMAX},
        composed({"_target_": "monai.transforms.Compose", "transforms": [ARGMAX]}),
        composed(ARGMAX, SIGMOID | {"_disabled_": True}),
        composed(SIGMOID | {"sigmoid": "$False"}, ARGMAX | {"argmax": "@yes"}) | {"yes": True},
        composed(ARGMAX | {"keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 3}),
        composed(ARGMAX, {"_target_": "MapLabelValued", "keys": ["label"], "orig_labels": [1], "target_labels": [2]}),
        composed(ARGMAX, {"_target_": "EnsureTyped", "keys": "pred"}, {"_target_": "CastToTyped", "keys": "pred"}),
        {"evaluator": {"_target_": "SupervisedEvaluator", "postprocessing": "@after"}, "after": [ARGMAX]},
    ],
)
def test_softmax_and_argmax_are_honoured(config: dict[str, Any]) -> None:
    assert unsupported_steps(config, has_thresholds=False, background="background") == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (composed(SIGMOID, INVERT, ABOVE, SAVE), ["Activationsd(sigmoid=True)", "AsDiscreted(threshold=0.5)"]),
        (composed(SIGMOID | {"sigmoid": "$@x > 1"}), ["Activationsd(sigmoid=$@x > 1)"]),
        (composed(SIGMOID | {"sigmoid": "@each"}) | {"each": True}, ["Activationsd(sigmoid=True)"]),
        (composed(SIGMOID | {"keys": ["label", "pred"], "sigmoid": [False, True]}), ["Activationsd(sigmoid=True)"]),
        (composed(SOFTMAX | {"softmax": False, "other": "$torch.exp"}), ["Activationsd(other=$torch.exp)"]),
        (composed(ARGMAX | {"threshold": 0}), ["AsDiscreted(threshold=0)"]),
        (composed(ARGMAX | {"rounding": "torchrounding"}), ["AsDiscreted(rounding=torchrounding)"]),
        (composed(ARGMAX, {"_target_": "MapLabelValued", "keys": "pred"}), ["MapLabelValued"]),
        (composed(ARGMAX, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x > 1"}), ["Lambdad"]),
        (
            composed(ARGMAX, {"_target_": "monai.transforms.KeepLargestConnectedComponentd", "keys": "pred"}),
            ["monai.transforms.KeepLargestConnectedComponentd"],
        ),
        (
            composed({"_target_": "FillHolesd"}, {"_target_": "RemoveSmallObjectsd"}),
            ["FillHolesd", "RemoveSmallObjectsd"],
        ),
        (composed(ARGMAX | {"_target_": "scripts.mine.AsDiscreted"}), ["scripts.mine.AsDiscreted"]),
        (composed([[{"_target_": "scripts.MergeClassesd"}]]), ["scripts.MergeClassesd"]),
        ({"postprocessing": "$scripts.after(@preprocessing)"}, ["$scripts.after(@preprocessing)"]),
        ({"postprocessing": "%other.json::postprocessing"}, ["%other.json::postprocessing"]),
        (composed(ARGMAX) | {"postprocessing#transforms#0#argmax": False}, ["postprocessing#transforms#0#argmax"]),
        ({"evaluator": {"postprocessing": "@after"}, "after": [{"_target_": "Lambdad\x1b[2J"}]}, ["Lambdad [2J"]),
        ({"post_transforms": {"_target_": "Compose", "transforms": [SIGMOID]}}, ["Activationsd(sigmoid=True)"]),
        (
            {"handlers": [{"_target_": "PostProcessing", "transform": "@a"}], "a": SIGMOID},
            ["Activationsd(sigmoid=True)"],
        ),
    ],
)
def test_all_else_is_named(config: dict[str, Any], named: list[str]) -> None:
    found = unsupported_steps(config, has_thresholds=False, background="background")
    assert found == named


def test_with_thresholds_of_its_own_a_bundle_thresholds_and_does_not_argmax() -> None:
    assert unsupported_steps(composed(SIGMOID, INVERT, ABOVE, SAVE), True, "tumour") == []
    assert unsupported_steps(composed(SOFTMAX, ARGMAX), True, "") == [
        "Activationsd(softmax=True)",
        "AsDiscreted(argmax=True)",
    ]


@pytest.mark.parametrize(
    ("background", "count"),
    [
        ("", 0),
        ("Background", 0),
        ("unlabelled", 0),
        ("clear_label", 0),
        ("tumour core", 1),
        ("airway", 1),
        ("nuclear membrane", 1),
        ("pelvic bones", 1),
    ],
)
def test_a_first_channel_that_is_a_structure_needs_an_argmax(background: str, count: int) -> None:
    assert len(unsupported_steps(composed(INVERT, SAVE), False, background)) == count
    assert unsupported_steps(composed(ARGMAX), False, background) == []


def test_a_nested_or_large_config_ends(tmp_path: Path) -> None:
    alias = "a: &a [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]\n" for n in range(1, 40))
    path = tmp_path / "inference.yaml"
    path.write_text(alias + "postprocessing: *a39\n")
    with pytest.raises(ValueError, match="more than 200000 values"):
        read_config(path)
    circle = "{_target_: Compose, transforms: '@postprocessing'}"
    path.write_text(f"postprocessing: [{circle}, {circle}, {{_target_: Lambdad}}]\n")
    assert unsupported_steps(read_config(path), False, "") == ["Lambdad"]
    path.write_text("postprocessing: '@a'\na: '@postprocessing'\n")
    assert len(unsupported_steps(read_config(path), False, "")) == 1
    path.write_text("[" * 100_000)
    with pytest.raises((ValueError, RecursionError, yaml.YAMLError)):
        read_config(path)
    path.write_text("a: " + "x" * 2**20)
    with pytest.raises(ValueError, match="larger"):
        read_config(path)


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_such_a_bundle_does_not_run(tmp_path: Path, kind: str) -> None:
    root = write_threshold_bundle(tmp_path / "other")
    path = root / "configs/inference.yaml"
    config = yaml.safe_load(path.read_text()) | composed(ARGMAX, {"_target_": "MapLabelValued", "keys": "pred"}, SAVE)
    path.unlink()
    path = path.with_suffix(f".{kind}")
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match="MapLabelValued") as caught:
        check_runnable(read_bundle(root, trust=True))
    assert caught.value.code == "bundle.postprocessing"
    with pytest.raises(BundleError) as caught:
        check_runnable(read_bundle(root))
    assert caught.value.code == "bundle.untrusted"


def test_a_single_channel_needs_a_threshold(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "one")
    path = root / "configs/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["outputs"]["pred"] |= {"num_channels": 1, "channel_def": {"0": "nuclei"}}
    path.write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match="single channel") as caught:
        check_runnable(read_bundle(root, trust=True))
    assert caught.value.code == "bundle.postprocessing"
    path.write_text(json.dumps(metadata | {"napari_seg": {"thresholds": [0.5]}}))
    check_runnable(read_bundle(root, trust=True))


def test_a_coarse_bundle_is_checked_before_the_other_runs(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "fine", own={"coarse": {"bundle": "coarse", "margin_mm": 3}})
    config = write_threshold_bundle(root / "coarse") / "configs/inference.yaml"
    check_runnable(read_bundle(root, trust=True))
    config.write_text(config.read_text() + "postprocessing: [{_target_: FillHolesd}]\n")
    with pytest.raises(BundleError, match="FillHolesd"):
        check_runnable(read_bundle(root, trust=True))


def test_the_shipped_configs_are_honoured() -> None:
    check_runnable(read_bundle())
    for name in ("inference", "evaluate"):
        assert unsupported_steps(read_config(shipped_root() / f"configs/{name}.yaml"), False, "background") == []
