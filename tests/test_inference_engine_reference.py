"""`segment` equals MONAI's transforms, sliding windows, `Invertd` and argmax, also with less memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from numpy.typing import NDArray
from phantoms import ORIENTATIONS

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.geometry import Grid
from napari_seg.inference import plan as planning
from napari_seg.inference import region as regions
from napari_seg.inference.plan import Plan
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

NETWORK = """
from torch import nn


def make(classes):
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1)
    )
"""
CLEAR = 1e-5
"""By how much the greatest logit must be greater than the next, for rounding; they are of the order of 1."""


def random_bundle(root: Path, seed: int) -> tuple[Bundle, torch.nn.Module, dict[str, Any]]:
    """One with random classes, orientation, spacing, windows and weights; its network and its config."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 30))
    axcodes = "".join(str(rng.choice(list(pair))) for pair in rng.permutation(["RL", "AP", "SI"]))
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": axcodes, "labels": None},
        {
            "_target_": "Spacingd",
            "keys": "image",
            "pixdim": rng.uniform(0.8, 2.5, 3).round(3).tolist(),
            "mode": "bilinear",
        },
        {"_target_": "NormalizeIntensityd", "keys": "image"},
    ]
    inferer = {
        "_target_": "SlidingWindowInferer",
        "roi_size": rng.integers(7, 20, 3).tolist(),
        "overlap": round(float(rng.uniform(0, 0.6)), 2),
        "mode": str(rng.choice(["constant", "gaussian"])),
        "sw_batch_size": int(rng.integers(1, 4)),
    }
    config = {
        "network_def": {"_target_": "scripts.nets.make", "classes": classes},
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": inferer,
    }
    write_threshold_bundle(root)
    (root / "configs/inference.yaml").write_text(json.dumps(config))  # which is YAML too
    metadata = json.loads((root / "configs/metadata.json").read_text())
    channels = {str(c): f"class {c}" if c else "background" for c in range(classes)}
    metadata["network_data_format"]["outputs"]["pred"] = {"num_channels": classes, "channel_def": channels}
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    (root / "scripts/nets.py").write_text(NETWORK)
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    torch.manual_seed(seed)
    network = made["make"](classes).eval()
    torch.save(network.state_dict(), root / "models/model.pt")
    return read_bundle(root, trust=True), network, config


def random_scan(seed: int) -> Volume:
    """One of random shape, spacing and orientation, every third tilted; at times of one voxel along an axis."""
    rng = np.random.default_rng(seed)
    directions = np.eye(3) if seed % 3 else np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spacing_mm = rng.uniform(0.6, 3, 3)
    size_mm = rng.integers(1 if seed % 7 == 0 else 8, 36, 3) * spacing_mm
    grid = Grid.around(30 * rng.normal(size=3), size_mm, spacing_mm, directions)
    grid = grid.reoriented(ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))])
    return Volume(100 * rng.normal(size=(1, *grid.shape)).astype(np.float32), grid)


@torch.inference_mode()
def of_monai(scan: Volume, network: torch.nn.Module, config: dict[str, Any]) -> tuple[NDArray, NDArray]:
    """The winning class of each voxel of a scan, and where it wins clearly."""
    parser = ConfigParser({name: config[name] for name in ("preprocessing", "inferer")})
    transforms = Compose(parser.get_parsed_content("preprocessing").transforms[2:])  # the scan is read already
    inferer = parser.get_parsed_content("inferer")
    affine = torch.from_numpy(scan.grid.affine)
    image = MetaTensor(torch.from_numpy(scan.array), affine=affine)
    given = transforms({"image": image, "label": MetaTensor(torch.zeros(image.shape), affine=affine)})
    given["pred"] = MetaTensor(inferer(given["image"][None].as_tensor(), network)[0], meta=given["image"].meta)
    back = Invertd("pred", transform=transforms, orig_keys="image", nearest_interp=False)
    logits = back(given)["pred"].numpy()
    first, second = np.sort(logits, axis=0)[::-1][:2]
    return logits.argmax(axis=0), first - second > CLEAR


@pytest.mark.parametrize("seed", range(24))
def test_a_scan_is_segmented_as_monai_does(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(regions, "resident_bytes", lambda: 0)
    monkeypatch.setattr(planning, "decider_bytes", lambda classes, voxels, extends: 0)
    caplog.set_level(logging.INFO, "napari_seg")
    bundle, network, config = random_bundle(tmp_path / "bundle", seed)
    scan = random_scan(seed)

    def found(memory_bytes: int | None = None) -> tuple[NDArray, Plan]:
        exactly = {"device": "cpu", "backend": "torch", "windows": "bundle", "crop": False}
        result = segment(scan, bundle, memory_bytes=memory_bytes, **exactly)
        return result.array, caplog.records[-1].plan  # type: ignore[attr-defined]

    expected, clear = of_monai(scan, network, config)
    assert clear.mean() > 0.99
    labels, plan = found()
    np.testing.assert_array_equal(labels[clear], expected[clear])
    for share in (0.9, 0.8, 0.6, 0.4):
        try:
            labels, thrifty = found(int(share * plan.peak_bytes))
        except EnvironmentFault:
            break
        assert len(thrifty.strips) > 1 or thrifty.dtype == torch.float16
        if thrifty.dtype == torch.float32:
            np.testing.assert_array_equal(labels[clear], expected[clear])
        else:
            assert (labels == expected).mean() > 0.995


@pytest.mark.parametrize("keys", [["image", "label"], ["label", "image"]])
def test_a_label_map_that_the_transforms_also_take_is_left_out(keys: list[str], tmp_path: Path) -> None:
    bundle, network, config = random_bundle(tmp_path / "bundle", 3)
    for transform in config["preprocessing"]["transforms"]:
        transform["keys"] = keys
    (bundle.root / "configs/inference.yaml").write_text(json.dumps(config))
    bundle, scan = read_bundle(bundle.root, trust=True), random_scan(3)
    expected, clear = of_monai(scan, network, config)
    result = segment(scan, bundle, device="cpu", backend="torch", windows="bundle", crop=False)
    assert clear.mean() > 0.99
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(result.array[clear], expected[clear])
    texts = [notice.message for notice in result.notices if notice.code == "bundle.fitted"]
    assert texts == ["the preprocessing also uses label, which a scan does not have; it is left out"]
