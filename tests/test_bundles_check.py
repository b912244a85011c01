"""Each fault of a bundle is found, with its file, its entry and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from napari_seg.bundles.check import check
from napari_seg.bundles.skeleton import write_skeleton


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write_skeleton(tmp_path / "liver", ["liver"], "CT")
    (root / "LICENSE").write_text("MIT License")
    torch.save({"weight": torch.zeros(3)}, root / "models" / "model.pt")
    return root


def found(root: Path, level: str) -> list[tuple[str, str]]:
    findings = check(root)
    assert all(one.found and (one.mend or one.level == "note") for one in findings)
    return [(one.file, one.key) for one in findings if one.level == level]


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def test_a_complete_bundle_has_no_fault(bundle: Path) -> None:
    assert found(bundle, "error") == found(bundle, "warning") == []


IMAGE = "network_data_format.inputs.image"
PRED = "network_data_format.outputs.pred"


def image(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["network_data_format"]["inputs"]["image"]


def pred(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["network_data_format"]["outputs"]["pred"]


@pytest.mark.parametrize(
    ("change", "level", "key"),
    [
        (lambda m: m.pop("version"), "warning", "version"),
        (lambda m: m.update(description=" "), "warning", "description"),
        (lambda m: m.pop("network_data_format"), "error", "network_data_format.inputs"),
        (lambda m: m["network_data_format"].update(outputs={}), "error", "network_data_format.outputs"),
        (lambda m: image(m).pop("num_channels"), "error", f"{IMAGE}.num_channels"),
        (lambda m: image(m).pop("modality"), "warning", f"{IMAGE}.modality"),
        (lambda m: image(m).update(num_channels=4), "warning", f"{IMAGE}.channel_def"),
        (lambda m: pred(m).pop("channel_def"), "warning", f"{PRED}.channel_def"),
        (lambda m: pred(m).update(num_channels=5), "warning", f"{PRED}.channel_def"),
        (lambda m: pred(m).update(num_channels="two"), "error", f"{PRED}.num_channels"),
        (
            lambda m: m.update(required_packages_version={"no-such-package": "1"}),
            "warning",
            "required_packages_version",
        ),
        (lambda m: m.update(required_packages_version={"a; rm -rf": "1"}), "warning", "required_packages_version"),
    ],
)
def test_faults_of_the_metadata_are_found(bundle: Path, change: Any, level: str, key: str) -> None:
    edit(bundle, change)
    assert ("configs/metadata.json", key) in found(bundle, level)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"network_data_format": 7}', '{"a": ' + "1" * 10_000])
@pytest.mark.parametrize("file", ["configs/metadata.json", "configs/inference.yaml"])
def test_damaged_files_are_errors(bundle: Path, file: str, text: str) -> None:
    (bundle / file).write_text(text)
    if text.startswith('{"network') and file.endswith("yaml"):
        return
    assert file in [name for name, _ in found(bundle, "error")]


def test_missing_files_are_found(bundle: Path) -> None:
    (bundle / "LICENSE").unlink()
    (bundle / "models" / "model.pt").unlink()
    assert found(bundle, "warning") == [("models/model.pt", ""), ("LICENSE", "")]
    (bundle / "large_files.yml").write_text("large_files: [{path: models/model.pt, url: https://example.org/a.pt}]")
    (finding,) = [one for one in check(bundle) if one.file == "models/model.pt"]
    assert "models add" in finding.mend
    (bundle / "configs" / "inference.yaml").unlink()
    assert "configs/inference.yaml" in [name for name, _ in found(bundle, "error")]
    (bundle / "configs" / "metadata.json").unlink()
    assert ("configs/metadata.json", "") in found(bundle, "error")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo ran > ran",)


def test_weights_that_run_code_are_errors_and_do_not_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = bundle / "models" / "model.pt"
    torch.save({"weight": Evil()}, weights)
    (finding,) = [one for one in check(bundle) if one.level == "error"]
    assert finding.file == "models/model.pt"
    assert "system" in finding.found
    assert not (tmp_path / "ran").exists()
    weights.write_bytes(b"cut short")
    assert found(bundle, "error") == [("models/model.pt", "")]


def configured(bundle: Path, old: str, new: str) -> None:
    path = bundle / "configs" / "inference.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_code_is_noted_and_does_not_run(bundle: Path, tmp_path: Path) -> None:
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configured(bundle, "_target_: UNet", "_target_: scripts.UNet")
    assert found(bundle, "error") == []
    notes = found(bundle, "note")
    assert notes[0] == ("configs/inference.yaml", "network_def._target_")
    assert ("scripts/__init__.py", "line 1") in notes
    assert not (tmp_path / "ran").exists()


def test_the_way_decides_the_level(bundle: Path) -> None:
    configured(bundle, "_target_: UNet", "_target_: monai.apps.detection.networks.retinanet_network.RetinaNet")
    assert found(bundle, "error") == [("configs/inference.yaml", "network_def._target_")]
    configured(bundle, "monai.apps.detection.networks.retinanet_network.RetinaNet", "UNet")
    configured(bundle, "_target_: SlidingWindowInferer", "_target_: scripts.Inferer")
    assert ("configs/inference.yaml", "inferer._target_") in found(bundle, "warning")


def test_weights_of_another_name_than_the_config_s_are_errors(bundle: Path) -> None:
    (bundle / "models" / "model.pt").rename(bundle / "models" / "best.pt")
    assert found(bundle, "error") == [("models", "")]


JUNK: list[Any] = [None, -1, "x" * 3000, "$@x.y()", [], {"a": [1]}]


def test_no_damage_of_one_entry_ends_the_check(bundle: Path) -> None:
    config = yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())
    steps = config["postprocessing"]["transforms"][0]
    places = [(config, key) for key in ("network_def", "preprocessing", "inferer", "postprocessing", "handlers")]
    places += [(config["handlers"][0], "load_path"), (config["network_def"], "_target_"), (steps, "keys")]
    for entry, key in places:
        right = entry[key]
        for junk in JUNK:
            entry[key] = junk
            (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
            check(bundle)
        entry[key] = right
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    for entry in (metadata, metadata["network_data_format"], image(metadata), pred(metadata)):
        for key in list(entry):
            right = entry[key]
            for junk in JUNK:
                entry[key] = junk
                path.write_text(json.dumps(metadata))
                check(bundle)
            entry[key] = right


def test_a_model_of_nnunet_is_checked_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_models import write_model

    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    root = write_model(tmp_path)
    found = check(root.parent)
    assert [(one.level, one.file) for one in found] == [
        ("warning", f"{root.name}/LICENSE"),
        ("note", root.name),
    ]
    (root / "fold_0" / "checkpoint_final.pth").write_bytes(b"damaged")
    (error,) = check(root)
    assert error.level == "error"
    assert "fold_0" in error.found
