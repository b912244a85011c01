"""Train on labels as people have them: ignored voxels, overlapping classes, cases without some classes."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import nibabel
import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import gaussian_filter

from napari_seg.bundles.read import read_bundle
from napari_seg.cli.main import main
from napari_seg.errors import BundleError, TrainingError
from napari_seg.formats.label_maps import read_label_map
from napari_seg.training.choices import Choices
from napari_seg.training.pace import read_configs
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.run import RUN, ship, weights_of
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.trust import check_code

BRIEF = {"num_workers": 0, "learning_rate": 0.02}
SMALL = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
SETTINGS = BRIEF | {f"network_def#{name}": value for name, value in SMALL.items()}
NESTED = {"background": 0, "both": [1, 2], "back": 2}

pytestmark = pytest.mark.usefixtures("inline_cohorts", "unrendered_figures")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return datasets.write_decathlon(tmp_path / "balls", cases=6)


def describe(root: Path, **changes: Any) -> dict[str, Any]:
    """Change the dataset.json of a data set and return it."""
    path = root / "dataset.json"
    description = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(description))
    return description


def edit_labels(root: Path, change: Any) -> None:
    """Replace each label map by what `change` returns for its number and its array."""
    for number, path in enumerate(sorted((root / "labelsTr").iterdir())):
        image = nibabel.load(path)
        array = change(number, np.array(image.dataobj))
        nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), image.affine), path)


def one_slice_in_five(number: int, array: np.ndarray) -> np.ndarray:
    array[:, :, [k for k in range(array.shape[2]) if (k + number) % 5]] = 255
    return array


def run(out: Path, run_id: str, config: str, **values: Any) -> None:
    """Run a config of a bundle as `python -m monai.bundle run` does, but in this process and on its weights."""
    from monai.bundle import ConfigWorkflow

    with with_segnets():
        workflow = ConfigWorkflow(
            str(out / "configs" / f"{config}.yaml"),
            meta_file=str(out / "configs" / "metadata.json"),
            logging_file=False,
            run_id=run_id,
            **({} if run_id == "training" else {"checkpoint": str(out / "models" / "model.pt")}),
            **{name: str(value) if isinstance(value, Path) else value for name, value in values.items()},
        )
        workflow.initialize()
        workflow.run()


def train(dataset: Path, out: Path, epochs: int = 8, **choices: Any) -> dict[str, Any]:
    """Plan a bundle, train it and return its plan."""
    settings = SETTINGS | {"max_epochs": epochs, "val_interval": epochs}
    plan = plan_bundle(dataset, out, Choices(settings=settings, **choices))
    run(out, "training", "train", dataset_dir=dataset, output_dir=out / RUN)
    weights = weights_of(out / RUN)
    assert weights is not None
    ship(out, weights, {})
    return plan


def predict(scans: Path, out: Path, results: Path) -> None:
    assert main(["predict", str(scans), "--model", str(out), "--trust", "-o", str(results)]) == 0


def labels(path: Path) -> np.ndarray:
    return np.asarray(read_label_map(path).array)


def dice(out: Path) -> dict[str, float | None]:
    """Return the Dice of each class in the last validation."""
    lines = [json.loads(line) for line in (out / "training" / "history.jsonl").read_text().splitlines()]
    return [line["dice"] for line in lines if "dice" in line][-1]


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_advice_about_unknown_values_works_as_it_is_written(name: str, dataset: Path, tmp_path: Path) -> None:
    def with_more(number: int, array: np.ndarray) -> np.ndarray:
        array[:2, :2, 0] = [7, 8]
        return array

    describe(dataset, labels={"background": 0, "front": 1, "back": 2})
    edit_labels(dataset, with_more)
    with pytest.raises(TrainingError, match=r"label\.values") as caught:
        plan_bundle(dataset, tmp_path / "out", Choices(), dry_run=True)
    (values,) = set(re.findall(rf"{name}=(\S+)", caught.value.message))
    plan = plan_bundle(dataset, tmp_path / "out", Choices(labels={name: [values]}), dry_run=True)
    assert plan["labels"] == {"front": [1], "back": [2], name: ["7-8"]}


def test_regions_of_the_data_set_are_kept_beside_another_background(dataset: Path, tmp_path: Path) -> None:
    describe(dataset, labels=NESTED, regions_class_order=[1, 2])
    for number, chosen in enumerate(({}, {"background": [7]})):
        plan = plan_bundle(dataset, tmp_path / f"out{number}", Choices(labels=chosen), dry_run=True)
        assert plan["regions"] == {"both": 1, "back": 2}


def test_a_class_that_becomes_background_leaves_the_others_their_names(dataset: Path, tmp_path: Path) -> None:
    describe(dataset, labels={"background": 0, "front": 1, "back": 2})
    plan = plan_bundle(dataset, tmp_path / "out", Choices(labels={"background": ["back"]}), dry_run=True)
    assert plan["labels"] == {"front": [1], "background": [2]}
    assert "notes" not in plan


def test_a_class_that_becomes_background_unnamed_is_noted(dataset: Path, tmp_path: Path) -> None:
    describe(dataset, labels={"background": 0, "front": 1, "back": 2})
    plan = plan_bundle(dataset, tmp_path / "out", Choices(labels={"front": ["1"]}), dry_run=True)
    (row,) = (row for row in plan["label table"] if row["value"] == 2)
    counts = f"({row['cases']} cases, {row['voxels']} voxels)"
    assert plan["notes"] == [f"--labels names no class for 2 back {counts}: background"]


def test_a_class_whose_values_no_case_contains_is_refused(dataset: Path, tmp_path: Path) -> None:
    for number, labels in enumerate(({"front": [7]}, {"front": [1], "back": [3]})):
        with pytest.raises(TrainingError, match=r"labels\.nowhere: .*, which no case contains; .* contain 1, 2$"):
            plan_bundle(dataset, tmp_path / f"out{number}", Choices(labels=labels), dry_run=True)


def test_one_slice_in_five_is_enough(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_labels(dataset, one_slice_in_five)
    with caplog.at_level(logging.INFO):
        plan = train(dataset, tmp_path / "out", labels={"front": [1], "back": [2], "ignore": [255]})
    assert "of the voxels are ignored (value 255): they are neither trained nor scored" in caplog.text
    assert plan["labels"] == {"front": [1], "back": [2], "ignore": [255]}
    assert plan["fingerprint"]["label values"] == [1, 2]
    assert (dice(tmp_path / "out")["front"] or 0) > 0.5


def test_overlapping_classes_are_trained_predicted_and_evaluated(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    describe(dataset, labels=NESTED, regions_class_order=[1, 2])
    out = tmp_path / "out"
    plan = train(dataset, out)
    assert plan["regions"] == {"both": 1, "back": 2}
    assert "regions" in plan["options"]
    assert set(dice(out)) == {"both", "back"}
    assert (dice(out)["both"] or 0) > 0.5
    bundle = read_bundle(out)
    assert bundle.output.decision == "thresholds"
    assert [(s.label, s.name) for s in bundle.segments] == [(1, "both"), (2, "back")]
    config = yaml.safe_load((out / "configs" / "inference.yaml").read_text())
    rule = "$lambda x: torch.where(x[[1]] > 0, 2, torch.where(x[[0]] > 0, 1, 0))"
    assert config["decision"]["transforms"][-1]["func"] == rule
    with with_segnets():
        check_code(out, Choices())  # this rule is no foreign code

    predict(dataset / "imagesTr", out, tmp_path / "results")
    run(out, "inference", "inference", dataset_dir=dataset, output_dir=tmp_path / "monai")
    for number in range(6):
        name = f"case_0{number}_seg.nii.gz"
        ours = labels(tmp_path / "results" / name)
        assert np.array_equal(ours, labels(tmp_path / "monai" / name))
        assert {*np.unique(ours)} <= {0, 1, 2}
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "results"), str(dataset / "labelsTr"), "--json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert set(segments) == {"both", "back", "mean"}
    run(out, "evaluating", "evaluate", dataset_dir=dataset, output_dir=tmp_path / "scores", part="all")
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())["mean_dice"]
    # a voxel of the inner region alone is in both by its label, and in the inner one by its channel
    assert scores["back"] == pytest.approx(segments["back"]["dice"]["mean"], abs=1e-5)
    assert scores["both"] == pytest.approx(segments["both"]["dice"]["mean"], abs=0.05)


def test_each_region_learns_with_the_plan_of_nnunet(dataset: Path, tmp_path: Path) -> None:
    describe(dataset, labels=NESTED, regions_class_order=[1, 2])
    small = {"patch_size": [16, 16, 16], "batch_size": 2, "num_workers": 0}
    plan_bundle(dataset, tmp_path / "out", Choices(plan="nnunet", settings=small))
    with with_segnets():
        parser = read_configs(tmp_path / "out", dataset)
        item = parser.get_parsed_content("train#dataset")[0]
        item = item[0] if isinstance(item, list) else item
        label = torch.ones_like(item["label"][None].as_tensor())
        label[..., :8] = 2
        logits = torch.zeros(1, 2, *label.shape[2:], requires_grad=True)
        parser.get_parsed_content("loss_function")([logits, logits, logits], label).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_other_code_than_the_rule_of_regions_is_foreign(dataset: Path, tmp_path: Path) -> None:
    describe(dataset, labels=NESTED)
    plan_bundle(dataset, tmp_path / "out", Choices())
    path = tmp_path / "out" / "configs" / "inference.yaml"
    config = path.read_text()
    assert "torch.where(x[[1]] > 0, 2, torch" in config
    path.write_text(config.replace("torch.where(x[[1]] > 0, 2, torch", "torch.where(x[[1]] > 0, exit(), torch"))
    with pytest.raises(BundleError, match=r"bundle\.untrusted"), with_segnets():
        check_code(tmp_path / "out", Choices())


def test_labels_of_regions_that_were_given_need_the_option(dataset: Path, tmp_path: Path) -> None:
    given = {"both": [1, 2], "back": [2]}
    with pytest.raises(TrainingError, match=r"labels\.overlap .*regions\.yaml"):
        plan_bundle(dataset, tmp_path / "out", Choices(labels=given))
    plan = plan_bundle(dataset, tmp_path / "out", Choices(labels=given, options=("regions",)), dry_run=True)
    assert plan["regions"] == {"both": 1, "back": 2}
    with pytest.raises(BundleError, match=r"network\.regions"):
        plan_bundle(dataset, tmp_path / "out", Choices(labels=given, options=("regions",), network="MultiView"))


def test_a_case_without_a_class_teaches_nothing_about_it(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each half of the cases has one of two classes."""
    edit_labels(dataset, lambda number, array: np.where(array == 1 + number % 2, array, 0))
    listing = describe(dataset)["training"]
    for number, entry in enumerate(listing):
        entry["labelled"] = [["front"], ["back"]][number % 2]
    describe(dataset, labels={"0": "background", "1": "front", "2": "back"}, training=listing)
    with caplog.at_level(logging.INFO):
        train(dataset, tmp_path / "out", epochs=1)
    assert "6 cases are annotated with some of the classes only" in caplog.text
    assert sum(value is None for value in dice(tmp_path / "out").values()) == 1  # one case validates one class


