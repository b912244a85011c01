"""`segment` gives the labels that MONAI gives by the bundle's own transforms, inferer and postprocessing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import EnvironmentFault
from napari_seg.geometry import Grid, resample
from napari_seg.inference.engine import segment_region
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import set_up
from napari_seg.inference.transforms import TransformsInverse
from napari_seg.localise import Region
from napari_seg.volume import Segment, Segmentation, Volume

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
LINEAR, NEAREST = INVERT | {"nearest_interp": False}, INVERT | {"nearest_interp": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
ROUND = {"_target_": "AsDiscreted", "keys": "pred", "rounding": "torchrounding"}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]}
RULE = {
    "_target_": "Lambdad",
    "keys": "pred",
    "func": "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))",
}

ORIENT = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None}
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.7, 1.3, 2.1], "mode": "bilinear"}
NORMALIZE = {"_target_": "NormalizeIntensityd", "keys": "image"}
IMAGE = {"keys": "image"}
CROP = {
    "_target_": "CropForegroundd",
    "keys": "image",
    "source_key": "image",
    "select_fn": "$lambda x: x > 1",
    "margin": 1,
}

FOREGROUND = CROP | {"select_fn": "$lambda x: x > x.mean()", "margin": 0}


def write_bundle(root: Path, preprocessing: list, postprocessing: list, *, channels: int = 4, **changes: Any) -> Path:
    """A bundle with a network of random weights whose labels are no noise."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    dims = changes.pop("dims", 3)
    network = {
        "_target_": "UNet",
        "spatial_dims": dims,
        "in_channels": changes.pop("in_channels", 1),
        "out_channels": channels,
        "channels": [8, 16],
        "strides": [2],
    }
    config = {
        "imports": ["$import torch"],
        "network_def": network,
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                *preprocessing,
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16] * dims, "overlap": 0.5, "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [*postprocessing, {"_target_": "SaveImaged", "keys": "pred", "output_dir": "out"}],
        },
    } | changes
    (root / "configs/inference.json").write_text(json.dumps(config))
    pred = {"num_channels": channels, "channel_def": {str(n): f"channel {n}" for n in range(channels)}}
    image = {"num_channels": network["in_channels"], "modality": "MR"}
    metadata = {"name": "tiny", "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(3)
    made = ConfigParser({"network_def": network}).get_parsed_content("network_def")
    state = made.state_dict()
    *_, weight, bias = (key for key in state if key.endswith((".weight", ".bias")))
    state[weight] *= 12.0
    state[bias] = torch.linspace(-0.5, 0.5, channels)
    torch.save(state, root / "models/model.pt")
    return root


def labels_of_monai(root: Path, volume: Volume, upto: list | None = None) -> NDArray:
    """What the bundle's own transforms, inferer and postprocessing give, run by MONAI alone.

    Args:
        root: the bundle.
        volume: the scan.
        upto: another postprocessing.
    """
    config = json.loads((root / "configs/inference.json").read_text())
    if upto is not None:
        config["postprocessing"]["transforms"] = [*upto, {"_target_": "Identityd", "keys": "pred"}]
    parser = ConfigParser(config)
    before, network, inferer, after = (
        parser.get_parsed_content(name) for name in ("preprocessing", "network_def", "inferer", "postprocessing")
    )
    network.load_state_dict(torch.load(root / "models/model.pt"))
    before.transforms = before.transforms[2:]
    after.transforms = after.transforms[:-1]
    image = volume.array[..., 0] if volume.grid.shape[2] == 1 and network.dimensions == 2 else volume.array
    data = before({"image": MetaTensor(torch.tensor(image, dtype=torch.float32), torch.tensor(volume.grid.affine))})
    with torch.no_grad():
        data["pred"] = MetaTensor(inferer(data["image"][None].as_tensor(), network.eval())[0])
    return after(data)["pred"].as_tensor().numpy()


def ours(root: Path, volume: Volume, **options: Any) -> Segmentation:
    bundle: Bundle = read_bundle(root, trust=True)
    fixed = {"device": "cpu", "windows": "bundle", "crop": False, "backend": "torch", "keep_islands": True}
    return segment(volume, bundle, **fixed | options)


CHAINS = {
    "softmax, linear, argmax": [SOFTMAX, LINEAR, ARGMAX],
    "linear, argmax": [LINEAR, ARGMAX],
    "linear, softmax, argmax": [LINEAR, SOFTMAX, ARGMAX],
    "softmax, argmax, nearest": [SOFTMAX, ARGMAX, NEAREST],
    "softmax, nearest, argmax": [SOFTMAX, NEAREST, ARGMAX],
    "argmax, largest, linear": [ARGMAX, LARGEST, LINEAR],
    "argmax, linear, rounding": [
        ARGMAX,
        LINEAR,
        {"_target_": "AsDiscreted", "keys": "pred", "rounding": "torchrounding"},
    ],
    "softmax, linear, argmax, largest": [SOFTMAX, LINEAR, ARGMAX, LARGEST],
    "sigmoid, linear, threshold, rule": [SIGMOID, LINEAR, THRESHOLD, RULE],
    "linear, sigmoid, threshold, rule": [LINEAR, SIGMOID, THRESHOLD, RULE],
    "sigmoid, threshold, rule, nearest": [SIGMOID, THRESHOLD, RULE, NEAREST],
    "sigmoid, linear, high threshold": [SIGMOID, LINEAR, THRESHOLD | {"threshold": 0.8}],
    "argmax, map, nearest": [
        ARGMAX,
        {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1, 2, 3], "target_labels": [3, 0, 7]},
        NEAREST,
    ],
    "linear, argmax, fill, small": [
        LINEAR,
        ARGMAX,
        {"_target_": "FillHolesd", "keys": "pred"},
        {"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": 20},
    ],
    "linear, argmax, one-hot, foreground": [
        LINEAR,
        ARGMAX | {"to_onehot": 4},
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x : x[1:]"},
    ],
    "linear, argmax, cast": [
        LINEAR,
        ARGMAX,
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.to(torch.uint8)"},
    ],
}


