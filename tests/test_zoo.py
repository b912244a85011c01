"""scripts/zoo.py and its modules, with a tiny bundle that the test writes instead of the Model Zoo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("psutil")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import zoo
from benchmarks import bundle_cases, bundle_phantoms, bundle_runs, bundle_weights
from benchmarks.measuring import Watched

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gib": 8,
    "gpu": None,
    "system": "Linux",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "load_before": 0.04,
}


def _tiny_bundle(root: Path, channels: int = 3) -> Path:
    config = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": channels,
            "channels": [4, 8],
            "strides": [2],
            "norm": "batch",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "ScaleIntensityd", "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network_def"},
            }
        ],
        "run": [],
    }
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    return root


def test_phantoms_of_all_bundles_are_files_on_one_oblique_grid(tmp_path):
    ct = bundle_phantoms.write_ct(tmp_path, (12, 10, 6), (0.9, 0.8, 2), phases=2)
    first, second = (nibabel.load(path) for path in ct)
    assert np.allclose(first.affine, second.affine)
    assert np.allclose(nibabel.affines.voxel_sizes(first.affine), (0.9, 0.8, 2), atol=1e-5)
    assert np.count_nonzero(first.affine[:3, :3]) > 3
    hu = np.asanyarray(first.dataobj)
    assert hu.min() < -900
    assert 0 < np.median(hu[hu > -500]) < 300
    assert not np.array_equal(hu, np.asanyarray(second.dataobj))
    mr = bundle_phantoms.write_mr(tmp_path, (12, 10, 6), (1, 1, 2), ("T1", "FLAIR"))
    assert [path.name for path in mr] == ["T1.nii.gz", "FLAIR.nii.gz"]
    (picture,) = bundle_phantoms.write_image2d(tmp_path, (30, 20))
    assert Image.open(picture).size == (30, 20)
    assert Image.open(picture).mode == "RGB"


def test_data_names_files_as_each_bundle_expects_them():
    label = Path("label.nii.gz")
    assert bundle_cases.data_of([Path("a")], (), label) == [{"image": "a"}]
    assert bundle_cases.data_of([Path("a"), Path("b")], ("T1", "T2"), label) == [{"image": ["a", "b"]}]
    files = [Path(name) for name in "abc"]
    expected = {"artery": "a", "vein": "b", "excret": "c", "label": "label.nii.gz"}
    assert bundle_cases.data_of(files, bundle_cases.PHASES, label) == [expected]


@pytest.mark.parametrize(("train_all", "key"), [(True, None), (False, "model")])
def test_weights_let_every_class_win(tmp_path, train_all, key, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    root = _tiny_bundle(tmp_path / "tiny")
    (scan,) = bundle_phantoms.write_mr(tmp_path, (32, 32, 32), (1, 1, 1), ("image",))
    overrides = {"dataset#data": [{"image": str(scan)}]}
    threads = torch.get_num_threads()
    bundle_weights.make_weights(root, zoo.config_of(root), overrides, train_all=train_all, sigmoid=False, key=key)
    torch.set_num_threads(threads)
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    parser = bundle_weights._parser(root, zoo.config_of(root), overrides)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(state[key] if key else state)
    with torch.no_grad():
        labels = network(torch.as_tensor(parser.get_parsed_content("dataset")[0]["image"])[None]).argmax(1)
    assert set(labels.unique().tolist()) == {0, 1, 2}


def test_masks_of_channels_exclude_each_other():
    masks = bundle_weights.targets(torch.rand(1, 2, 12, 12, 12), 3, sigmoid=True)
    assert masks.shape == (1, 3, 12, 12, 12)
    assert masks.sum(1).max() == 1
    assert masks.flatten(2).any(2).all()
    assert masks.mean() == pytest.approx((1 - bundle_weights.BACKGROUND) / 3, abs=0.01)


def test_shifted_channels_are_neither_everywhere_nor_nowhere():
    logits = torch.randn(1, 3, 10, 10, 10) + torch.tensor([-5.0, 0.0, 5.0]).reshape(1, 3, 1, 1, 1)
    shifted = logits + bundle_weights.present_shift(logits).reshape(1, 3, 1, 1, 1)
    fractions = (shifted[0] > 0).float().flatten(1).mean(1)
    assert fractions.tolist() == pytest.approx([0.05, 0.3, 0.3], abs=0.01)


def test_architecture_code_builds_the_network_of_dints():
    from monai.networks.nets import DiNTS, TopologyInstance

    code = bundle_weights.architecture_code()
    assert code["arch_code_a"].shape == (12, 10)
    assert code["node_a"].shape == (13, 4)
    space = TopologyInstance(
        [code["arch_code_a"], code["arch_code_c"]], 0.1, num_blocks=12, num_depths=4, use_downsample=True
    )
    network = DiNTS(space, 1, 3, use_downsample=True, node_a=torch.from_numpy(code["node_a"])).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_agreement_by_hand():
    ours = np.array([0, 1, 1, 2, 0, 0])[:, None, None]
    theirs = np.array([0, 1, 2, 2, 0, 0])[:, None, None]
    found = bundle_runs.agreement(ours, theirs)
    assert found["equal"] == pytest.approx(5 / 6)
    assert found["dice"] == pytest.approx(2 / 3)
    assert found["least_dice"] == pytest.approx(2 / 3)
    assert found["labels"] == 2


def test_labels_off_the_scans_grid_are_refused(tmp_path):
    (scan,) = bundle_phantoms.write_mr(tmp_path / "scan", (6, 5, 4), (1, 1, 2), ("image",))
    (tmp_path / "out").mkdir()
    image = nibabel.load(scan)
    labels = np.arange(120).reshape(6, 5, 4) % 3
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), image.affine), tmp_path / "out" / "image_seg.nii.gz")
    assert np.array_equal(bundle_runs.labels_of(tmp_path / "out", scan, "image"), labels)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)), tmp_path / "out" / "image_seg.nii.gz")
    with pytest.raises(SystemExit, match="does not lie on the scan's grid"):
        bundle_runs.labels_of(tmp_path / "out", scan, "image")


def test_report_replaces_the_row_of_a_bundle(tmp_path):
    measured = {"seconds": 4.2, "peak_gib": 0.5}
    row = {"note": "", "monai": measured, "way": "engine", "consent": False, "reasons": []}
    row |= {"exact": measured | {"equal": 1.0, "dice": 1.0, "least_dice": 1.0, "labels": 1}, "default": {"dice": 0.99}}
    zoo.write(tmp_path, "spleen_ct_segmentation", {"note": "", "monai_error": "failed"}, MACHINE)
    zoo.write(tmp_path, "segmentation_template", row, MACHINE)
    zoo.write(
        tmp_path,
        "spleen_ct_segmentation",
        row | {"way": "refused", "reasons": [f"config: {n} | b" for n in "acdefg"]},
        MACHINE,
    )
    assert list(json.loads((tmp_path / "zoo.json").read_text())["bundles"]) == [
        "segmentation_template",
        "spleen_ct_segmentation",
    ]
    lines = (tmp_path / "zoo.md").read_text().splitlines()
    assert "| segmentation_template | 1 | 100.0000% | 1.0000 (1.0000) | 0.9900 | 1 | 4 / 4 | 0.5 / 0.5 |" in lines
    assert "| spleen_ct_segmentation | a \\| b; c \\| b; d \\| b; 3 more |" in lines


def test_comparison_reports_the_error_of_each_program(tmp_path, monkeypatch):
    source = _tiny_bundle(tmp_path / "source")
    (source / "models").mkdir()
    (source / "models" / "model.pt").write_bytes(b"weights")
    case = bundle_cases.Case((8, 8, 8), (1, 1, 1), "mr")

    def monai(root, config, overrides, output):
        assert overrides["dataset#data"] == [{"image": str(tmp_path / "work" / "phantom" / "image.nii.gz")}]
        output.mkdir(parents=True)
        scan = nibabel.load(overrides["dataset#data"][0]["image"])
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.uint8), scan.affine), output / "image_trans.nii.gz")
        return Watched(1.0, 2**30, "", "")

    def napari_seg(root, inputs, output, options):
        folder = output.with_name(f"{output.name}_log")
        folder.mkdir(exist_ok=True)
        (folder / "stdout.txt").write_text("")
        (folder / "stderr.txt").write_text("napari-seg: bundle.weights: no weights\n")
        raise SystemExit("failed")

    monkeypatch.setattr(zoo, "run_monai", monai)
    monkeypatch.setattr(zoo, "run_napari_seg", napari_seg)
    monkeypatch.setattr(zoo, "way", lambda root: {"way": "engine", "consent": False, "reasons": []})
    row = zoo.compare("tiny", case, source, tmp_path / "work", zoo.RUNS, {"note": "old"})
    assert row["monai"] == {"seconds": 1.0, "peak_gib": 1.0}
    assert row["exact"] == {"error": "napari-seg: bundle.weights: no weights"}
    kept = zoo.compare("tiny", case, source, tmp_path / "work", ["default"], row | {"exact": "kept"})
    assert kept["exact"] == "kept"
    assert kept["default"] == row["default"]
