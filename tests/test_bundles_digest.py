"""The digest of a model covers all that decides its labels, and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from napari_seg.bundles.content import content_hash
from napari_seg.bundles.digest import model_digest, model_stamp
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    return replace(read_bundle(), root=tmp_path, coarse=None)


def put(bundle: Bundle, name: str, content: str) -> None:
    path = bundle.root / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix.lower() == ".pt":
        torch.save({"weight": torch.full((2,), len(content))}, path)
    else:
        path.write_text(content)


@pytest.mark.parametrize(
    "name",
    ["models/model.safetensors", "models/model.PT", "fold_0/model.safetensors", "template.nii.gz", "maps/atlas.tif"],
)
def test_other_weights_and_templates_are_another_model(name: str, bundle: Bundle) -> None:
    put(bundle, name, "1")
    before = model_digest(bundle)
    assert [Path(path).name for path, _, _ in model_stamp(bundle)] == [Path(name).name]
    put(bundle, name, "22")
    assert model_digest(bundle) != before


@pytest.mark.parametrize("name", ["docs/figure.png", "training/preview.png", "fold_1/preview.nii.gz"])
def test_figures_and_outputs_of_a_training_do_not_count(name: str, bundle: Bundle) -> None:
    put(bundle, name, "1")
    before = model_digest(bundle)
    put(bundle, name, "22")
    assert model_digest(bundle) == before


def test_the_digest_of_a_model_stays_the_same_for_all_versions(bundle: Bundle) -> None:
    put(bundle, "models/model.pt", "1")
    put(bundle, "docs/figure.png", "a figure")
    weights = hashlib.sha256((bundle.root / "models" / "model.pt").read_bytes()).hexdigest()
    lines = f"models/model.pt {weights}\n{content_hash(bundle)}"
    assert model_digest(bundle) == hashlib.sha256(lines.encode()).hexdigest()