def as_label_map(found: NDArray) -> NDArray:
    """A label map of what MONAI would save: rounded labels, or the last channel that is present."""
    label_map = np.zeros(found.shape[1:], np.uint8)
    if len(found) == 1:
        return np.rint(found[0]).astype(np.uint8)
    for channel, mask in enumerate(found, start=1):
        label_map[mask > 0.5] = channel
    return label_map


@pytest.mark.parametrize("name", CHAINS)
def test_labels_are_those_of_monai(tmp_path: Path, head: Volume, name: str) -> None:
    root = write_bundle(tmp_path / "tiny", [ORIENT, SPACING, NORMALIZE], CHAINS[name])
    expected = as_label_map(labels_of_monai(root, head))
    found = ours(root, head)
    assert len(np.unique(expected)) >= 3
    assert np.mean(found.array == expected) >= 0.9999


@pytest.mark.parametrize("name", ["softmax, linear, argmax", "softmax, argmax, nearest"])
def test_slices_that_the_grid_of_monai_leaves_out_repeat_its_edge(tmp_path: Path, head: Volume, name: str) -> None:
    # an oblique affine as NIfTI stores it, in float32: MONAI finds no corner that fits and lays its grid by the centre
    stored = head.grid.affine.astype(np.float32).astype(np.float64)
    volume = replace(head, grid=Grid(head.grid.shape, stored))
    root = write_bundle(tmp_path / "tiny", [ORIENT, SPACING | {"pixdim": [1.5, 1.25, 0.5]}, NORMALIZE], CHAINS[name])
    parser = ConfigParser(json.loads((root / "configs/inference.json").read_text()))
    before = parser.get_parsed_content("preprocessing")
    before.transforms = before.transforms[2:]
    prepared = before({"image": MetaTensor(torch.tensor(volume.array, dtype=torch.float32), torch.tensor(stored))})
    to_network = np.linalg.inv(prepared["image"].affine.numpy()) @ stored
    assert (to_network @ [0, 0, 0, 1])[2] < -1.5
    expected = as_label_map(labels_of_monai(root, volume))
    found = ours(root, volume)
    assert expected[..., 0].any()
    assert np.mean(found.array == expected) >= 0.9999


