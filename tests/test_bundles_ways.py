"""The way of a bundle is decided from plain data, and says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_plain_bundle, write_threshold_bundle

from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.skeleton import write_skeleton
from napari_seg.bundles.trust import check_runnable
from napari_seg.bundles.ways import Way, WayKind, missing_weights, way_in_words, way_of
from napari_seg.errors import BundleError


def changed(root: Path, change: Any) -> Path:
    """Change the config of a bundle."""
    path = root / "configs/inference.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config) or config))
    return root


def way(root: Path) -> Way:
    return way_of(read_bundle(root))


def test_listed_classes_run_without_consent(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    assert way(root) == Way("engine", False)
    check_runnable(read_bundle(root))
    model = load_model(read_bundle(root), "cpu")
    assert [type(one).__name__ for one in model.preprocessing.transforms] == ["Orientationd", "ScaleIntensityd"]
    assert model.network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
    assert type(model.inferer).__name__ == "SlidingWindowInferer"
    assert read_bundle(root).network_segments[0].name == "one"


def test_the_way_is_found_without_torch(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    code = (
        "import sys; from napari_seg.bundles.read import read_bundle; from napari_seg.bundles.ways import way_of\n"
        f"assert way_of(read_bundle({str(root)!r})).kind == 'engine'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_code_needs_consent_and_is_named(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "own")
    reason = "configs/inference.yaml: network_def._target_ scripts.nets.Threshold is the bundle's own code"
    assert way(root) == Way("engine", True, (reason,))
    with pytest.raises(BundleError, match="untrusted"):
        check_runnable(read_bundle(root))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda c: c["preprocessing"]["transforms"].append({"_target_": "RandFlipd", "keys": "image"}),
            "preprocessing.transforms.3._target_ RandFlipd is not on the list of what runs without consent",
        ),
        (
            lambda c: c["network_def"].update(out_channels="$len(open('x').read())"),
            "network_def.out_channels: $len(open('x').read()) uses the name open",
        ),
        (lambda c: c["network_def"].update(_mode_="debug"), "network_def._mode_ debug is not allowed"),
        (lambda c: c["network_def"].update(_requires_="$import_it()"), "uses the name import_it"),
    ],
)
def test_what_is_not_on_the_list_needs_consent(tmp_path: Path, change: Any, reason: str) -> None:
    found = way(changed(write_plain_bundle(tmp_path / "plain"), change))
    assert (found.kind, found.needs_consent) == ("engine", True)
    assert reason in " ".join(found.reasons)
    assert all(one.startswith("configs/inference.json: ") for one in found.reasons)


def test_entries_that_are_not_needed_do_not_count(tmp_path: Path) -> None:
    def change(config: dict) -> None:
        config["dataset"] = {"_target_": "scripts.Data", "data": "$glob.glob('*')"}
        config["evil"] = "$open('x', 'w')"
        config["preprocessing"]["transforms"][0]["reader"] = "$own.Reader"
        config["preprocessing"]["transforms"].append({"_target_": "own.Step", "_disabled_": "$len('a') == 1"})

    assert way(changed(write_plain_bundle(tmp_path / "plain"), change)) == Way("engine", False)


def test_an_own_inferer_or_postprocessing_is_left_to_monai(tmp_path: Path) -> None:
    root = changed(write_plain_bundle(tmp_path / "a"), lambda c: c["inferer"].update(_target_="scripts.Own"))
    assert way(root).kind == "workflow"
    changed(root, lambda c: {key: value for key, value in c.items() if key not in ("run", "evaluator")})
    assert (way(root).kind, way(root).needs_consent) == ("engine", True)
    steps = [{"_target_": "scripts.post.Merge", "keys": "pred"}]
    root = changed(write_plain_bundle(tmp_path / "b"), lambda c: c.update(postprocessing=steps))
    found = way(root)
    assert (found.kind, found.needs_consent) == ("workflow", True)
    assert "scripts.post.Merge" in found.reasons[0]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("RetinaNet", "boxes"),
        ("HoVerNet", "instances"),
        ("scripts.inferer.Vista3dInferer", "prompts"),
        ("AddClickSignalsd", "click"),
        ("DiffusionModelUNet", "generates"),
        ("TorchVisionFCModel", "classifies"),
        ("DenseNet121", "classifies"),
        ("ResNet50", "classifies"),
        ("scripts.landmarks.PointRegressor", "landmarks"),
        ("VoxelMorph", "registers"),
    ],
)
def test_other_tasks_are_refused_in_their_own_words(tmp_path: Path, target: str, words: str) -> None:
    root = changed(write_plain_bundle(tmp_path / "other"), lambda c: c["network_def"].update(_target_=target))
    found = way(root)
    assert (found.kind, found.needs_consent) == ("refused", False)
    assert words in found.reasons[0]
    assert target in found.reasons[0]
    with pytest.raises(BundleError, match=words) as caught:
        check_runnable(read_bundle(root, trust=True))
    assert caught.value.code == "bundle.task"


@pytest.mark.parametrize("name", ["AnisotropicDiffusion", "EdgeDetectionNet", "WarpIntensity", "DenseNetSeg"])
def test_own_classes_are_not_refused_for_their_names(tmp_path: Path, name: str) -> None:
    root = changed(
        write_plain_bundle(tmp_path / "plain"), lambda config: config["network_def"].update(_target_=f"scripts.{name}")
    )
    assert (way(root).kind, way(root).needs_consent) == ("engine", True)


@pytest.mark.parametrize(("key", "value"), [("type", "object"), ("format", "classes"), ("format", "points")])
def test_other_outputs_of_the_metadata_are_refused(tmp_path: Path, key: str, value: str) -> None:
    root = write_plain_bundle(tmp_path / "other")
    path = root / "configs/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["outputs"]["pred"] |= {"format": "dict", key: value}
    path.write_text(json.dumps(metadata))
    assert way(root).kind == "refused"


LABELS = [
    ({"_target_": "Spacingd", "keys": ["label", "image"], "pixdim": [1, 1, 1], "mode": ["nearest", "bilinear"]}, ""),
    ({"_target_": "CropForegroundd", "keys": ["image", "label"], "source_key": "image"}, ""),
    ({"_target_": "DeleteItemsd", "keys": "label"}, ""),
    ({"_target_": "Compose", "transforms": [{"_target_": "EnsureTyped", "keys": ["image", "label"]}]}, ""),
    ({"_target_": "CropForegroundd", "keys": "image", "source_key": "label"}, "CropForegroundd needs label"),
    ({"_target_": "MaskIntensityd", "keys": "image", "mask_key": "mask"}, "MaskIntensityd needs mask"),
    ({"_target_": "ConcatItemsd", "keys": ["image", "label"], "name": "image"}, "ConcatItemsd needs label"),
    ({"_target_": "EnsureTyped", "keys": ["image", "pet"]}, "EnsureTyped needs pet"),
    ({"_target_": "scripts.own.Own", "keys": ["image", "label"]}, "scripts.own.Own needs label"),
]


@pytest.mark.parametrize(("step", "reason"), LABELS, ids=lambda value: str(value)[:60])
def test_label_maps_that_a_scan_does_not_have_are_left_out_or_left_to_monai(
    tmp_path: Path, step: dict[str, Any], reason: str
) -> None:
    root = changed(write_plain_bundle(tmp_path / "plain"), lambda c: c["preprocessing"]["transforms"].append(step))
    found = way(root)
    if reason:
        assert (found.kind, found.needs_consent) == ("workflow", True)
        text = f"configs/inference.json: preprocessing: {reason}, which a scan does not have"
        assert found.reasons[-1] == text
    else:
        assert found == Way("engine", False)


def test_every_listed_transform_can_leave_a_label_map_out() -> None:
    import inspect

    from monai import transforms

    from napari_seg.bundles.config.allowed import TRANSFORMS

    def takes(name: str) -> bool:
        return "allow_missing_keys" in inspect.signature(getattr(transforms, name)).parameters

    assert {name for name in TRANSFORMS if not takes(name)} == {"DeleteItemsd", "SelectItemsd", "ToMetaTensord"}
    for name in ("SelectItemsd", "ToMetaTensord"):
        made = getattr(transforms, name)(["image", "label"])
        made.allow_missing_keys = True
        assert list(made({"image": torch.ones(1, 2, 2)})) == ["image"]
    assert list(transforms.DeleteItemsd(["label"])({"image": 1})) == ["image"]


def test_torchscript_needs_consent(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "script")
    (root / "models/model.pt").unlink()
    network = torch.nn.Conv3d(1, 3, 1)
    torch.jit.trace(network, torch.zeros(1, 1, 4, 4, 4)).save(root / "models/model.ts")
    assert way(root) == Way("engine", True, ("configs/inference.json: the weights are a program of TorchScript",))
    with pytest.raises(BundleError, match="--trust"):
        check_runnable(read_bundle(root))
    model = load_model(read_bundle(root, trust=True), "cpu")
    image = torch.ones(1, 1, 4, 4, 4)
    torch.testing.assert_close(model.network(image), network(image))


def test_sections_under_other_names_are_found(tmp_path: Path) -> None:
    def change(config: dict) -> dict:
        return {
            "key": "scan",
            "my_net": config["network_def"],
            "moved": "$@my_net.to('cuda')",
            "steps": config["preprocessing"]["transforms"],
            "data": {"_target_": "Dataset", "data": [], "transform": "@steps"},
            "loader": {"_target_": "DataLoader", "dataset": "@data"},
            "evaluator": {"_target_": "SupervisedEvaluator", "network": "@moved", "val_data_loader": "@loader"},
        }

    root = changed(write_plain_bundle(tmp_path / "other", key="scan"), change)
    shutil.move(root / "configs/inference.json", root / "configs/predict.json")
    assert way(root) == Way("engine", False)
    model = load_model(read_bundle(root), "cpu")
    assert type(model.inferer).__name__ == "SimpleInferer"
    image = torch.arange(27.0).reshape(1, 3, 3, 3)
    assert model.preprocessing({"image": image})["image"].max() == 1


@pytest.mark.parametrize("missing", ["network_def", "preprocessing", "inferer"])
def test_a_section_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    root = changed(write_plain_bundle(tmp_path / "less"), lambda c: {k: v for k, v in c.items() if k != missing})
    with pytest.raises(BundleError, match=f"@{missing} is not defined") as caught:
        check_runnable(read_bundle(root))
    assert caught.value.code == "bundle.config"
    changed(root, lambda c: {k: v for k, v in c.items() if k not in (missing, "network", "dataloader", "evaluator")})
    with pytest.raises(BundleError, match=f"has no {missing}") as caught:
        check_runnable(read_bundle(root))
    assert caught.value.code == "bundle.config"


def test_a_missing_package_is_named_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks import nets

    def needs_package(**_: object) -> None:
        import no_such_package  # noqa: F401

    monkeypatch.setattr(nets, "UNet", needs_package)
    root = write_plain_bundle(tmp_path / "plain", network={"_target_": "UNet"})
    torch.save({}, root / "models/model.pt")
    with pytest.raises(BundleError, match=r"no_such_package is not installed \(pip install no_such_package\)"):
        load_model(read_bundle(root), "cpu")


def test_a_class_that_refuses_its_arguments_is_named_by_key(tmp_path: Path) -> None:
    root = changed(write_plain_bundle(tmp_path / "plain"), lambda c: c["network_def"].update(strides=[]))
    with pytest.raises(BundleError, match="network_def: ValueError: the length of") as caught:
        load_model(read_bundle(root), "cpu")
    assert caught.value.code == "bundle.config"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    root = write_skeleton(tmp_path / "liver")
    assert "has no models/model.pt" in missing_weights(read_bundle(root))
    (root / "models" / "model.pt").touch()
    assert missing_weights(read_bundle(root)) == ""


@pytest.mark.parametrize(
    ("kind", "needs_consent", "consented", "words"),
    [
        ("engine", False, False, "runs at once"),
        ("engine", True, False, "needs your consent"),
        ("engine", True, True, "consent given"),
        ("workflow", True, False, "needs your consent; MONAI runs it"),
        ("workflow", True, True, "consent given; MONAI runs it"),
        ("refused", False, False, "can't be used"),
    ],
)
def test_ways_have_words(kind: WayKind, needs_consent: bool, consented: bool, words: str) -> None:
    assert way_in_words(kind, needs_consent, consented=consented) == words


@pytest.mark.parametrize("text", ["[" * 9000 + "]" * 9000, '{"a": "' + "x" * 2**18 + '"}'], ids=["deep", "large"])
@pytest.mark.parametrize("name", ["inference", "metadata"])
def test_a_config_beyond_the_limits_has_its_own_code(tmp_path: Path, name: str, text: str) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    path = root / "configs" / f"{name}.json"
    path.write_text(text * 17 if name == "metadata" and text[0] == "{" else text)
    with pytest.raises(BundleError, match=r"nests|larger") as caught:
        way(root)
    assert caught.value.code == "bundle.too_large"


def test_aliases_that_stand_for_too_much_are_too_large(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    (root / "configs/inference.json").unlink()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9)]
    (root / "configs/inference.yaml").write_text("\n".join(lines))
    with pytest.raises(BundleError, match="values") as caught:
        way(root)
    assert caught.value.code == "bundle.too_large"