def soften(root: Path) -> None:
    """Replace each label map by the fractions of both balls, blurred."""
    for path in (root / "labelsTr").iterdir():
        image = nibabel.load(path)
        array = np.asarray(image.dataobj)
        balls = [gaussian_filter((array == value).astype(np.float32), 1.0) for value in (1, 2)]
        nibabel.save(nibabel.Nifti1Image(np.stack(balls, axis=-1), image.affine), path)
    describe(root, labels={"background": 0, "front": 1, "back": 2})


def test_fractions_are_augmented_trained_and_evaluated(dataset: Path, tmp_path: Path) -> None:
    soften(dataset)
    out = tmp_path / "out"
    plan = train(dataset, out, options=("soft", "crops_balanced"), labels={})
    assert list(plan["labels"]) == ["front", "back"]
    assert plan["options"]["regions"].startswith("the labels are fractions")
    assert plan["choices"]["options"] == ["soft", "crops_balanced"]
    with with_segnets():
        patches = read_configs(out, dataset).get_parsed_content("train#dataset")
        items = [item for number in range(4) for item in patches[number]]
    fractions = torch.stack([item["label"].as_tensor() for item in items])
    assert fractions.shape[1] == 2
    assert -1e-4 < float(fractions.min()) <= float(fractions.max()) < 1 + 1e-4
    assert ((fractions > 0.05) & (fractions < 0.95)).float().mean() > 0.02  # interpolated linearly
    assert (dice(out)["front"] or 0) > 0.5
    run(out, "evaluating", "evaluate", dataset_dir=dataset, output_dir=tmp_path / "scores", part="all")
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())
    # after 24 steps the background has probabilities that no mask shows
    assert 0.1 < scores["soft_dice"]["front"] < scores["mean_dice"]["front"]