@pytest.mark.parametrize(
    "name", ["softmax, linear, argmax", "softmax, argmax, nearest", "sigmoid, linear, threshold, rule"]
)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([ORIENT, SPACING | {"pixdim": [1.7, 1.35, 2.1]}, NORMALIZE, CROP], id="cropped"),
        pytest.param([ORIENT, SPACING, NORMALIZE, CROP | {"margin": 3}], id="cropped with a margin beyond the scan"),
        pytest.param(
            [ORIENT, NORMALIZE, {"_target_": "Resized", "keys": "image", "spatial_size": [17, 31, 15]}], id="area"
        ),
        pytest.param([{"_target_": "Flipd", "keys": "image", "spatial_axis": 1}, SPACING, NORMALIZE], id="flipped"),
        pytest.param([ORIENT, SPACING, {"_target_": "DivisiblePadd", "keys": "image", "k": 8}, NORMALIZE], id="padded"),
        pytest.param([SPACING | {"mode": "nearest"}, NORMALIZE], id="nearest"),
    ],
)
def test_all_that_the_preprocessing_does_to_the_grid_is_inverted(
    tmp_path: Path, head: Volume, name: str, changes: list
) -> None:
    root = write_bundle(tmp_path / "tiny", changes, CHAINS[name])
    expected = as_label_map(labels_of_monai(root, head))
    assert np.mean(ours(root, head).array == expected) >= 0.9999


@pytest.mark.parametrize("name", ["linear, argmax", "softmax, linear, argmax", "sigmoid, linear, high threshold"])
@pytest.mark.parametrize("inner", [False, True], ids=["whole", "air left out"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([ORIENT, SPACING, NORMALIZE, FOREGROUND], id="cropped last"),
        pytest.param([FOREGROUND, ORIENT, SPACING, NORMALIZE], id="cropped first"),
        pytest.param([ORIENT, FOREGROUND, SPACING, NORMALIZE, FOREGROUND], id="cropped twice"),
        pytest.param([FOREGROUND, NORMALIZE], id="cropped alone"),
    ],
)
def test_a_cropped_foreground_is_inverted_while_windows_come(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch, name: str, inner: bool, changes: list
) -> None:
    root = write_bundle(tmp_path / "tiny", changes, CHAINS[name])
    expected = as_label_map(labels_of_monai(root, head))
    monkeypatch.setattr(TransformsInverse, "values", None)  # never all values of the scan at once
    found = ours(root, head, crop=inner).array
    assert len(np.unique(expected)) >= 3
    assert np.mean(found == expected) >= (0.97 if inner else 0.9999)


def test_members_that_crop_give_together_what_one_gives(tmp_path: Path, head: Volume) -> None:
    chain = CHAINS["softmax, linear, argmax"]
    transforms = [ORIENT, SPACING, NORMALIZE, FOREGROUND]
    root = write_bundle(tmp_path / "tiny", transforms, chain)
    for name in ("one", "two"):
        write_bundle(root / "members" / name, transforms, chain)
    expected = ours(root, head).array
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["napari_seg"] = {"members": ["members/one", "members/two"]}
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    found = ours(root, head).array
    # beyond the crop the probabilities fall to 0 within a voxel, and what is missing to 1 is background
    assert np.array_equal(found[found > 0], expected[found > 0])
    assert np.mean(found[1:19, 2:23, 1:12] == expected[1:19, 2:23, 1:12]) > 0.98


def test_voxels_exactly_on_the_first_cropped_layer_are_background(tmp_path: Path, head: Volume) -> None:
    # in MONAI rounding decides there, between values of 0 and tiny ones of the neighbour; here 26 slices meet 25 layers
    root = write_bundle(tmp_path / "tiny", [ORIENT, SPACING, NORMALIZE, CROP], CHAINS["softmax, linear, argmax"])
    expected = as_label_map(labels_of_monai(root, head))
    found = ours(root, head).array
    assert not found[:, 25].any()
    assert np.mean(found[:, :25] == expected[:, :25]) >= 0.9999


