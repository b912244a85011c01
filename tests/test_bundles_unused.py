"""Files of a bundle that change no label: what only trains, and only where the code shows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bundles import write_threshold_bundle

from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.unused import unused_files


def unused(root: Path) -> set[str] | None:
    found = unused_files(read_bundle(root))
    return None if found is None else set(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle whose network imports scripts.blocks, and inside a function .deep.heads; scripts.train trains."""
    root = write_threshold_bundle(tmp_path / "bundle")
    (root / "scripts" / "deep").mkdir()
    nets = root / "scripts" / "nets.py"
    nets.write_text(f"from scripts import blocks\n{nets.read_text()}\ndef head():\n    from .deep import heads\n")
    for name in ("__init__", "blocks", "train", "deep/__init__", "deep/heads", "deep/losses"):
        (root / "scripts" / f"{name}.py").write_text("import torch\n")
    return root


def test_modules_of_the_network_count_and_those_of_the_training_do_not(root: Path) -> None:
    assert unused(root) == {"scripts/train.py", "scripts/deep/losses.py"}


def test_the_shipped_bundle_uses_its_network_alone() -> None:
    found, root = unused(shipped_root()), shipped_root()
    assert found is not None
    modules = {file.relative_to(root).as_posix() for file in root.rglob("*.py")}
    networks = ("__init__", "blocks", "deeplab", "encoder", "ensemble", "errors", "fcn", "multiview", "nnunet_unet")
    assert modules - found == {f"segnets/{name}.py" for name in (*networks, "unet")}
    assert {"LICENSE", "docs/README.md", "configs/train.yaml", "configs/regions.yaml"} <= found
    assert not found & {"configs/inference.yaml", "configs/metadata.json", "models/model.pt"}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from scripts import train", {"scripts/deep/losses.py"}),
        ("import scripts.deep.losses as losses", {"scripts/train.py"}),
        ("from .deep.losses import Dice", {"scripts/train.py"}),
        ("TARGET = 'scripts.train.Loss'", {"scripts/deep/losses.py"}),
        ("def late():\n    if torch:\n        from . import train", {"scripts/deep/losses.py"}),
        ("network.eval()", {"scripts/train.py", "scripts/deep/losses.py"}),
        ("import importlib", None),
        ("from scripts.deep import *", None),
        ("torch.load(x); eval(x)", None),
        ("import sys; sys.path.append('elsewhere')", None),
        ("this is no Python", None),
    ],
)
def test_imports_of_every_form_are_followed_and_doubt_makes_all_files_count(
    root: Path, code: str, found: set[str] | None
) -> None:
    (root / "scripts" / "blocks.py").write_text(f"{code}\n")
    assert unused(root) == found


def test_imports_and_expressions_of_the_config_count(root: Path) -> None:
    config = root / "configs" / "inference.yaml"
    text = config.read_text()
    config.write_text(f"imports:\n- $from scripts import nets, train\n{text}")
    assert unused(root) == {"scripts/deep/losses.py"}
    config.write_text(f"{text}".replace("overlap: 0.25", "overlap: '@share'\nshare: $scripts.deep.losses.SHARE"))
    assert unused(root) == {"scripts/train.py"}
    config.write_text(f"{text}dataset:\n  _target_: scripts.train.Data\n")
    assert unused(root) == {"scripts/train.py", "scripts/deep/losses.py"}


def test_what_monai_runs_as_it_is_written_counts_whole(root: Path) -> None:
    config = root / "configs" / "inference.yaml"
    text = config.read_text().replace("monai.inferers.SlidingWindowInferer", "scripts.train.Inferer")
    config.write_text(f"{text}run: $print(1)\n")
    assert unused(root) is None


def test_documents_and_other_configs_count_if_something_names_them(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "bundle")
    (root / "docs").mkdir()
    for name in ("docs/README.md", "docs/table.csv", "LICENSE", "notes.md", "configs/train.yaml", "table.csv"):
        (root / name).touch()
    documents = {"docs/README.md", "docs/table.csv", "LICENSE", "notes.md", "configs/train.yaml"}
    assert unused(root) == documents
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("0.25", "'%train.yaml::overlap'  # not that of LICENSE"))
    (root / "configs" / "train.yaml").write_text("overlap: '%other.yaml::overlap'\n")
    (root / "configs" / "other.yaml").write_text("overlap: 0.5\n")
    assert unused(root) == documents - {"configs/train.yaml"}
    nets = root / "scripts" / "nets.py"
    nets.write_text(f"TABLE = 'docs/table.csv'\n{nets.read_text()}")
    assert unused(root) == documents - {"configs/train.yaml", "docs/table.csv"}


def test_a_bundle_without_a_network_counts_whole(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(shipped_root() / "configs", root / "configs")
    (root / "configs" / "inference.yaml").write_text("{}")
    assert unused(root) is None
