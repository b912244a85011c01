"""Test trainings with a teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from test_training_prepare_labels import SETTINGS, dice, edit_labels, train
from test_training_prepare_labels import run as run_config

from napari_seg.bundles.nnunet.as_bundle import TRANSFORM
from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.cli.main import main
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.training.choices import Choices
from napari_seg.training.describe import plan_rows
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.run import RUN
from napari_seg.training.scores import explain, read_evaluation, write_scores
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.teacher import TEACHER, _kept_out, with_teacher
from napari_seg.training.trust import check_code

pytestmark = pytest.mark.usefixtures("inline_cohorts", "unrendered_figures")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write_decathlon(tmp_path_factory.mktemp("data"), cases=6)


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teachers") / "big"
    train(data, out, epochs=24)
    return out


def student(data: Path, teacher: Path, out: Path, **choices: Any) -> dict[str, Any]:
    settings = SETTINGS | {"max_epochs": 24, "val_interval": 24} | choices.pop("settings", {})
    return plan_bundle(data, out, with_teacher(Choices(settings=settings, **choices), teacher, out))


def test_a_network_learns_the_results_of_its_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    assert min(dice(teacher).values()) > 0.6
    others = datasets.write_decathlon(tmp_path / "others", cases=7)
    edit_labels(others, lambda number, array: np.array([0, 2, 1], np.uint8)[array])
    out = tmp_path / "small"
    plan = student(others, teacher, out, settings={"teacher_share": 1})
    (teacher / "models" / "model.pt").rename(teacher / "models" / "moved.pt")  # the training has a copy
    try:
        run_config(out, "training", "train", dataset_dir=others, output_dir=out / RUN, bundle_root=out)
    finally:
        (teacher / "models" / "moved.pt").rename(teacher / "models" / "model.pt")
    assert max(dice(out).values()) < 0.3  # by the labels, which are exchanged
    assert plan["teacher"] == {"name": "big", "saw held-out cases": True}
    text = dict(plan_rows(plan))["teacher"]
    assert text.startswith("big: the network learns its probabilities besides the labels; it has, or may have, seen")


def test_it_keeps_the_preprocessing_and_names_the_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    config = teacher / "configs" / "inference.yaml"
    content = config.read_text()
    config.write_text(content.replace("spacing_mm: [1.0, 1.0, 1.0]", "spacing_mm: [2.0, 2.0, 2.0]"))
    try:
        plan = student(data, teacher, tmp_path / "small")
    finally:
        config.write_text(content)
    assert plan["settings"]["spacing_mm"] == {"value": [2.0, 2.0, 2.0], "why": "that of the teacher"}
    assert plan["teacher"]["saw held-out cases"] is False  # the same parts of the same data set
    small = yaml.safe_load((tmp_path / "small" / "configs" / "inference.yaml").read_text())
    assert small["preprocessing"] == yaml.safe_load(content)["preprocessing"]
    assert (tmp_path / "small" / TEACHER).read_bytes() == (teacher / WEIGHTS).read_bytes()
    description = json.loads((tmp_path / "small" / METADATA).read_text())["description"]
    assert description.endswith("It has also learned the results of the model big.")
    assert "results of the model big" in (tmp_path / "small" / "docs" / "data_license.txt").read_text()
    again = plan_bundle(data, tmp_path / "small", Choices())
    assert again["choices"]["teacher"]["name"] == "big"
    assert main(["train", str(data), "-o", str(tmp_path / "small"), "--teacher", str(teacher), "--dry-run"]) == 0


def test_a_teacher_has_seen_what_its_folds_trained_but_no_stated_test_part(
    data: Path, tmp_path: Path, teacher: Path
) -> None:
    def seen(planned: dict[str, Any], **others: Any) -> bool:
        plan = json.loads((teacher / "plan.json").read_text())
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(plan | others))
        return not _kept_out(folder, plan | planned)

    tested, chosen = {"training": 4, "validation": 1, "test": 1}, {"training": 5, "validation": 1, "test": 0}
    every = {"training": 6, "validation": 0, "test": 0}
    assert not seen({"parts": chosen}, parts=chosen)
    assert seen({"parts": chosen}, parts=chosen, choices={"folds": 2})
    assert seen({"parts": chosen}, parts=chosen, choices={"teacher": {"name": "x"}})
    assert seen({"parts": chosen}, parts=chosen, dataset={})
    assert seen({"parts": chosen, "choices": {"folds": 2}}, parts=chosen)
    assert seen({"parts": tested}, parts=chosen, choices={"folds": 2})
    assert not seen({"parts": tested}, parts=tested, choices={"folds": 2})
    assert seen({"parts": chosen}, parts=every, choices={"settings": {"fold": "all"}})
    assert not seen({"parts": every}, parts=chosen, choices={"folds": 2})  # no case measures it


def test_scores_say_that_the_teacher_has_seen_the_cases(data: Path, teacher: Path, tmp_path: Path) -> None:
    student(data, teacher, tmp_path / "small", folds=2)
    write_scores(tmp_path / "small", "test", {"a": {"front": 0.9}}, {})
    assert "the teacher may have seen these cases before" in explain(read_evaluation(tmp_path / "small") or {})


def test_a_teacher_that_does_not_fit_is_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    refused = "found --set spacing_mm with --teacher, whose preprocessing"
    with pytest.raises(BundleError, match=refused):
        with_teacher(Choices(settings={"spacing_mm": [3, 3, 3]}), teacher, out)
    with pytest.raises(BundleError, match="found --dims 2 with --teacher"):
        with_teacher(Choices(dims=2), teacher, out)
    with pytest.raises(OutputError, match=r"output\.exists.*lies in the output folder"):
        with_teacher(Choices(), teacher, teacher.parent)
    with pytest.raises(TrainingError, match=r"weights\.missing"):
        with_teacher(Choices(), tmp_path / "nothing", out)
    with pytest.raises(BundleError, match=r"bundle\.teacher.*has the classes background, label 1, label 2; expected "):
        student(data, teacher, out, labels={"left": [1], "right": [2]})
    pictures = datasets.write_voc(tmp_path / "pictures")
    with pytest.raises(BundleError, match=r"bundle\.teacher.*takes volumes; expected 2D images, which the data set"):
        student(pictures, teacher, out, labels={"label 1": [1], "label 2": [5]})
    with pytest.raises(BundleError, match="found 5 for teacher_share; expected a number of 0 to 1"):
        student(data, teacher, out, settings={"teacher_share": 5})
    channels = datasets.write_decathlon(tmp_path / "channels", cases=4, channels=2)
    with pytest.raises(BundleError, match=r"bundle\.teacher.*has the channels .*; expected those of the data set in"):
        student(channels, teacher, out)
    assert not out.exists()
    student(data, teacher, out)
    torch.save({}, tmp_path / "other.pt")
    changed = Choices(teacher={"file": "other.pt", "sha256": "0", "name": "other"})
    with pytest.raises(OutputError, match=r"planned with another teacher, now 'other\.pt'"):
        plan_bundle(data, out, changed)


def test_a_linked_teacher_with_an_odd_title(data: Path, teacher: Path, tmp_path: Path) -> None:
    """As in the cache of Hugging Face, whose files are links."""
    linked = tmp_path / "linked"
    shutil.copytree(teacher, linked, ignore=shutil.ignore_patterns("training"))
    shutil.copyfile(teacher / WEIGHTS, tmp_path / "blob")
    (linked / WEIGHTS).unlink()
    (linked / WEIGHTS).symlink_to(tmp_path / "blob")
    metadata = json.loads((linked / METADATA).read_text())
    (linked / METADATA).write_text(json.dumps(metadata | {"name": "big @# model"}))
    out = tmp_path / "small"
    assert student(data, linked, out)["teacher"]["name"] == "big  model"
    with with_segnets():
        check_code(out, Choices())


def test_a_teacher_with_the_preprocessing_of_nnunet_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other, ignore=shutil.ignore_patterns("training"))
    config = other / "configs" / "inference.yaml"
    content = yaml.safe_load(config.read_text())
    content["preprocessing"]["transforms"][1] = {"_target_": TRANSFORM, "keys": "image"}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(BundleError, match=r"bundle\.teacher.*did not begin from a model of nnU-Net"):
        with_teacher(Choices(), other, tmp_path / "small")


def test_foreign_code_in_the_config_of_a_teacher_does_not_run(data: Path, teacher: Path, tmp_path: Path) -> None:
    config = teacher / "configs" / "inference.yaml"
    content = config.read_text()
    for old, new, code in (
        ("_target_: segnets.UNet", "_target_: os.system", "bundle.teacher"),
        ("in_channels: 1", "in_channels: $print(1)", "bundle.untrusted"),
    ):
        config.write_text(content.replace(old, new))
        try:
            with pytest.raises(BundleError, match=code):
                with_teacher(Choices(), teacher, tmp_path / "small")
        finally:
            config.write_text(content)
