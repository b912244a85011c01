"""Models of nnU-Net as MONAI bundles: MONAI alone runs them, napari-seg too, with the labels of the nnU-Net folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from nnunet_models import configuration, write_model

from napari_seg.bundles.check import check
from napari_seg.bundles.nnunet.convert import convert
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import NapariSegError
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))


def oblique_scan(thick: float = 2.0) -> Volume:
    """Return a scan of smooth noise within a border of zeros, on an oblique, anisotropic, flipped grid."""
    noise = np.random.default_rng(0).normal(size=(9, 8, 6))
    from scipy.ndimage import zoom

    array = np.zeros((40, 36, 24), np.float32)
    array[3:37, 2:34, 2:22] = zoom(noise, (34 / 9, 32 / 8, 20 / 6), order=3)[:34, :32, :20] * 100 + 300
    angle = 0.4
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([-0.9, 1.1, thick])
    affine[:3, 3] = (10, -20, 30)
    return Volume(array[None].round().astype(np.int16), Grid(array.shape, affine))


RUN_EACH = """
import json, os, sys
from monai.bundle import run

for root, images, results in json.loads(sys.argv[1]):
    os.chdir(root)
    run(config_file="configs/inference.json", dataset_dir=images, output_dir=results)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]  # the next one brings its own
"""


def run_by_monai(cases: list[tuple[Path, Volume]], tmp_path: Path) -> list[np.ndarray]:
    """Return the labels that MONAI alone finds with bundles for scans; napari-seg can't be imported."""
    folders = []
    for n, (root, volume) in enumerate(cases):
        images, results = (tmp_path / f"{name}_{n}" for name in ("images", "results"))
        images.mkdir()
        nibabel.save(nibabel.Nifti1Image(volume.array[0], volume.grid.affine), images / "scan.nii.gz")
        folders.append((str(root), str(images), str(results)))
    blocked = tmp_path / "blocked"
    (blocked / "napari_seg").mkdir(parents=True)
    (blocked / "napari_seg" / "__init__.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "-c", RUN_EACH, json.dumps(folders)]
    environment = os.environ | {"PYTHONPATH": str(blocked)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    labels = []
    for (_, volume), (_, _, results) in zip(cases, folders, strict=True):
        (found,) = Path(results).rglob("*.nii.gz")
        image = nibabel.load(found)
        assert np.allclose(image.affine, volume.grid.affine, atol=1e-4)
        labels.append(np.asarray(image.dataobj).squeeze())
    return labels


VARIANTS: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({}, {}, 2.0),
    (
        {"spacing": (3.6, 1.2, 1.0), "normalization_schemes": ["CTNormalization"]},
        {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]},
        4.0,
    ),
    ({"use_mask_for_norm": [True]}, {"image_reader_writer": "SimpleITKIOWithReorient"}, 2.0),
]
"""Changes of the configuration and of the plans, and the thickness of slices in mm."""


def test_labels_are_those_of_the_nnunet_folder(tmp_path: Path) -> None:
    cases, expected = [], []
    for n, (changes, plans_changes, thick) in enumerate(VARIANTS):
        entry = configuration((32, 48, 48), **{"spacing": (1.5, 1, 1), **changes})
        source = write_model(tmp_path / f"source_{n}", entry=entry, plans_changes=plans_changes, folds=(0, 1))
        root, volume = tmp_path / f"bundle_{n}", oblique_scan(thick)
        convert(read_bundle(source), root)
        cases.append((root, volume))
        expected.append(segment(volume, read_bundle(source), SegmentOptions(tta="none")).array)
        assert np.bincount(expected[n].ravel()).min() > 500
    for (root, volume), alone, right in zip(cases, run_by_monai(cases, tmp_path), expected, strict=True):
        ours = segment(volume, read_bundle(root, trust=True), SegmentOptions(windows="bundle", crop=False)).array
        for found in (alone, ours):
            assert (found == right).mean() >= 0.999


def test_a_converted_bundle_says_what_it_is(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", dataset_changes={"channel_names": {"0": "T1", "1": "FLAIR"}}, entry=two())
    (source / "LICENSE").write_text("MIT License\n")
    convert(read_bundle(source), tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert [(one.label, one.name) for one in bundle.segments] == [(1, "inner"), (2, "outer")]
    assert (bundle.modality, bundle.channel_names) == ("MR", ("T1", "FLAIR"))
    assert not [one for one in check(tmp_path / "bundle") if one.level == "error"]
    assert (tmp_path / "bundle" / "LICENSE").is_file()
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii", "b_0001.nii"):
        (tmp_path / name).touch()
    parser = ConfigParser(json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text()))
    parser["dataset_dir"] = str(tmp_path)
    found = [[Path(path).name for path in case] for case in parser.get_parsed_content("images")]
    assert found == [["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0000.nii", "b_0001.nii"]]
    text = (tmp_path / "bundle" / "scripts" / "nnunet.py").read_text()
    assert "import napari_seg" not in text
    assert "from napari_seg" not in text


def two() -> dict[str, Any]:
    return configuration(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)


@pytest.mark.parametrize("name", ["$__import__('os').system('true')", "@network", "%configs/inference.json::device"])
def test_names_that_monai_would_run_are_not_written(tmp_path: Path, name: str) -> None:
    source = write_model(tmp_path / "source", dataset_changes={"labels": {"background": 0, name: 1}})
    with pytest.raises(NapariSegError) as raised:
        convert(read_bundle(source), tmp_path / "bundle")
    assert raised.value.code == "bundle.name"
    assert not (tmp_path / "bundle").exists()


def test_arguments_that_monai_would_run_are_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    plans = json.loads((source / "plans.json").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"nonlin": "torch.nn.GELU", "nonlin_kwargs": {"approximate": "$__import__('os').system('true')"}}
    (source / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(NapariSegError) as raised:
        read_bundle(source)
    assert raised.value.code == "bundle.nnunet"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
@pytest.mark.parametrize("name", ["model.pt", "inference.json", "README.md"])
def test_a_full_disk_leaves_nothing_that_a_second_attempt_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle, out, opened = read_bundle(write_model(tmp_path)), tmp_path / "out", Path.open
    with monkeypatch.context() as full:
        full.setattr(
            Path, "open", lambda path, *a, **k: opened(Path("/dev/full") if path.name == name else path, *a, **k)
        )
        with pytest.raises(OSError, match="No space left"):
            convert(bundle, out)
    assert not list(out.iterdir())
    convert(bundle, out)
    assert not [one for one in check(out) if one.level == "error"]


def test_models_that_a_bundle_can_not_hold_are_refused(tmp_path: Path) -> None:
    flat = write_model(tmp_path / "flat", "2d", configuration((16, 16), (1, 1)))
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    regions = write_model(tmp_path / "regions", dataset_changes={"labels": labels, "regions_class_order": [1, 2]})
    for source in (flat, regions):
        with pytest.raises(NapariSegError) as raised:
            convert(read_bundle(source), tmp_path / "bundle")
        assert raised.value.code == "bundle.convert"
    with pytest.raises(NapariSegError) as raised:
        convert(read_bundle(), tmp_path / "bundle")
    assert raised.value.code == "bundle.convert"
    with pytest.raises(NapariSegError) as raised:
        convert(read_bundle(regions), regions)
    assert raised.value.code == "store.exists"
