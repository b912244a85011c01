"""Test that choices which can't be followed are refused before anything is read or written."""

from __future__ import annotations

import ntpath
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import datasets
import pytest

from napari_seg.bundles.read import shipped_root
from napari_seg.cli.main import main
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.training import choices
from napari_seg.training.choices import (
    Choices,
    check_names,
    check_same,
    check_same_labels,
    check_soft,
    check_values,
    describe_weights,
    relative_path,
)

sys.path.insert(0, str(shipped_root()))

from segnets.data import Dataset


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_epochs", value) for value in (0, -3, 2.5, True, None, "ten")),
        *(("max_minutes", value) for value in (0, 0.0, -1.0, float("nan"), float("inf"), "long")),
        *(("learning_rate", value) for value in (0, -1, "fast", None)),
        *(("batch_size", value) for value in (0, 2.5, "x")),
        *(("accumulation_steps", 0), ("num_workers", -1), ("patience", 0), ("val_cases", 0), ("seed", -1)),
        *(("fold", -1), ("folds", 1), ("warmup_share", 1.5)),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BundleError, match=rf"bundle\.setting: found .* for {name}; expected (a|an) (number|integer) "):
        check_values({name: value})


def test_other_values_are_accepted() -> None:
    check_values({"max_minutes": 0.5, "max_epochs": 1, "learning_rate": 1e-3, "warmup_share": 0.0, "patience": None})
    check_values({"learning_rate": "$@other", "patch_size": [1, 2], "num_workers": 0, "fold": None, "seed": 3})


@pytest.mark.parametrize(
    "options", [("soft", "loss_focal"), ("loss_ce", "soft"), ("soft", "regions", "loss_weighted_ce")]
)
def test_losses_that_do_not_fit_fractions_are_refused_by_name(options: tuple[str, ...]) -> None:
    with pytest.raises(TrainingError, match=r"labels\.soft: found --option loss_(focal|ce|weighted_ce) "):
        check_soft(Choices(options=options))
    check_soft(Choices(options=("loss_tversky", "soft")))
    check_soft(Choices(options=options[:1]))


def test_fractions_are_declared_by_the_option_alone() -> None:
    with pytest.raises(BundleError, match=r"bundle\.setting: found --set soft; expected --option soft"):
        check_soft(Choices(settings={"soft": True}))


@pytest.mark.parametrize("name", ["$x", "@x", "%x", "a@#b", "_target_", "a\nb", "", " ", "a\ud800"])
def test_names_that_can_not_be_written_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"bundle\.name"):
        check_names([name])
    check_names(["a_target_", "_background_", "50 %"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--set", "patch_size=[1,"), "bundle.setting"),
        (("--set", "patch_size=*a"), "bundle.setting"),
        (("--set", "seed=1", "seed=2"), "bundle.setting"),
        (("--labels", "a=1", "A=2"), "bundle.setting"),
        (("--labels", "background=1,2"), "labels.no_class"),
        (("--images", "scans"), "bundle.setting"),
        (("--set", "patient=("), "dataset.patient"),
        (("--set", "patient=subject"), "dataset.patient"),
        (("--set", "annotated_slices=diagonal"), "labels.slices"),
        (("--set", "fold=9"), "split.fold"),
    ],
)
def test_wrong_options_have_a_code_and_write_nothing(
    words: tuple[str, ...], code: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = datasets.write_decathlon(tmp_path / "balls", cases=5)
    assert main(["train", str(dataset), "-o", str(tmp_path / "out"), *words]) in (1, 4)
    assert f"{code}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_label_values_with_other_names_are_another_training(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"labels": {"front": [1], "back": [2, 3], "ignore": [9]}, "choices": {}}
    same = Dataset("folders", (), labels={"front": (1,), "back": (2, 3)})
    check_same_labels(plan, same, "out")
    check_same_labels(plan, Dataset("folders", ()), "out")
    swapped = Dataset("folders", (), labels={"front": (2, 3), "back": (1,)})
    with pytest.raises(OutputError, match=r"output\.exists: .* other values of front, back"):
        check_same_labels(plan, swapped, "out")
    check_same_labels(plan | {"choices": {"labels": {"front": [1]}}}, swapped, "out")


def test_what_the_plan_chose_may_be_repeated_and_not_changed() -> None:
    network = {"class": "UNet", "size": "S"}
    plan: dict[str, Any] = {"dataset": {"cases": 3}, "choices": {}, "settings": {}, "options": {}, "network": network}
    check_same(plan, {"cases": 3}, Choices(network="UNet", dims=3, size="S"), "out")
    windows = {"windows#device": "cpu", "windows#sw_batch_size": 1, "windows#roi_size": [8, 8, 8]}
    check_same(plan, {"cases": 3}, Choices(settings=windows), "out")  # as the advice after an exhausted memory
    with pytest.raises(OutputError, match="was planned with size S, now M; no folds, now 5; leave"):
        check_same(plan, {"cases": 3}, Choices(size="M", folds=5), "out")
    with pytest.raises(OutputError, match="was planned with dims 2, now 3;"):
        check_same(plan | {"options": {"slices_2d": ""}}, {"cases": 3}, Choices(dims=3), "out")


def test_a_path_on_another_drive_stays_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "relpath", ntpath.relpath)
    out = PureWindowsPath("C:\\out\\model")
    assert relative_path(PureWindowsPath("C:\\out\\first\\model.pt"), out) == "..\\first\\model.pt"
    assert relative_path(PureWindowsPath("D:\\model.pt"), out) == "D:\\model.pt"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_weights_are_found_from_a_folder_behind_a_link(tmp_path: Path) -> None:
    weights = tmp_path / "disk" / "user" / "base" / "model.pt"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    (tmp_path / "home").symlink_to(tmp_path / "disk" / "user")  # as /tmp of macOS, and homes on another disk
    out = tmp_path / "home" / "out"
    described = describe_weights(tmp_path / "home" / "base" / "model.pt", out)
    assert (out / described["file"]).resolve() == weights.resolve()
