"""Models of nnU-Net as MONAI bundles: MONAI alone runs them, napari-seg too, with the labels of the nnU-Net folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from nnunet_models import configuration, write_model
from PIL import Image

from napari_seg.bundles.check import check
from napari_seg.bundles.nnunet.convert import convert
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.ways import way_of
from napari_seg.errors import NapariSegError
from napari_seg.formats.image2d import read_image2d
from napari_seg.geometry import Grid
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
    stages = [(root, results, {})]
    if os.path.isdir(labels := os.path.join(root, "previous")):  # a cascade, by the two commands of its README
        stages = [(labels, results + "_labels", {}), (root, results, {"previous_dir": results + "_labels"})]
    for stage, output, options in stages:
        os.chdir(stage)
        run(config_file="configs/inference.json", dataset_dir=images, output_dir=output, **options)
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            del sys.modules[name]  # the next one brings its own
"""


def run_by_monai(cases: list[tuple[Path, Path]], tmp_path: Path) -> list[Path]:
    """Return the label maps that MONAI alone writes with bundles for a scan each; napari-seg can't be imported."""
    folders = [(str(root), str(scan.parent), str(tmp_path / f"results_{n}")) for n, (root, scan) in enumerate(cases)]
    blocked = tmp_path / "blocked"
    (blocked / "napari_seg").mkdir(parents=True)
    (blocked / "napari_seg" / "__init__.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "-c", RUN_EACH, json.dumps(folders)]
    environment = os.environ | {"PYTHONPATH": str(blocked)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [found for _, _, results in folders for found in Path(results).glob("*_seg.*")]


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
COLOURS = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "file_ending": ".png",
    "overwrite_image_reader_writer": "NaturalImage2DIO",
}


@dataclass(frozen=True)
class Variant:
    """A model of nnU-Net, and the thickness of the slices of its scan in mm; 0 for a PNG. The seed gives all labels.

    The second stage of a cascade has the entry of the first one in `lowres`.
    """

    entry: dict[str, Any] = field(default_factory=lambda: configuration((32, 48, 48), (1.5, 1, 1)))
    plans: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    mirror_axes: tuple[int, ...] | None = None
    folds: tuple[int, ...] = (0, 1)
    thick: float = 2.0
    seed: int = 0
    lowres: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the configuration."""
        if self.lowres is not None:
            return "3d_cascade_fullres"
        return "2d" if len(self.entry["patch_size"]) == 2 else "3d_fullres"


VARIANTS = {
    "plain": Variant(mirror_axes=(0, 1, 2), seed=9),
    "thick": Variant(
        configuration((32, 48, 48), (3.6, 1.2, 1.0), normalization_schemes=["CTNormalization"]),
        {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]},
        thick=4.0,
    ),
    "reoriented": Variant(
        configuration((32, 48, 48), (1.5, 1, 1), use_mask_for_norm=[True]),
        {"image_reader_writer": "SimpleITKIOWithReorient"},
        mirror_axes=(1,),
        folds=(0,),
        seed=6,
    ),
    "regions": Variant(dataset=REGIONS, mirror_axes=(0, 2), folds=(0,), seed=12),
    "slices": Variant(
        configuration((48, 48), (1.3, 0.8)),
        {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]},
        mirror_axes=(0, 1),
        seed=15,
    ),
    "slices with regions": Variant(configuration((48, 48), (1, 1)), dataset=REGIONS, thick=4.0, folds=(0,), seed=9),
    "colours": Variant(
        configuration(
            (48, 48),
            (1, 1),
            normalization_schemes=["RGBTo01Normalization", "ZScoreNormalization", "ZScoreNormalization"],
            use_mask_for_norm=[False] * 3,
        ),
        dataset=COLOURS,
        mirror_axes=(0, 1),
        thick=0.0,
        seed=11,
    ),
    "cascade": Variant(
        configuration((32, 48, 48), (1.5, 1, 1), use_mask_for_norm=[True], previous_stage="3d_lowres"),
        mirror_axes=(0, 2),
        seed=246,
        lowres=configuration((16, 24, 24), (3, 2, 2)),
    ),
    "thick cascade of regions": Variant(
        configuration((32, 48, 48), (3.6, 1.2, 1.0), previous_stage="3d_lowres"),
        {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]},
        REGIONS,
        folds=(0,),
        thick=4.0,
        seed=18,
        lowres=configuration((24, 32, 32), (4, 1.6, 1.6)),
    ),
}


def write_variant(results: Path, variant: Variant) -> Path:
    """Write the model of a variant, of a cascade both stages, and return the folder with its plans.json."""
    changes: dict[str, Any] = {
        "plans_changes": variant.plans,
        "dataset_changes": variant.dataset,
        "folds": variant.folds,
        "mirror_axes": variant.mirror_axes,
        "seed": variant.seed,
    }
    if variant.lowres is not None:
        write_model(results, "3d_lowres", variant.lowres, **changes)
        changes["other_configurations"] = {"3d_lowres": variant.lowres}
    return write_model(results, variant.name, variant.entry, **changes)


def write_scan(variant: Variant, folder: Path) -> tuple[Path, Volume]:
    """Write the scan of a variant into a new folder, and return its file and its content."""
    folder.mkdir()
    volume = oblique_scan(variant.thick or 2.0)
    if variant.thick:
        path = folder / "scan.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume.array[0], volume.grid.affine), path)
        return path, volume
    planes = volume.array[0, :, :, 8:11].clip(0, 765) // 3  # (x, y, colour)
    path = folder / "scan.png"
    Image.fromarray(planes.astype(np.uint8).transpose(1, 0, 2)).save(path)
    return path, read_image2d(path, None)


def read_labels(path: Path, volume: Volume) -> np.ndarray:
    """Return the labels that MONAI wrote for a scan, (I, J, K)."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).T[..., None]
    image = nibabel.load(path)
    assert np.allclose(image.affine, volume.grid.affine, atol=1e-4)
    return np.asarray(image.dataobj).reshape(volume.grid.shape)


def test_labels_are_those_of_the_nnunet_folder(tmp_path: Path) -> None:
    cases, volumes, expected = [], [], []
    for name, one in VARIANTS.items():
        source = write_variant(tmp_path / f"source of {name}", one)
        scan, volume = write_scan(one, tmp_path / name)
        convert(read_bundle(source), tmp_path / f"bundle of {name}")
        cases.append((tmp_path / f"bundle of {name}", scan))
        volumes.append(volume)
        expected.append(segment(volume, read_bundle(source)).array)
        assert np.bincount(expected[-1].ravel(), minlength=3).min() > volume.array[0].size // 50, name
    results = run_by_monai(cases, tmp_path)
    for name, (root, _), volume, result, right in zip(VARIANTS, cases, volumes, results, expected, strict=True):
        assert not [one for one in check(root) if one.level == "error"]
        ours = segment(volume, read_bundle(root, trust=True)).array
        for found in (read_labels(result, volume), ours):
            assert (found == right).mean() >= 0.999, name


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


def test_a_cascade_reads_the_labels_of_its_first_stage(tmp_path: Path) -> None:
    entries = {"3d_lowres": two(), "3d_cascade_fullres": two() | {"previous_stage": "3d_lowres"}}
    names = {"channel_names": {"0": "T1", "1": "FLAIR"}}
    for name, entry in entries.items():
        source = write_model(tmp_path, name, entry, dataset_changes=names, other_configurations=entries)
    out = tmp_path / "bundle"
    convert(read_bundle(source), out)
    bundle = read_bundle(out)
    assert bundle.previous is not None
    assert bundle.previous.root == (out / "previous").resolve()
    assert bundle.channel_names == bundle.previous.channel_names == ("T1", "FLAIR")
    assert not [one for one in check(out) if one.level == "error"]
    assert "--previous_dir labels" in (out / "docs" / "README.md").read_text()
    for number in range(2):
        (tmp_path / f"a_000{number}.nii.gz").touch()
    parser = ConfigParser(json.loads((out / "configs" / "inference.json").read_text()))
    parser["dataset_dir"], parser["previous_dir"] = str(tmp_path), "labels"
    (case,) = parser.get_parsed_content("dataset#data")
    assert [Path(path).name for path in case["image"]] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert Path(case["previous"]) == Path("labels", "a_0000_seg.nii.gz")  # named after the first file, as by MONAI

    weights = read_bundle(source).previous.root / "fold_0" / "checkpoint_final.pth"
    weights.write_bytes(b"damaged")
    with pytest.raises(NapariSegError, match=r"bundle\.weights"):
        convert(read_bundle(source), tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())


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
        with pytest.raises(NapariSegError) as raised:
            convert(bundle, out)
    assert raised.value.code == "output.disk_full"
    assert not list(out.iterdir())
    convert(bundle, out)
    assert not [one for one in check(out) if one.level == "error"]


def test_regions_keep_their_names(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    changes = {"labels": labels, "regions_class_order": [2, 1, 3]}
    convert(read_bundle(write_model(tmp_path / "source", dataset_changes=changes)), tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert [(one.label, one.name) for one in bundle.segments] == [(1, "core"), (2, "whole"), (3, "enhancing")]
    assert [(one.number, one.label) for one in bundle.output.channels] == [(0, 2), (1, 1), (2, 3)]
    assert way_of(bundle).kind == "engine"
    assert "there: whole, core, enhancing." in (tmp_path / "bundle" / "docs" / "README.md").read_text()


def test_a_bundle_of_one_region_is_run_by_the_engine(tmp_path: Path) -> None:
    changes = {"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [2]}
    source = read_bundle(write_model(tmp_path, "2d", configuration((16, 16), (1, 1)), dataset_changes=changes))
    convert(source, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle", trust=True)
    assert [(one.label, one.name) for one in bundle.segments] == [(2, "whole")]
    assert way_of(bundle).kind == "engine"
    Image.fromarray((oblique_scan().array[0, :16, :16, 8].T // 3).clip(0, 255).astype(np.uint8)).save(
        tmp_path / "one.png"
    )
    volume = read_image2d(tmp_path / "one.png")
    expected = segment(volume, source).array
    assert 0 < (expected == 2).mean() < 1
    assert (segment(volume, bundle).array == expected).mean() > 0.99


@pytest.mark.parametrize(("ending", "listed"), [(".tif", "*.tif*"), (".bmp", "*.bmp*"), (".x', '*", "*.png*")])
def test_images_are_listed_by_the_ending_of_the_data_set(tmp_path: Path, ending: str, listed: str) -> None:
    reader = {"file_ending": ending, "overwrite_image_reader_writer": "NaturalImage2DIO"}
    source = write_model(tmp_path, "2d", configuration((16, 16), (1, 1)), dataset_changes=reader)
    convert(read_bundle(source), tmp_path / "bundle")
    images = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())["images"]
    assert images == f"$sorted(glob.glob(os.path.join(@dataset_dir, '{listed}')))"
    assert f"`{listed.strip('*')}`" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


def test_a_bundle_of_slices_takes_2d_images(tmp_path: Path) -> None:
    convert(read_bundle(write_model(tmp_path, "2d", configuration((16, 16), (1, 1)))), tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").takes_one_slice


def with_first_stage(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "3d_lowres": configuration((16, 24, 24), (3, 2, 2)),
        "3d_cascade_fullres": entry | {"previous_stage": "3d_lowres"},
    }


@pytest.mark.parametrize(
    ("dataset", "seed", "is_cascade"),
    [({}, 5, False), (REGIONS, 5, False), ({}, 9, True)],
    ids=["labels", "regions", "cascade"],
)
def test_an_ensemble_becomes_a_bundle_of_bundles(
    tmp_path: Path, dataset: dict[str, Any], seed: int, is_cascade: bool
) -> None:
    entry = configuration((24, 48, 48), (1.5, 1, 1))
    full = with_first_stage(entry) if is_cascade else {"3d_fullres": entry}
    entries = {"2d": configuration((48, 48), (1, 1)), **full}
    for number, (name, one) in enumerate(entries.items()):
        source = write_model(
            tmp_path, name, one, dataset_changes=dataset, seed=seed + number, other_configurations=entries
        )
    (source / "LICENSE").write_text("MIT License\n")
    ensemble = read_bundle(f"{source.parent}:{name}+2d")
    convert(ensemble, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle", trust=True)
    assert (bundle.name, bundle.segments) == (ensemble.name, ensemble.segments)
    assert [one.root.name.rpartition("__")[2] for one in bundle.models] == [name, "2d"]
    assert (bundle.models[0].previous is not None) == is_cascade
    assert not [one for one in check(tmp_path / "bundle") if one.level == "error"]
    assert (tmp_path / "bundle" / "LICENSE").is_file()
    array = oblique_scan().array[..., 4:16]
    volume = Volume(array, Grid(array.shape[1:], oblique_scan().grid.affine))
    expected = segment(volume, ensemble).array
    assert np.bincount(expected.ravel(), minlength=3).min() > 1000
    assert (segment(volume, bundle).array == expected).mean() >= 0.999
    assert max((segment(volume, one).array == expected).mean() for one in ensemble.members) < 0.9


def test_a_member_that_fails_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "2d", configuration((16, 16), (1, 1)))
    source = write_model(tmp_path)
    bundle = read_bundle(f"{source.parent}:2d+3d_fullres")
    (source / "fold_0" / "checkpoint_final.pth").write_bytes(b"damaged")
    with pytest.raises(NapariSegError) as raised:
        convert(bundle, tmp_path / "bundle")
    assert raised.value.code.startswith("bundle.weights")
    assert not list((tmp_path / "bundle").iterdir())


def test_models_that_a_bundle_can_not_hold_are_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path)
    slices = configuration((16, 16), (1, 1))
    write_model(tmp_path / "2d", "2d", slices, dataset_changes=COLOURS | {"channel_names": {"0": "grey"}})
    cascade = write_model(
        tmp_path / "2d",
        "cascade",
        slices | {"previous_stage": "2d"},
        other_configurations={"2d": slices},
        dataset_changes=COLOURS | {"channel_names": {"0": "grey"}},
    )
    folder = source.parent
    for bundle, reason in (
        (read_bundle(cascade), "cascade of 2D images"),
        (read_bundle(f"{folder}:3d_fullres+3d_fullres"), "with itself"),
        (read_bundle(), "no model of nnU-Net"),
    ):
        with pytest.raises(NapariSegError, match=reason) as raised:
            convert(bundle, tmp_path / "bundle")
        assert raised.value.code == "bundle.convert"
    with pytest.raises(NapariSegError) as raised:
        convert(read_bundle(source), source)
    assert raised.value.code == "store.exists"
