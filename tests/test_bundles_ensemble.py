"""Ensembles of MONAI bundles are read only if an average of their members gives what they declare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_threshold_bundle

from napari_seg.bundles.output import Output
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA, EnsembleBundle
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"monai.transforms.{name}", "keys": "pred", **arguments}


def inverse(nearest: bool) -> dict[str, Any]:
    return step("Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=nearest)


ARGMAX = step("AsDiscreted", argmax=True)
TRAINED = [inverse(False), ARGMAX]
LARGEST = step("KeepLargestConnectedComponentd", applied_labels=[1])
COARSE = {"coarse": {"bundle": "coarse", "margin_mm": 20}}
THRESHOLDS = {"thresholds": [0.5, 0.5, 0.5]}
SEGMENTS = {"segments": [{"label": 1, "name": "bright", "color": [255, 0, 0], "in_one_piece": True}]}


def write_ensemble(
    root: Path, steps: list[dict[str, Any]], member: dict[str, Any] | None = None, own: dict[str, Any] | None = None
) -> Path:
    """Write an ensemble of a member as `train --compare` makes it, and one with these steps and metadata."""
    names = ["members/trained", "members/other"]
    for name, transforms, declared in zip(names, (TRAINED, steps), (None, member), strict=True):
        config = write_threshold_bundle(root / name, own=declared) / "configs" / "inference.yaml"
        chain = {"_target_": "monai.transforms.Compose", "transforms": transforms}
        config.write_text(f"{config.read_text()}\npostprocessing: {json.dumps(chain)}\n")
    metadata = json.loads((root / names[0] / METADATA).read_text()) | {"napari_seg": {"members": names} | (own or {})}
    (root / "configs").mkdir()
    (root / METADATA).write_text(json.dumps(metadata))
    return root


@pytest.mark.parametrize(
    ("steps", "member", "fault"),
    [
        ([ARGMAX, inverse(True)], {}, "decides its labels on the grid of its network"),
        ([inverse(True), ARGMAX], {}, "decides its labels on the grid of its network"),
        ([step("Activationsd", sigmoid=True), inverse(False), step("AsDiscreted", threshold=0.5)], {}, "by thresholds"),
        ([*TRAINED, LARGEST], {}, "changes its labels by KeepLargestConnectedComponent"),
        ([*TRAINED, step("FillHolesd")], {}, "changes its labels by FillHoles"),
        ([*TRAINED, step("RemoveSmallObjectsd", min_size=9)], {}, "changes its labels by RemoveSmallObjects"),
        (
            [*TRAINED, step("MapLabelValued", orig_labels=[1, 2], target_labels=[2, 1])],
            {},
            "changes its labels by MapLabelValue",
        ),
        (TRAINED, COARSE, "declares coarse"),
        ([inverse(False)], THRESHOLDS, "declares thresholds"),
    ],
)
def test_a_member_that_an_average_does_not_follow_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], member: dict[str, Any], fault: str
) -> None:
    root = write_ensemble(tmp_path / "pair", steps, member)
    assert read_bundle(root / "members" / "other").kind == "monai"
    with pytest.raises(
        BundleError, match=rf"bundle\.members: .*'pair' can't average its member 'other', which .*{fault}"
    ):
        read_bundle(root)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        (COARSE, "coarse"),
        (THRESHOLDS, "thresholds"),
        ({"tta": "mirror", "match": "exact"}, "tta, match"),
        (SEGMENTS, "in_one_piece"),
    ],
)
def test_an_entry_that_an_average_does_not_apply_is_refused(tmp_path: Path, own: dict[str, Any], named: str) -> None:
    root = write_ensemble(tmp_path / "pair", TRAINED, own=own)
    with pytest.raises(BundleError, match=rf"bundle\.members: .*declares members and {named}, which an average"):
        read_bundle(root)


def test_largest_replaces_what_the_members_keep(tmp_path: Path) -> None:
    """A training writes both: the members choose their largest islands alone, and the pair its own."""
    root = write_ensemble(tmp_path / "pair", [*TRAINED, LARGEST], {"match": "exact"}, {"largest": [2]})
    bundle = read_bundle(root)
    assert isinstance(bundle, EnsembleBundle)
    assert (bundle.largest, bundle.output) == ((2,), Output())
    other = [*TRAINED, LARGEST | {"num_components": 2}]
    with pytest.raises(BundleError, match=r"bundle\.members: .*KeepLargestConnectedComponent"):
        read_bundle(write_ensemble(tmp_path / "two", other, own={"largest": [2]}))


def test_a_member_that_monai_runs_is_refused_before_a_run(tmp_path: Path) -> None:
    root = write_ensemble(tmp_path / "pair", [*TRAINED, step("Lambdad", func="$scripts.nets.smooth")])
    volume = Volume(np.zeros((1, 8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    with pytest.raises(BundleError, match=r"bundle\.config: the members of 'threshold' can't be averaged"):
        segment(volume, read_bundle(root, trust=True), device="cpu")
