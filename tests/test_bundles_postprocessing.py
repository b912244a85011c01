"""What a bundle's output means is read from its config; a step that is not recognised is named, and nothing runs."""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bundles import write_threshold_bundle

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.output import Channel, LabelStep, Output
from napari_seg.bundles.postprocessing import read_output
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.trust import check_runnable
from napari_seg.errors import BundleError

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
LINEAR = INVERT | {"nearest_interp": False}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
ABOVE = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
MAP = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1, 2], "target_labels": [5, 0]}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]}
NESTED = "torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"


def composed(*steps: Any) -> dict[str, Any]:
    return {"postprocessing": {"_target_": "Compose", "transforms": list(steps)}}


def function(text: str) -> dict[str, Any]:
    return {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda x: {text}"}


def cast(target: str, dtype: str | None = None) -> dict[str, Any]:
    return {"_target_": target, "keys": "pred", "dtype": dtype}


def read(config: dict[str, Any]) -> Output | tuple[str, ...]:
    return read_output(config, 3, background="background")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Output()),
        ({"postprocessing": None}, Output()),
        (composed(LINEAR, SAVE), Output()),
        (composed(LINEAR, ARGMAX, SAVE), Output()),
        (composed(LINEAR, SOFTMAX, ARGMAX), Output()),
        (composed(SOFTMAX, LINEAR, ARGMAX, SAVE), Output(activation="softmax")),
        (composed(SOFTMAX | {"_target_": "monai.transforms.ActivationsD"}, "@argmax") | {"argmax": ARGMAX}, "network"),
        (composed(SOFTMAX, ARGMAX, INVERT), "network"),  # as MONAI's wholeBody_ct_segmentation
        (composed(SOFTMAX, INVERT, ARGMAX), "network"),
        (composed(ARGMAX, INVERT | {"nearest_interp": True}, SAVE), "network"),
        (composed({"_target_": "monai.transforms.Compose", "transforms": [ARGMAX]}), "network"),
        (composed(ARGMAX, SIGMOID | {"_disabled_": True}), "network"),
        (composed(ARGMAX | {"_disabled_": "false"}, SIGMOID | {"_disabled_": "True"}), "network"),
        (composed(SIGMOID | {"sigmoid": "$False"}, ARGMAX | {"argmax": "@yes"}) | {"yes": True}, "network"),
        (composed(ARGMAX | {"keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 3}), "network"),
        (composed(ARGMAX, MAP | {"keys": ["label"]}), "network"),
        (
            composed(ARGMAX, cast("EnsureTyped"), cast("CastToTyped")),
            "network",
        ),
        ({"evaluator": {"_target_": "SupervisedEvaluator", "postprocessing": "@after"}, "after": [ARGMAX]}, "network"),
        (composed(ARGMAX) | {"handlers": [{"_target_": "PostProcessing", "transform": "@postprocessing"}]}, "network"),
        (composed(LINEAR, ARGMAX | {"to_onehot": 2}, function("x[1:]"), SAVE), Output()),
        (composed(LINEAR, ARGMAX, function("x.to(torch.uint8) * 255")), Output()),
        (composed(ARGMAX, LINEAR), Output(decided_on="network", carried="linear")),
        (
            composed(ARGMAX, LINEAR, {"_target_": "AsDiscreted", "keys": "pred", "rounding": "torchrounding"}),
            Output(decided_on="network", carried="linear", rounds=True),
        ),
        (
            composed(ARGMAX, LARGEST, LINEAR),  # as MONAI's prostate_mri_anatomy
            Output(
                decided_on="network",
                carried="linear",
                steps=(LabelStep("KeepLargestConnectedComponent", (("applied_labels", (1, 2)),), "network"),),
            ),
        ),
        (
            composed(LINEAR, ARGMAX, MAP, {"_target_": "FillHolesd", "keys": "pred"}),
            Output(
                steps=(
                    LabelStep("MapLabelValue", (("orig_labels", (1, 2)), ("target_labels", (5, 0))), "scan"),
                    LabelStep("FillHoles", (), "scan"),
                )
            ),
        ),
    ],
)
def test_argmax_and_what_follows_it(config: dict[str, Any], expected: Output | str) -> None:
    assert read(config) == (Output(decided_on="network") if expected == "network" else expected)


RULE = (Channel(1, 0.5, 2), Channel(0, 0.5, 1), Channel(2, 0.5, 4))
EACH = (Channel(0, 0.5, 1), Channel(1, 0.5, 2), Channel(2, 0.5, 3))


def structures(channels: tuple[Channel, ...] = EACH, **changes: Any) -> Output:
    return Output(activation="sigmoid", decision="thresholds", channels=channels, **changes)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            composed(SIGMOID, LINEAR, ABOVE, function(NESTED), SAVE),
            structures(RULE),
        ),  # as MONAI's brats_mri
        (composed(SIGMOID, ABOVE, function(NESTED), INVERT), structures(RULE, decided_on="network")),
        (composed(SIGMOID, ABOVE, INVERT, function(NESTED)), structures(RULE, decided_on="network")),
        (composed(SIGMOID, LINEAR, ABOVE, SAVE), structures(has_order=False)),
        (composed(SIGMOID, LINEAR, ABOVE, function("x.astype(np.uint8)")), structures(has_order=False)),
        (
            composed(SIGMOID, LINEAR, ABOVE, function("torch.where(x[1:2] == 1, 3, 0)")),
            structures((Channel(1, 0.5, 3),)),
        ),
        (
            composed(LINEAR, SIGMOID, ABOVE | {"threshold": 0.8}, SAVE),
            Output(
                decision="thresholds",
                channels=tuple(Channel(n, log(0.8 / (1 - 0.8)), n + 1) for n in range(3)),
                has_order=False,
            ),
        ),
    ],
)
def test_structures_with_channels_of_their_own(config: dict[str, Any], expected: Output) -> None:
    assert read(config) == expected


