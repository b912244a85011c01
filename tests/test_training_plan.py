"""Plans against what their rules say by hand, and the bundle that is made of one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import METADATA
from napari_seg.errors import BundleError, EnvironmentFault, OutputError, TrainingError
from napari_seg.training import choices as choices_module
from napari_seg.training import fingerprint, folds, prepare, run
from napari_seg.training.choices import Choices, changed_settings, check_same, describe_weights
from napari_seg.training.describe import plan_rows
from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.history import read_summary
from napari_seg.training.plan import make_plan
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.write import check_arguments, options, write_bundle

MRI = Fingerprint(
    cases=100,
    measured=10,
    is_2d=False,
    channels=("T1",),
    modality="MR",
    values=(1, 2),
    shapes=np.array([[35.0, 50, 36]] * 9 + [[36.0, 52, 41]]),
    spacings_mm=np.ones((10, 3)),
    foreground={"low": -120.0, "high": 280.0, "mean": 80.0, "std": 40.0},
)
"""Like the Decathlon's Task04."""
CT = replace(
    MRI,
    channels=("CT",),
    modality="CT",
    shapes=np.array([[512.0, 512, 60]] * 10),
    spacings_mm=np.array([[0.8, 0.8, 5.0]] * 8 + [[0.8, 0.8, 2.5]] * 2),
)


def test_small_scans_are_seen_whole() -> None:
    plan = make_plan(MRI)
    assert plan.settings["spacing_mm"] == [1, 1, 1]
    # the 95th percentiles are 35.55, 51.1 and 38.75
    assert plan.settings["patch_size"] == [40, 56, 40]
    assert plan.settings["batch_size"] == 2
    # 80 cases at 2 a step are 40 steps; 4000 / 40
    assert plan.settings["max_epochs"] == 100
    assert plan.why["max_epochs"] == "about 4000 steps at 40 per epoch"
    assert plan.settings["val_interval"] == 8
    assert plan.why["val_interval"] == "13 validations over the training"  # as plan_time counts them
    assert plan.settings["normalisation"]["_target_"] == "monai.transforms.NormalizeIntensityd"
    assert plan.options == []
    assert set(plan.settings) == set(plan.why)


def test_the_steps_of_the_fewest_and_most_epochs_are_stated() -> None:
    plan = make_plan(replace(MRI, cases=2))
    assert plan.settings["max_epochs"] == 1000
    assert plan.why["max_epochs"] == "1000 steps at 1 per epoch, not 4000: between 20 and 1000 epochs"


def test_thick_slices_keep_finer_ones_and_large_scans_are_cut_into_near_cubes() -> None:
    plan = make_plan(CT, device="cuda")
    # the third axis is 6 times as coarse and 8 times as short: its finest tenth, not its median of 5
    assert plan.settings["spacing_mm"] == [0.8, 0.8, 2.5]
    i, j, k = plan.settings["patch_size"]
    assert i * j * k <= 128**3 < (i + 8) * j * k
    # 60 slices of 5 mm are 120 of 2.5 mm: 300 mm, more than what is left of the other two
    edges_mm = np.array([i, j, k]) * [0.8, 0.8, 2.5]
    assert edges_mm.max() - edges_mm.min() <= 8 * 2.5
    assert plan.options == ["crops_balanced"]
    normalisation = plan.settings["normalisation"]
    assert (normalisation["a_min"], normalisation["a_max"]) == (-120, 280)
    assert (normalisation["b_min"], normalisation["b_max"]) == (-5, 5)  # (-120 - 80) / 40 and (280 - 80) / 40
    assert normalisation["clip"] is True