def picture(channels: int) -> Volume:
    """A 2D image with a bright blob, brighter on one side."""
    i, j = np.indices((37, 29))
    blob = ((i - 15) ** 2 + (j - 12) ** 2 < 90) * (80 + 3 * i) + (i * 7 + j * 13) % 11
    colours = np.stack([np.roll(blob, 2 * n, axis=0) for n in range(channels)])
    return Volume(colours[..., None].astype(np.uint8), Grid((37, 29, 1), np.diag([-1.0, -1.0, 1.0, 1.0])))


RESIZE = {"_target_": "Resized", "keys": "image", "spatial_size": [32, 48], "mode": "bilinear"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("preprocessing", "chain", "changes"),
    [
        pytest.param([NORMALIZE], "linear, argmax", {}, id="windows"),
        pytest.param(
            [RESIZE, NORMALIZE],
            "linear, argmax, one-hot, foreground",
            {"inferer": {"_target_": "SimpleInferer"}},
            id="resized",
        ),
        pytest.param(
            [{"_target_": "DivisiblePadd", "keys": "image", "k": 8}, NORMALIZE],
            "softmax, argmax, nearest",
            {"inferer": {"_target_": "SimpleInferer"}},
            id="padded",
        ),
    ],
)
def test_2d_images_get_the_labels_of_monai(
    tmp_path: Path, channels: int, preprocessing: list, chain: str, changes: dict[str, Any]
) -> None:
    root = write_bundle(tmp_path / "tiny", preprocessing, CHAINS[chain], dims=2, in_channels=channels, **changes)
    scan = picture(channels)
    found = labels_of_monai(root, scan)
    expected = as_label_map(found)
    assert len(np.unique(expected)) >= 3
    np.testing.assert_array_equal(ours(root, scan).array[..., 0], expected)


def test_overlaps_and_rounded_labels_are_told(tmp_path: Path, head: Volume) -> None:
    root = write_bundle(tmp_path / "several", [ORIENT, SPACING, NORMALIZE], CHAINS["sigmoid, linear, high threshold"])
    on_network = labels_of_monai(root, head, upto=[SIGMOID, THRESHOLD | {"threshold": 0.8}])
    found = ours(root, head)
    (notice,) = (one for one in found.notices if one.code == "result.overlap")
    count = int((on_network.sum(axis=0) > 1).sum())
    assert count > 20
    assert notice.message.startswith(
        f"{count} voxels of the network ({count * np.prod(SPACING['pixdim']) / 1000:.2f} ml)"
    )
    assert [segment.name for segment in found.segments] == [f"channel {n}" for n in range(4)]
    root = write_bundle(tmp_path / "rounded", [ORIENT, SPACING, NORMALIZE], CHAINS["argmax, largest, linear"])
    assert "result.rounded" in [one.code for one in ours(root, head).notices]
    root = write_bundle(tmp_path / "ruled", [ORIENT, SPACING, NORMALIZE], CHAINS["sigmoid, linear, threshold, rule"])
    found = ours(root, head)
    assert not [one for one in found.notices if one.code.startswith(("result.overlap", "result.rounded"))]
    assert {s.label: s.name for s in found.segments} == {1: "channel 0", 2: "channel 1", 4: "channel 2"}


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [
        ("softmax, linear, argmax", [SOFTMAX, LINEAR], 0.005),
        ("softmax, argmax, nearest", [SOFTMAX, NEAREST], 0.005),
        ("linear, argmax", [LINEAR, SOFTMAX], 0.03),  # in cells of one class it is interpolated
    ],
)
def test_confidence_is_the_probability_of_the_winner(
    tmp_path: Path, head: Volume, name: str, steps: list, tolerance: float
) -> None:
    root = write_bundle(tmp_path / "tiny", [ORIENT, SPACING, NORMALIZE], CHAINS[name])
    expected = labels_of_monai(root, head, upto=steps).max(axis=0)
    found = ours(root, head, confidence_maps=True)
    assert found.confidence_maps is not None
    assert np.median(abs(found.confidence_maps.confidence / 255 - expected)) < tolerance
    on_network = labels_of_monai(root, head, upto=[SOFTMAX])
    for label, mean in found.confidence.items():
        assert mean == pytest.approx(on_network[label][on_network.argmax(axis=0) == label].mean(), abs=1e-3)