def test_nested_fractions_and_a_loss_are_planned_in_any_order(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "labelsTr").iterdir():
        image = nibabel.load(path)
        front = np.asarray(image.dataobj) == 1
        inner = front & (np.cumsum(front, axis=0) % 2 == 1)
        nibabel.save(nibabel.Nifti1Image(np.stack([inner, front], axis=-1).astype(np.float32), image.affine), path)
    describe(dataset, labels={"background": 0, "core": 1, "whole": 2})
    for number, options in enumerate([("loss_dice", "soft"), ("soft", "regions", "loss_dice")]):
        out = tmp_path / f"out{number}"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Can't merge")
            plan = plan_bundle(dataset, out, Choices(options=options, settings=SETTINGS))
        assert list(plan["regions"].items()) == [("whole", 2), ("core", 1)]  # the core covers the whole
        train_config, evaluate = (
            yaml.safe_load((out / "configs" / f"{name}.yaml").read_text()) for name in ("train", "evaluate")
        )
        assert train_config["loss"]["_target_"] == "monai.losses.DiceLoss"
        assert train_config["label_mode"] == "bilinear"
        assert "soft_dice" in evaluate["additional_metrics"]


def test_fractions_of_several_data_sets_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"dataset\.combined: .*soft"):
        plan_bundle(dataset, tmp_path / "out", Choices(options=("soft",)), more=[tmp_path], dry_run=True)