def test_2d_sees_slices_of_volumes_and_pictures_as_they_are() -> None:
    slices = make_plan(MRI, dims=2)
    assert slices.dims == 2
    assert slices.options == ["slices_2d"]
    assert slices.settings["patch_size"] == [40, 56]
    pictures = replace(
        MRI, is_2d=True, modality="image2d", cases=8, shapes=np.array([[900.0, 700]]), spacings_mm=np.ones((1, 2))
    )
    plan = make_plan(pictures)
    assert plan.options == ["images_2d", "crops_balanced"]
    assert "spacing_mm" not in plan.settings
    assert plan.settings["patch_size"] == [256, 256]
    assert plan.settings["batch_size"] == 4  # half of the cases
    # 6.4 pictures at 4 a step: 31.25 patches of each make 50 steps, 32 make 52; 4000 / 52
    assert plan.settings["patches_per_case"] == 32
    assert plan.settings["max_epochs"] == 77


def test_slices_lie_across_the_coarsest_axis() -> None:
    thick = replace(MRI, spacings_mm=np.array([[3.0, 1, 1]] * 10))  # sagittal slices
    plan = make_plan(thick, dims=2)
    assert plan.settings["slice_axis"] == 0
    assert plan.settings["patch_size"] == [56, 40]


def test_thick_slices_are_turned_within_their_plane() -> None:
    plan = make_plan(replace(CT, spacings_mm=np.array([[0.8, 5.0, 0.8]] * 10), shapes=CT.shapes[:, [0, 2, 1]]))
    settings = {name.rpartition("#")[2]: value for name, value in plan.settings.items() if "augmentation" in name}
    assert settings == {
        "rotate_range": [0.0, 0.3, 0.0],
        "scale_range": [0.18, 0.0, 0.18],
        "shear_range": [0.0, 0.06, 0.0, 0.0, 0.06, 0.0],  # of pairs: the first and the last axis
        "translate_range": [5, 1, 5],
    }
    assert plan.network["strides"][0] == [2, 1, 2]
    assert plan.network["kernels"][0] == [3, 1, 3]
    own = {"spatial_augmentation#1#rotate_range": [0.1, 0.1, 0.1]}
    plan = make_plan(CT, chosen=own)
    assert "spatial_augmentation#1#rotate_range" not in plan.settings
    assert not any("augmentation" in name for name in make_plan(MRI).settings)


def test_sizes_and_chosen_networks() -> None:
    assert make_plan(MRI).size == "S"
    assert make_plan(MRI, device="cuda").size == "M"
    assert make_plan(MRI, device="cuda").settings["max_epochs"] == 625  # 25000 steps of 40 an epoch
    large = make_plan(CT, device="cuda", size="L")
    assert np.prod(large.settings["patch_size"]) > 128**3
    assert large.network["encoder_units"][:3] == [1, 3, 4]
    for name in ("network_def#channels", "network_def::strides"):
        assert make_plan(MRI, chosen={name: [4, 8]}).network == {}
    assert make_plan(MRI, chosen={"network_def#channels": [4, 8]}).network_why == (
        "chosen; strides, kernels, encoder_units are the defaults of this network and not those of size S, because all "
        "must agree"
    )
    all_of_them = {f"network_def#{name}": 1 for name in ("channels", "strides", "kernels", "encoder_units")}
    assert make_plan(MRI, chosen=all_of_them).network_why == "chosen"
    assert make_plan(MRI, chosen={"network_def#dropout": 0.1}).network != {}
    assert make_plan(MRI, network="FCN").network == {}
    with pytest.raises(BundleError, match=r"bundle\.size: found --size M for FCN"):
        make_plan(MRI, network="FCN", size="M")


def test_arguments_that_a_network_lacks_are_refused() -> None:
    with with_segnets():
        with pytest.raises(
            BundleError, match=r"found network_def#chanels in --set, .* of UNet; did you mean channels\?"
        ):
            check_arguments(Choices(settings={"network_def::chanels": [4]}))
        with pytest.raises(BundleError, match=r"no argument of FCN; did you mean stem_stride\?"):
            check_arguments(Choices(network="FCN", settings={"network_def#stem_strides": 2}))
        for name, settings in (("UNet", {"channels#0": 4, "_disabled_": False}), ("FCN", {"channels": [4]})):
            check_arguments(Choices(network=name, settings={f"network_def#{one}": n for one, n in settings.items()}))
        check_arguments(Choices(settings={"network_def#_target_": "segnets.FCN", "network_def#variant": "8s"}))