def test_a_crop_around_the_body_gives_the_same_structures(tmp_path: Path, head: Volume) -> None:
    root = write_bundle(tmp_path / "tiny", [ORIENT, SPACING, NORMALIZE], CHAINS["softmax, argmax, nearest"])
    whole, cropped = ours(root, head), ours(root, head, crop=True)
    inside = cropped.array > 0
    assert np.mean(cropped.array[inside] == whole.array[inside]) > 0.98


def test_the_inverse_needs_memory_that_is_checked_first(tmp_path: Path, head: Volume, monkeypatch: Any) -> None:
    pad = {"_target_": "DivisiblePadd", "keys": "image", "k": 8}
    root = write_bundle(tmp_path / "padded", [ORIENT, SPACING, NORMALIZE, pad], CHAINS["softmax, linear, argmax"])
    monkeypatch.setattr(TransformsInverse, "values_bytes", lambda *_: 2**60)
    with pytest.raises(EnvironmentFault, match="inverse of the bundle's transforms") as caught:
        ours(root, head)
    assert caught.value.code == "environment.memory"
    root = write_bundle(tmp_path / "carried", [ORIENT, SPACING, NORMALIZE], CHAINS["softmax, argmax, nearest"])
    expected = as_label_map(labels_of_monai(root, head))
    assert np.mean(ours(root, head).array == expected) >= 0.999  # by interpolation along the axes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("softmax, argmax, nearest", [SPACING, NORMALIZE]),
        ("softmax, linear, argmax", [SPACING, NORMALIZE, CROP]),
        ("softmax, linear, argmax, largest", [SPACING, NORMALIZE]),
    ],
)
def test_a_region_gets_the_labels_that_it_would_get_alone(
    tmp_path: Path, head: Volume, name: str, changes: list
) -> None:
    root = write_bundle(tmp_path / "tiny", changes, CHAINS[name])
    box = head.grid.box((2, 4, 1), (17, 22, 13)).mirrored(0)
    alone = Volume(resample(head.array, head.grid, box), Grid(box.shape, np.diag([*box.spacing_mm, 1.0])))
    expected = as_label_map(labels_of_monai(root, alone))
    options = SegmentOptions(device="cpu", windows="bundle", crop=False, backend="torch")
    bundle = read_bundle(root, trust=True)
    label_map = np.zeros(head.grid.shape, np.uint8)
    label_map[3, 5, 2] = 99  # of an earlier region
    segments = tuple(Segment(10 * n, f"channel {n}", (9, 9, 9)) for n in (1, 2, 3))
    region = Region("box", box, {1: 10, 2: 20, 3: 30}, segments)
    found = segment_region(head, region, set_up(head, bundle, options), label_map, lambda done, total: None)
    assert set(found) <= {1, 2, 3}
    assert label_map[3, 5, 2] == 99
    label_map[3, 5, 2] = resample(expected[None], box, head.grid, order=0, outside=0)[0, 3, 5, 2] * 10
    assert np.mean(resample(label_map, head.grid, box, order=0) == 10 * expected) >= 0.9999
    label_map[2:17, 4:22, 1:13] = 0
    assert not label_map.any()


@pytest.mark.parametrize(
    ("dims", "inferer", "preprocessing"),
    [
        (2, {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2, "overlap": 0.5}, [ORIENT, NORMALIZE]),
        (3, {"_target_": "SimpleInferer"}, [ORIENT, IMAGE | {"_target_": "Resized", "spatial_size": [16, 32, 16]}]),
    ],
)
def test_other_inferers_see_the_whole_image(
    tmp_path: Path, head: Volume, dims: int, inferer: dict[str, Any], preprocessing: list
) -> None:
    chain = CHAINS["softmax, linear, argmax"]
    root = write_bundle(tmp_path / "tiny", preprocessing, chain, dims=dims, inferer=inferer)
    expected = as_label_map(labels_of_monai(root, head))
    assert len(np.unique(expected)) >= 3
    assert np.mean(ours(root, head).array == expected) >= 0.9999
