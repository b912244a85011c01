"""A new bundle is complete but for its weights, and runs with them, here and by MONAI alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
from preloaded import run_python

from napari_seg.bundles.check import check
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.skeleton import write_skeleton
from napari_seg.cli.main import main
from napari_seg.errors import NapariSegError


def levels(root: Path) -> set[str]:
    return {finding.level for finding in check(root)}


def test_a_new_bundle_declares_what_was_asked_for(tmp_path: Path) -> None:
    root = write_skeleton(tmp_path / "tumour", ["core", "edema"], "MR", ["T1", "FLAIR"])
    bundle = read_bundle(root)
    assert (bundle.name, bundle.modality, bundle.in_channels) == ("tumour", "MR", 2)
    assert [(segment.label, segment.name) for segment in bundle.segments] == [(1, "core"), (2, "edema")]
    assert bundle.channel_names == ("T1", "FLAIR")
    assert "error" not in levels(root)


def test_its_metadata_follows_the_specification(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    metadata = json.loads((write_skeleton(tmp_path / "liver") / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(Path(__file__).with_name("meta_schema.json").read_text()))


@pytest.mark.usefixtures("inline_cohorts")
def test_with_weights_it_runs_as_it_does_in_monai(tmp_path: Path) -> None:
    import torch
    from monai.networks.nets import UNet

    root = write_skeleton(tmp_path / "liver", modality="CT")
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("[96, 96, 96]", "[32, 32, 32]"))
    torch.manual_seed(0)
    network = UNet(3, 1, 2, [16, 32, 64, 128, 256], [2, 2, 2, 2], num_res_units=2, norm="INSTANCE")
    torch.save(network.state_dict(), root / "models" / "model.pt")
    (tmp_path / "images").mkdir()
    scan = phantoms.write_nifti(phantoms.head(), tmp_path / "images" / "head.nii.gz")
    options = [
        "--bundle",
        str(root),
        "--trust",
        "--backend",
        "torch",
        "--windows",
        "bundle",
        "--no-crop",
        "--tta",
        "none",
    ]
    assert main(["predict", str(scan), "-o", str(tmp_path / "ours"), *options]) == 0
    words = ["-m", "monai.bundle", "run", "--config_file", str(config), "--bundle_root", str(root)]
    words += ["--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "theirs")]
    status, printed = run_python(words, root)
    assert status == 0, printed[-2000:]
    ours = np.asanyarray(nibabel.load(tmp_path / "ours" / "head_seg.nii.gz").dataobj)
    (result,) = (tmp_path / "theirs").rglob("*.nii.gz")
    theirs = np.asanyarray(nibabel.load(result).dataobj).squeeze()
    assert 0 < ours.sum() < ours.size
    assert (ours == theirs).mean() > 0.9999


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("as it was")
    for folder in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(NapariSegError) as caught:
            write_skeleton(folder)
        assert caught.value.code == "store.exists"
    for names in ([], ["a", "a"], ["T1", "t1"], [" "], ["a\nb"], ["4"], ["a,b"]):
        with pytest.raises(NapariSegError) as caught:
            write_skeleton(tmp_path / "new", names)
        assert caught.value.code == "store.name"
    with pytest.raises(NapariSegError, match=r"found the name '4'; .* such as --channels T1 T1c T2 FLAIR"):
        write_skeleton(tmp_path / "new", channels=["4"])
    assert not (tmp_path / "new").exists()
