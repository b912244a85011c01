"""The digest of a model covers all that decides its labels, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from napari_seg.bundles.content import consent_hash, content_hash
from napari_seg.bundles.digest import earlier_digest, has_digest, model_digest, model_stamp
from napari_seg.bundles.read import read_bundle, shipped_root
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


def test_the_earlier_digest_of_a_model_stays_the_same_for_all_versions(bundle: Bundle) -> None:
    put(bundle, "models/model.pt", "1")
    put(bundle, "docs/figure.png", "a figure")
    weights = hashlib.sha256((bundle.root / "models" / "model.pt").read_bytes()).hexdigest()
    lines = f"models/model.pt {weights}\n{content_hash(bundle)}"
    assert earlier_digest(bundle) == hashlib.sha256(lines.encode()).hexdigest()
    assert has_digest(bundle, earlier_digest(bundle))


@pytest.fixture
def shipped(tmp_path: Path) -> Bundle:
    return replace(read_bundle(), root=Path(shutil.copytree(shipped_root(), tmp_path / "bundle")))


def edit(bundle: Bundle, name: str, old: str, new: str) -> None:
    path = bundle.root / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("segnets/training/trainer.py", "\n", "\n# other\n"),
        ("segnets/data/layouts.py", "\n", "\n# other\n"),
        ("segnets/losses.py", "\n", "\n# other\n"),
        ("configs/train.yaml", "\n", "\n# other\n"),
        ("docs/README.md", "\n", "\nother\n"),
        ("configs/metadata.json", "Research only", "Only research"),
    ],
)
def test_training_and_documents_make_no_other_model(name: str, old: str, new: str, shipped: Bundle) -> None:
    before, earlier, consent = model_digest(shipped), earlier_digest(shipped), consent_hash(shipped)
    edit(shipped, name, old, new)
    assert model_digest(shipped) == before
    assert earlier_digest(shipped) != earlier
    assert consent_hash(shipped) != consent  # consent is to all that can act
    assert has_digest(shipped, before)
    assert not has_digest(shipped, earlier)
    (shipped.root / "segnets" / "training" / "new.py").write_text("import torch\n")
    assert model_digest(shipped) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("segnets/unet.py", "\n", "\n# other\n"),
        ("segnets/blocks.py", "\n", "\n# other\n"),
        ("configs/inference.yaml", "overlap: 0.5", "overlap: 0.25"),
        ("configs/metadata.json", '"plausible_ml": [', '"plausible_ml": [0.1, '),
    ],
)
def test_what_segments_makes_another_model(name: str, old: str, new: str, shipped: Bundle) -> None:
    before = model_digest(shipped)
    edit(shipped, name, old, new)
    assert model_digest(shipped) != before