def test_what_is_chosen_stands_and_the_rest_follows_from_it() -> None:
    plan = make_plan(MRI, chosen={"spacing_mm": [2, 2, 2], "batch_size": 8, "learning_rate": 0.1})
    assert plan.settings["spacing_mm"] == [2, 2, 2]
    assert plan.settings["patch_size"] == [24, 32, 24]  # halves of 35.55, 51.1 and 38.75
    assert plan.why["batch_size"] == "chosen; planned was 2"
    assert plan.settings["max_epochs"] == 400  # 80 cases at 8 a step are 10 steps; 4000 / 10
    assert "learning_rate" not in plan.settings
    small = make_plan(MRI, chosen={"patch_size": [32, 32, 32]})
    assert small.options == ["crops_balanced"]
    assert make_plan(MRI, dims=2, chosen={"slice_axis": 0}).settings["patch_size"] == [56, 40]
    for wrong in ({"patch_size": [32, 32]}, {"spacing_mm": 1}, {"batch_size": 0}, {"slice_axis": 3}):
        with pytest.raises(BundleError, match=r"bundle\.setting.*expected a value like"):
            make_plan(MRI, dims=2 if "slice_axis" in wrong else 3, chosen=wrong)


def test_a_bundle_of_ones_own(dataset: Path, tmp_path: Path) -> None:
    choices = Choices(
        network="FCN", options=("loss_focal", "tta"), settings={"learning_rate": 0.01, "network_def#norm": "batch"}
    )
    plan = plan_bundle(dataset, tmp_path / "balls", choices)
    assert plan["settings"]["patch_size"]["value"] == [32, 40, 32]  # crops are 22 to 30, 30 to 38 and 22 to 30
    assert plan["labels"] == {"front": [1], "back": [2]}
    assert plan["network"]["arguments"]["norm"] == "batch"
    assert plan == json.loads((tmp_path / "balls" / "plan.json").read_text())

    bundle = read_bundle(tmp_path / "balls")
    assert (bundle.name, bundle.modality, bundle.in_channels) == ("balls", "MR", 1)
    assert [(s.label, s.name) for s in bundle.segments] == [(1, "front"), (2, "back")]
    assert bundle.localiser is None
    assert bundle.min_confidence == 0
    written = datasets.configs(bundle.root)
    network = {"_target_": "segnets.FCN", "spatial_dims": 3, "in_channels": 1, "out_channels": "@num_classes"}
    for config in written.values():
        assert config["network_def"] == {**network, "norm": "batch"}
        assert config["patch_size"] == [32, 40, 32]
        assert config["inferer"]["_target_"] == "segnets.inferers.TestTimeAveraging"
    assert written["train"]["loss"]["_target_"] == "monai.losses.FocalLoss"
    assert written["train"]["learning_rate"] == 0.01
    assert "loss" not in written["inference"]
    assert "learning_rate" not in written["inference"]
    text = "".join(path.read_text() for path in (*bundle.root.glob("*.*"), *bundle.root.glob("[cd]*/*")))
    assert str(dataset) not in text  # a bundle is passed on; where its data lie is nobody's business
    assert "case_00" not in text
    assert not (bundle.root / "models" / "model.pt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["balls"]
    assert not list(bundle.root.glob("*unfinished*"))


def test_the_same_plan_twice_and_whatever_contradicts_it(dataset: Path, tmp_path: Path) -> None:
    first, second = (plan_bundle(dataset, tmp_path / name, Choices(network="UNet")) for name in ("a", "b"))
    assert first == second
    before = (tmp_path / "a" / "configs" / "train.yaml").read_bytes()
    assert plan_bundle(dataset, tmp_path / "a", Choices()) == first
    assert (tmp_path / "a" / "configs" / "train.yaml").read_bytes() == before
    with pytest.raises(OutputError, match=r"output\.exists.*network UNet, now FCN"):
        plan_bundle(dataset, tmp_path / "a", Choices(network="FCN"))
    other = datasets.write_decathlon(tmp_path / "other", cases=3)
    with pytest.raises(OutputError, match=r"data set of 6 cases, now another of 3"):
        plan_bundle(other, tmp_path / "a", Choices())
    with pytest.raises(OutputError, match="did not write"):
        plan_bundle(dataset, tmp_path / "other", Choices())


def test_wrong_choices_leave_nothing_behind(dataset: Path, tmp_path: Path) -> None:
    for found, expected in (
        ("Unet", r"did you mean UNet\?"),
        ("deeplabv3+", r"did you mean DeepLabV3Plus\?"),
        ("x", "expected one of .*DeepLabV3Plus, .*UNet"),
    ):
        with pytest.raises(BundleError, match=f"found network '{re.escape(found)}'; {expected}"):
            plan_bundle(dataset, tmp_path / "out", Choices(network=found))
    with pytest.raises(BundleError, match=r"found option 'focal'; did you mean loss_focal\?"):
        plan_bundle(dataset, tmp_path / "out", Choices(options=("focal",)))
    with pytest.raises(BundleError, match=r"found id 'learningrate' in --set; did you mean learning_rate\?"):
        plan_bundle(dataset, tmp_path / "out", Choices(settings={"learningrate": 1}))
    with pytest.raises(BundleError, match=r"bundle\.network:.*spatial_dims 2.*expected 3.*MultiView"):
        plan_bundle(dataset, tmp_path / "out", Choices(network="MultiView", dims=2))
    with pytest.raises(TrainingError, match=r"labels\.bad_value"):
        plan_bundle(dataset, tmp_path / "out", Choices(labels={"front": ["one"]}))
    plan_bundle(dataset, tmp_path / "out", Choices(), dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_patients_and_what_is_not_used_of_a_table_are_in_the_plan(dataset: Path, tmp_path: Path) -> None:
    rows = ["image,label,patient,split,who"]
    for number, image in enumerate(sorted((dataset / "imagesTr").iterdir())):
        rows.append(f"{image},{dataset / 'labelsTr' / image.name},P{number // 2},val,A")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    described = plan_rows(plan_bundle(tmp_path / "cases.csv", tmp_path / "out", Choices(size="S"), dry_run=True))
    assert described[0][1].startswith("6 cases of 3 patients, ")
    notes = [text for heading, text in described if heading == "note"]
    assert notes[0] == "columns not used: who"
    assert notes[1].startswith("the stated split has no training part, so it is not used; ")


def test_slices_and_pictures(dataset: Path, tmp_path: Path) -> None:
    plan_bundle(dataset, tmp_path / "slices", Choices(dims=2))
    for config in datasets.configs(tmp_path / "slices").values():
        assert config["network_def"]["spatial_dims"] == 2
        assert config["windows"]["_target_"] == "monai.inferers.SliceInferer"
        assert config["slice_axis"] == 2
        assert config["patch_size"] == [32, 40]
    pictures = datasets.write_pictures(tmp_path / "pictures", cases=3)
    plan = plan_bundle(pictures, tmp_path / "unnamed", Choices())
    assert plan["labels"] == {"label 127": [127], "label 255": [255]}
    plan = plan_bundle(pictures, tmp_path / "named", Choices(labels={"myelin": ["120-135"], "axon": [255]}))
    assert plan["labels"] == {"myelin": ["120-135"], "axon": [255]}
    written = datasets.configs(tmp_path / "named")
    assert written["inference"]["network_def"] == {
        "_target_": "segnets.UNet",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": "@num_classes",
    }
    metadata = json.loads((tmp_path / "named" / METADATA).read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "myelin",
        "2": "axon",
    }


def test_no_option_brings_references_that_lead_nowhere(tmp_path: Path) -> None:
    for option in options():
        with with_segnets():
            write_bundle(tmp_path / option, "x", make_plan(MRI), MRI, {"front": [1]}, Choices(options=(option,)))
        for name, config in datasets.configs(tmp_path / option).items():
            missing = set(re.findall(r"@([A-Za-z]\w*)", json.dumps(config))) - config.keys()
            assert not missing, (option, name)


@pytest.mark.parametrize("name", ["$print('run')", "@num_classes", "%train", "liver @#x"])
def test_no_name_becomes_code(name: str, dataset: Path, tmp_path: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    for number, hostile in enumerate(({"labels": {"0": "background", "1": name, "2": "b"}}, {"modality": {"0": name}})):
        root = tmp_path / f"data{number}"
        shutil.copytree(dataset, root)
        (root / "dataset.json").write_text(json.dumps(description | hostile))
        with pytest.raises((BundleError, TrainingError), match=re.escape(name)):
            plan_bundle(root, tmp_path / "out", Choices())
    with pytest.raises(BundleError, match=r"bundle\.name"):
        plan_bundle(dataset, tmp_path / "out", Choices(labels={name: [1], "b": [2]}))
    with pytest.raises(BundleError, match=r"bundle\.name"):
        plan_bundle(dataset, tmp_path / name, Choices())
    with pytest.raises(BundleError, match=r"expected the meaning of the label values in --labels"):
        plan_bundle(dataset, tmp_path / "out", Choices(settings={"labels": {name: [1], "b": [2]}}))
    assert {path.name for path in tmp_path.iterdir()} == {"data0", "data1"}


def test_values_that_stand_for_no_class(tmp_path: Path) -> None:
    plan = plan_bundle(datasets.write_voc(tmp_path / "voc"), tmp_path / "out", Choices(), dry_run=True)
    assert plan["labels"] == {"label 1": [1], "label 5": [5]}
    assert plan["fingerprint"]["foreground intensities"] == {"low": 100, "high": 100, "mean": 100, "std": 0}
    (note,) = plan["notes"]
    assert note.startswith("the same image is in several cases")
    assert "(1 image; " in note


def test_a_bundle_is_made_inside_its_folder_and_begun_anew_after_a_kill(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "configs").mkdir(parents=True)
    with pytest.raises(OutputError, match="did not write"):
        plan_bundle(dataset, out, Choices())
    (out / "plan.json.unfinished").touch()
    (out / "configs" / "old.yaml").touch()
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(prepare, "make_bundle", lambda *args: seen.append([path.name for path in tmp_path.iterdir()]))
        plan_bundle(dataset, out, Choices())
        assert seen == [["out"]]
    plan_bundle(dataset, out, Choices())
    assert not (out / "configs" / "old.yaml").exists()
    assert (out / "plan.json").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        plan_bundle(dataset, tmp_path / "empty", Choices(options=("focal",)))
    assert list((tmp_path / "empty").iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("plan.json.unfinished", "thesis.txt"):
        (mine / name).touch()
    with pytest.raises(OutputError, match="did not write"):
        plan_bundle(dataset, mine, Choices())


def test_choices_are_in_the_plan_and_the_metadata(dataset: Path, tmp_path: Path) -> None:
    choices = Choices(network="DeepLabV3Plus", settings={"patch_size": [32, 256, 32]})
    plan = plan_bundle(dataset, tmp_path / "out", choices)
    assert plan["settings"]["patch_size"] == {"value": [32, 256, 32], "why": "chosen; planned was [32, 40, 32]"}
    image = json.loads((tmp_path / "out" / METADATA).read_text())["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [32, 256, 32]
    for config in datasets.configs(tmp_path / "out").values():
        network_def = config["network_def"]
        assert network_def["window"] == 256
    with with_segnets():
        import segnets

        arguments = {name: value for name, value in network_def.items() if name != "_target_"}
        network = segnets.DeepLabV3Plus(**arguments | {"out_channels": 3})
    dilations = [m.dilation[0] for m in network.aspp.modules() if getattr(m, "dilation", (1,))[0] > 1]
    assert dilations == [6, 12, 18]  # 2, 4 and 6 of 11 parts of the map's 32


def test_where_the_files_lie(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for given, name in (("imagesTr", "scans"), ("labelsTr", "truth")):
        shutil.copytree(dataset / given, root / name)
    reading = {"images_dir": "scans", "labels_dir": "truth"}
    plan = plan_bundle(root, tmp_path / "out", Choices(settings=reading))
    written = datasets.configs(tmp_path / "out")
    for config in (written["train"], written["evaluate"]):
        assert {name: config[name] for name in reading} == reading
    assert plan_bundle(root, tmp_path / "out", Choices()) == plan


def test_pictures_have_two_dimensions_and_a_page_of_their_own(tmp_path: Path) -> None:
    pictures = datasets.write_pictures(tmp_path / "pictures", cases=3)
    with pytest.raises(BundleError, match=r"bundle\.dims"):
        plan_bundle(pictures, tmp_path / "out", Choices(dims=3))
    assert not (tmp_path / "out").exists()
    plan_bundle(pictures, tmp_path / "out", Choices())
    page = (tmp_path / "out" / "docs" / "README.md").read_text()
    assert "napari-seg predict IMAGE --model" in page
    assert "monai.bundle run inference" in page


def test_a_case_without_any_structure(dataset: Path, tmp_path: Path) -> None:
    import nibabel

    root = tmp_path / "data"
    shutil.copytree(dataset, root)
    label = nibabel.load(root / "labelsTr" / "case_02.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), root / "labelsTr/case_02.nii.gz")
    with pytest.raises(TrainingError, match=r"label\.empty +case_02"):
        plan_bundle(root, tmp_path / "out", Choices())
    plan_bundle(root, tmp_path / "out", Choices(settings={"allow_empty": True}))
    assert datasets.configs(tmp_path / "out")["train"]["allow_empty"] is True


def test_label_values_are_those_of_all_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel

    root = datasets.write_decathlon(tmp_path / "data", cases=4)
    (root / "dataset.json").unlink()
    path = root / "labelsTr" / "case_01.nii.gz"
    label = nibabel.load(path)
    array = np.asarray(label.dataobj).copy()
    array[0, 0, 0] = 7
    nibabel.save(nibabel.Nifti1Image(array, label.affine), path)
    monkeypatch.setattr(fingerprint, "MAX_CASES", 2)  # the first and the last
    plan = plan_bundle(root, tmp_path / "out", Choices(), dry_run=True)
    assert plan["fingerprint"]["measured"] == 2
    assert plan["labels"] == {"label 1": [1], "label 2": [2], "label 7": [7]}


def test_a_start_may_set_anew_what_does_not_make_it_another_run(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_bundle(dataset, out, Choices(settings={"learning_rate": 0.01, "batch_size": 4}))
    settings = {
        "learning_rate": 0.001,
        "accumulation_steps": 2,
        "patience": None,
        "max_epochs": 9,
        "optimizer#weight_decay": 0.1,
    }
    now = Choices(settings=settings | {"batch_size": 4, "val_interval": plan["settings"]["val_interval"]["value"]})
    assert plan_bundle(dataset, out, now) == plan
    assert changed_settings(plan, now) == settings
    words = run.training_command(out, dataset, **changed_settings(plan, now))
    assert words[words.index("--accumulation_steps") + 1] == "2"
    assert words[words.index("--patience") + 1] == "$None"  # None itself is nothing to MONAI
    for name, value in {"batch_size": 2, "patch_size": [32, 32, 32], "optimizer#_target_": "torch.optim.SGD"}.items():
        with pytest.raises(OutputError, match=rf"output\.exists.*another {name}, now .*choose a new folder with -o"):
            plan_bundle(dataset, out, Choices(settings={name: value, "learning_rate": 0.1}))


def test_describe_weights_are_part_of_the_plan(dataset: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "other" / "models" / "model.pt"
    with pytest.raises(TrainingError, match=r"weights\.missing"):
        describe_weights(weights, out)
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    chosen = describe_weights(tmp_path / "other", out)
    plan = plan_bundle(dataset, out, Choices(folds=2, fine_tune=chosen))
    assert plan_bundle(dataset, out, Choices()) == plan
    assert chosen["file"] == "../other/models/model.pt"

    def begins_from(number: int) -> str | None:
        training = folds.fold_commands(out, dataset, number, 2, fine_tune=plan["choices"]["fine_tune"])[0]
        return training[training.index("--finetune") + 1] if "--finetune" in training else None

    assert [begins_from(0), begins_from(1)] == [str(weights), str(weights)]
    (out / "fold_0" / "checkpoints").mkdir(parents=True)
    (out / "fold_0" / "checkpoints" / "latest.pt").touch()
    weights.write_bytes(b"other weights")
    assert begins_from(0) is None  # it goes on from its checkpoint
    with pytest.raises(TrainingError, match=r"weights\.changed"):
        begins_from(1)
    with pytest.raises(OutputError, match=r"now other weights .*model\.pt.*; .*-o"):
        plan_bundle(dataset, out, Choices(fine_tune=describe_weights(weights, out)))
    fresh = plan | {"choices": {}}
    with pytest.raises(OutputError, match=r"planned with no initial weights, now those in .*model\.pt"):
        check_same(fresh, plan["dataset"], Choices(fine_tune=describe_weights(weights, out)), "out")
    weights.unlink()
    with pytest.raises(TrainingError, match=r"weights\.missing"):
        begins_from(1)
    (tmp_path / "moved.pt").write_bytes(b"weights")
    assert plan_bundle(dataset, out, Choices(fine_tune=describe_weights(tmp_path / "moved.pt", out))) == plan


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, "output.not_written"), (errno.ENOSPC, "output.disk_full")])
def test_a_disk_that_takes_nothing_is_said(
    number: int, code: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    def ship() -> None:
        with run.writing(tmp_path):
            run.ship(tmp_path, tmp_path / "weights.pt", {})

    def plan() -> None:
        plan_bundle(dataset, tmp_path / "out", Choices())

    (tmp_path / "configs").mkdir()
    (tmp_path / METADATA).write_text("{}")
    for owner, name, act in (
        (Path, "mkdir", plan),
        (Path, "touch", plan),
        (Path, "write_text", plan),
        (shutil, "copyfile", ship),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(OutputError) as caught:
                act()
        assert caught.value.code == code


@pytest.fixture(scope="module")
def planned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of options whose configs differ most from the shipped ones."""
    out = tmp_path_factory.mktemp("planned") / "balls"
    choices = Choices("DeepLabV3Plus", dims=2, options=("sgd_poly", "tta", "flips"), folds=2)
    plan_bundle(dataset, out, choices)
    return out


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("matplotlib.pyw", "import os\n", r"matplotlib\.pyw is not a module of this version"),
        ("segnets/unet.py", "import os\n", r"segnets/unet\.py is not a module of this version"),
        ("yaml.py", "import os\n", r"yaml\.py is not a module"),
        ("results/torch/__init__.py", "", r"results/torch/__init__\.py is not a module"),
        ("training/x.cpython-311-x86_64-linux-gnu.so", "", r"\.so is not a module"),
        ("configs/logging.conf", "[loggers]\n", r"logging\.conf differs"),
        ("configs/train.yaml", "run: $import socket\n", r"train\.yaml contains '\$import socket'"),
        ("configs/train.yaml", "network_def: {_target_: os.system, command: x}\n", r"contains '_target_ os\.system'"),
        ("configs/evaluate.yaml", "cases: ['%/tmp/other.yaml#x']\n", r"evaluate\.yaml contains '%/tmp/other"),
        ("configs/metadata.json", '{"channel_def": {"0": "$print(1)"}}', r"metadata\.json contains '\$print"),
    ],
)
def test_code_of_a_bundle_that_came_from_elsewhere_is_not_run(
    file: str, content: str, said: str, planned: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "balls"
    shutil.copytree(planned, out)
    (out / "segnets" / "__pycache__").mkdir(exist_ok=True)
    assert plan_bundle(dataset, out, Choices())
    assert not (out / "segnets" / "__pycache__").exists()  # compiled code need not be its module's
    (out / file).parent.mkdir(parents=True, exist_ok=True)
    (out / file).write_text(content)
    with pytest.raises(BundleError, match=rf"bundle\.untrusted: .*{said}.*--trust"):
        plan_bundle(dataset, out, Choices())
    assert plan_bundle(dataset, out, Choices(), trust=True)


def test_what_a_person_sets_needs_no_trust(dataset: Path, tmp_path: Path) -> None:
    code = Choices(settings={"network_def#dropout": "$0.1 + 0.1"})
    plan_bundle(dataset, tmp_path / "out", code)
    assert plan_bundle(dataset, tmp_path / "out", code)
    with pytest.raises(BundleError, match=r"bundle\.untrusted: .*\$0\.1 \+ 0\.1"):
        plan_bundle(dataset, tmp_path / "out", Choices())


def test_fine_tuning_begins_slowly(dataset: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    begun = describe_weights(weights, tmp_path / "out")
    for name, choices, rate in (
        ("recipe", Choices(fine_tune=begun), 0.0002),
        ("option", Choices(fine_tune=begun, options=("sgd_poly",)), 0.001),
        ("chosen", Choices(fine_tune=begun, settings={"learning_rate": 0.01}), 0.01),
        ("fresh", Choices(), 0.002),
    ):
        plan = plan_bundle(dataset, tmp_path / name, choices)
        assert datasets.configs(tmp_path / name)["train"]["learning_rate"] == pytest.approx(rate)
        assert ("learning_rate" in plan["settings"]) == bool(choices.fine_tune)


def test_a_bundle_says_what_it_was_trained_on_and_for_how_long(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices())
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")

    def description() -> str:
        return json.loads((out / METADATA).read_text())["description"]

    before = description()
    assert "trained on 5 of 6 cases" in before
    for steps, said in (((16, 4000), " Trained for 16 of 4000 planned steps."), ((4000, 4000), ""), (None, "")):
        for _ in range(2):
            run.ship(out, weights, {}, steps)
            assert description() == before + said
    (out / "training" / "history.jsonl").write_text(
        '{"epoch": 1, "step": 16, "mean_dice": 0.1, "planned_steps": 4000}\n{"epoch": 1, "step": 16, "loss": 1.0}\n'
    )
    assert read_summary(out / "training").steps == (16, 4000)
    plan_bundle(dataset, tmp_path / "folds", Choices(folds=2))
    assert "trained on 6 cases" in json.loads((tmp_path / "folds" / METADATA).read_text())["description"]


def test_a_missing_package_is_one_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices_module, "find_spec", lambda name: None)
    said = r"environment\.package: option mlflow needs mlflow, which is not installed: pip install mlflow$"
    with pytest.raises(EnvironmentFault, match=said):
        plan_bundle(dataset, tmp_path / "out", Choices(options=("mlflow",)))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(choices_module, "find_spec", lambda name: object())
    plan_bundle(dataset, tmp_path / "out", Choices(options=("mlflow",)))
    monkeypatch.setattr(choices_module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=said):
        plan_bundle(dataset, tmp_path / "out", Choices())


def test_a_plan_for_fine_tuning_says_where_the_classes_begin(tmp_path: Path) -> None:
    dataset = datasets.write_decathlon(tmp_path / "balls", cases=4)
    (dataset / "labels.json").write_text('{"1": "Posterior", "2": "tail"}')
    weights = {"fine_tune": describe_weights(shipped_root(), tmp_path / "out")}
    plan = plan_bundle(dataset, tmp_path / "out", Choices(**weights), dry_run=True)
    text = "Posterior from posterior hippocampus, tail from a part of background; dropped anterior hippocampus"
    assert plan["fine-tuning"] == text
    assert ("begin", text) in plan_rows(plan)
    given = {"classes_from": {"tail": ["anterior hippocampus"]}}
    plan = plan_bundle(dataset, tmp_path / "out", Choices(settings=given, **weights), dry_run=True)
    assert plan["fine-tuning"] == "Posterior from posterior hippocampus, tail from anterior hippocampus"
    for settings, other in (({"classes_from": {"tail": ["head"]}}, weights), (given, {})):
        with pytest.raises(TrainingError) as caught:
            plan_bundle(dataset, tmp_path / "out", Choices(settings=settings, **other), dry_run=True)
        assert caught.value.code == "weights.classes"