def test_the_label_of_a_single_channel_has_no_rival() -> None:
    found = read_output(composed(SIGMOID, LINEAR, ABOVE, LARGEST), 1)
    assert isinstance(found, Output)
    assert found.has_order
    assert [step.name for step in found.steps] == ["KeepLargestConnectedComponent"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (composed(SIGMOID, INVERT, SAVE), ["a sigmoid without thresholds"]),
        (composed(ABOVE), ["AsDiscreted(threshold=0.5)"]),
        (composed(SOFTMAX, ABOVE), ["AsDiscreted(threshold=0.5)"]),
        (composed(SIGMOID, ABOVE | {"threshold": 2}), ["AsDiscreted(threshold=2)"]),
        (composed(SIGMOID, ARGMAX), ["AsDiscreted(argmax=True)"]),
        (composed(SOFTMAX, SIGMOID, ARGMAX), ["Activationsd(sigmoid=True)", "AsDiscreted(argmax=True)"]),
        (composed(ARGMAX, SOFTMAX), ["Activationsd(softmax=True)"]),
        (composed(SIGMOID | {"sigmoid": "$@x > 1"}, ABOVE), ["Activationsd(sigmoid=$@x > 1)"]),
        (composed(SOFTMAX | {"softmax": False, "other": "$torch.exp"}), ["Activationsd(other=$torch.exp)"]),
        (composed(ARGMAX | {"threshold": 0}), ["AsDiscreted(threshold=0)"]),
        (composed(ARGMAX | {"rounding": "up"}), ["AsDiscreted(rounding=up)"]),
        (composed(ARGMAX | {"dim": 1}), ["AsDiscreted(dim=1)"]),
        (composed(ARGMAX | {"dtype": "$torch.bool"}), ["AsDiscreted(dtype=$torch.bool)"]),
        (composed(ARGMAX | {"_mode_": "partial"}), ["AsDiscreted(_mode_=partial)"]),
        (composed(ARGMAX, LARGEST | {"_disabled_": "$f()"}), ["KeepLargestConnectedComponentd(_disabled_=$f())"]),
        (composed(ARGMAX, {"_target_": "MapLabelValued", "keys": "pred"}), ["MapLabelValued"]),
        (composed(ARGMAX, LINEAR, LARGEST), ["KeepLargestConnectedComponentd"]),
        (composed(SIGMOID, ABOVE, LARGEST), ["KeepLargestConnectedComponentd"]),
        (composed(ARGMAX | {"to_onehot": 3}, LARGEST), ["KeepLargestConnectedComponentd"]),
        (composed(LARGEST, ARGMAX), ["KeepLargestConnectedComponentd"]),
        (composed(ARGMAX, LARGEST | {"is_onehot": True}), ["KeepLargestConnectedComponentd"]),
        (composed(ARGMAX, function("(x * 0.5).to(torch.uint8)")), ["Lambdad"]),
        (composed(ARGMAX, function("x * 2"), LARGEST), ["KeepLargestConnectedComponentd"]),
        (
            composed({"_target_": "FillHolesd"}, {"_target_": "RemoveSmallObjectsd"}),
            ["FillHolesd", "RemoveSmallObjectsd"],
        ),
        (composed(LINEAR, LINEAR), ["a second Invertd"]),
        (composed(INVERT | {"transform": "@other"}), ["Invertd(transform=@other)"]),
        (composed(INVERT | {"post_func": "$f"}), ["Invertd(post_func=$f)"]),
        (composed(SIGMOID, ABOVE, LINEAR), ["Invertd(nearest_interp=False) of masks"]),
        (
            composed(cast("CastToTyped", "$torch.uint8")),
            ["CastToTyped(dtype=$torch.uint8)"],
        ),
        (composed(ARGMAX, cast("CastToTyped", "$bool")), ["CastToTyped(dtype=$bool)"]),
        (composed(ARGMAX, LARGEST | {"keys": "pred_2"}), ["steps on several outputs (pred, pred_2)"]),
        (composed(ARGMAX | {"_target_": "scripts.mine.AsDiscreted"}), ["scripts.mine.AsDiscreted"]),
        (composed([[{"_target_": "scripts.MergeClassesd"}]]), ["scripts.MergeClassesd"]),
        ({"postprocessing": "$scripts.after(@preprocessing)"}, ["$scripts.after(@preprocessing)"]),
        ({"postprocessing": "%other.json::postprocessing"}, ["%other.json::postprocessing"]),
        (composed(ARGMAX) | {"postprocessing#transforms#0#argmax": False}, ["postprocessing#transforms#0#argmax"]),
        ({"evaluator": {"postprocessing": "@after"}, "after": [{"_target_": "Lambdad\x1b[2J"}]}, ["Lambdad [2J"]),
        ({"post_transforms": {"_target_": "Compose", "transforms": [ABOVE]}}, ["AsDiscreted(threshold=0.5)"]),
        (
            {"handlers": [{"_target_": "PostProcessing", "transform": "@a"}], "a": ABOVE},
            ["AsDiscreted(threshold=0.5)"],
        ),
        (composed(ARGMAX) | {"post_pred": [SOFTMAX, LINEAR, ARGMAX]}, ["2 different postprocessings"]),
    ],
)
def test_all_else_is_named(config: dict[str, Any], named: list[str]) -> None:
    assert read(config) == tuple(named)


