"""The digest of a model covers all that decides its labels, and nothing else."""

from __future__ import annotations

import ast
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles.content import consent_hash, content_hash
from napari_seg.bundles.digest import _TRAINING, earlier_digest, has_digest, model_digest, model_stamp
from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.ways import resolver_of


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
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    bundle = replace(read_bundle(), root=Path(shutil.copytree(shipped_root(), tmp_path / "bundle")))
    monkeypatch.setattr("napari_seg.bundles.digest.shipped_root", lambda: bundle.root)
    return bundle


def counted(root: Path) -> set[str]:
    """Names of the files of the shipped bundle that decide its labels."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {name for name in names if "__pycache__" not in name and not _TRAINING.fullmatch(name)}


def test_files_of_the_shipped_bundle_count_unless_they_only_train_or_describe() -> None:
    networks = ("__init__", "blocks", "deeplab", "encoder", "ensemble", "errors", "fcn", "multiview", "nnunet_unet")
    modules = {f"segnets/{name}.py" for name in (*networks, "unet")}
    assert counted(shipped_root()) == modules | {"configs/inference.yaml", METADATA.as_posix(), "models/model.pt"}


def test_the_shipped_bundle_imports_and_reads_nothing_that_does_not_count(shipped: Bundle) -> None:
    files = counted(shipped.root)
    assert not resolver_of(shipped).files  # of macros
    for name in files:
        for node in ast.walk(ast.parse((shipped.root / name).read_text())) if name.endswith(".py") else ():
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{'.' * node.level}{node.module or ''}"] if isinstance(node, ast.ImportFrom) else []
            own = [one.replace(".", "/") for one in found if one.startswith((".", "segnets"))]
            assert {f"{one}.py" for one in own} <= files, f"{name} imports {own}"
    for path in shipped.root.rglob("*"):
        if path.is_file() and path.relative_to(shipped.root).as_posix() not in files:
            path.unlink()
    load_model(shipped, "cpu")


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


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from pathlib import Path\nTEXTS = sorted(Path(__file__).parents[1].glob('*/*.yaml'))", "configs/nets/a.yaml"),
        ("from pathlib import Path\nTEXT = Path(__file__).with_name(f'{1}.md').read_text()", "docs/1.md"),
        ("from sys import path\npath.append(__file__.strip('nets.py'))\nfrom other import Z", "scripts/other.py"),
        ("from monai.utils import instantiate\nHEAD = instantiate(f'scripts.{1}.Head')", "scripts/1.py"),
    ],
)
def test_every_file_of_another_bundle_counts(code: str, name: str, tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "bundle")
    nets = root / "scripts" / "nets.py"
    nets.write_text(f"{code}\n{nets.read_text()}")
    before = model_digest(read_bundle(root))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("a: 1\n")
    assert model_digest(read_bundle(root)) != before


def test_the_code_of_the_members_counts_in_an_ensemble_with_a_config_of_its_own(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "bundle", own={"members": ["members/a", "members/b"]})
    for name in "ab":
        write_threshold_bundle(root / "members" / name)
    before = model_digest(read_bundle(root))
    nets = root / "members" / "a" / "scripts" / "nets.py"
    nets.write_text(nets.read_text().replace("100.0", "50.0"))
    assert model_digest(read_bundle(root)) != before