def test_one_region_has_a_label_of_its_own() -> None:
    label = function("torch.where(x[[0]] > 0, 2, 0)")
    found = read_output(composed(SIGMOID, LINEAR, ABOVE, label), 1)
    assert found == structures((Channel(0, 0.5, 2),))
    for steps in ([label, label], [LARGEST, label]):
        assert read_output(composed(SIGMOID, LINEAR, ABOVE, *steps), 1) == ("Lambdad",)


@pytest.mark.parametrize("text", ["x > 1", "x[0]", "torch.where(x[[7]] > 0, 4, 0)", "torch.where(x[[2]] > 0, 4, 1)"])
def test_a_lambda_that_is_not_recognised_is_named(text: str) -> None:
    assert read(composed(SIGMOID, LINEAR, ABOVE, function(text))) == ("Lambdad",)


def test_declared_thresholds_replace_those_of_the_config() -> None:
    found = read_output(composed(SIGMOID, LINEAR, ABOVE, SAVE), 2, (0.25, 0.75), "tumour")
    assert isinstance(found, Output)
    assert [channel.label for channel in found.channels] == [1, 2]
    assert [channel.threshold for channel in found.channels] == pytest.approx([0.25, 0.75])
    assert all(np.float32(c.threshold) > t for c, t in zip(found.channels, (0.25, 0.75), strict=True))  # above, not at
    bare = read_output({}, 2, (0.5, 0.75))
    assert isinstance(bare, Output)
    assert bare.activation == "none"
    assert [channel.threshold for channel in bare.channels] == pytest.approx([0, log(3)], abs=1e-6)
    assert read_output(composed(SOFTMAX, ARGMAX), 2, (0.5, 0.5)) == (
        "Activationsd(softmax=True)",
        "AsDiscreted(argmax=True)",
    )


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
    found = read_output(composed(INVERT, SAVE), 3, background=background)
    assert (0 if isinstance(found, Output) else len(found)) == count
    assert isinstance(read_output(composed(ARGMAX), 3, background=background), Output)


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_such_a_bundle_does_not_run(tmp_path: Path, kind: str) -> None:
    root = write_threshold_bundle(tmp_path / "other")
    path = root / "configs/inference.yaml"
    config = yaml.safe_load(path.read_text()) | composed(ARGMAX, MAP | {"orig_labels": None}, SAVE)
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
    config.write_text(config.read_text() + "postprocessing: [{_target_: FillHolesd, keys: pred}]\n")
    with pytest.raises(BundleError, match="FillHolesd"):
        check_runnable(read_bundle(root, trust=True))


def test_the_shipped_configs_are_honoured() -> None:
    check_runnable(read_bundle())
    assert read_output(read_config(shipped_root() / "configs/inference.yaml"), 3) == Output()


def test_a_postprocessing_in_another_file_names_the_structures(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "other")
    steps = [SIGMOID, LINEAR, ABOVE, function(NESTED), SAVE]
    (root / "configs" / "post.json").write_text(json.dumps({"after": {"_target_": "Compose", "transforms": steps}}))
    path = root / "configs" / "inference.yaml"
    path.write_text(path.read_text() + "postprocessing: '%configs/post.json::after'\n")
    bundle = read_bundle(root, trust=True)
    assert bundle.output == structures(RULE)
    assert [(segment.label, segment.name) for segment in bundle.segments] == [
        (1, "background"),
        (2, "bright"),
        (4, "upper"),
    ]
    check_runnable(bundle)
