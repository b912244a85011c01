"""Test the postprocessing that is chosen on the folds, and that MONAI and napari-seg apply it with the same result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from runs import write_lines
from scipy.ndimage import label as components

from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.cli.main import main
from napari_seg.formats.label_maps import read_label_map
from napari_seg.training.choices import Choices
from napari_seg.training.folds import cross_validate, fold_commands
from napari_seg.training.postprocessing import METRIC, measure_gains, with_kept
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.scores import CASES, SUMMARY, read_evaluation
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.trust import check_code

SMALL = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
SETTINGS = {"num_workers": 0, **{f"network_def#{name}": value for name, value in SMALL.items()}}


def write_fold(folder: Path, *cases: tuple[dict[str, float | None], dict[str, float | None]]) -> Path:
    """Write the evaluation of a fold: for each case its Dice, and that with the largest components alone."""
    (folder / CASES).parent.mkdir(parents=True)
    lines = [
        {"case": f"{folder.name}_{n}", "epoch": 1, "mean_dice": plain, METRIC: largest}
        for n, (plain, largest) in enumerate(cases)
    ]
    write_lines(folder / CASES, lines)
    summary = {}
    for metric in ("mean_dice", METRIC):
        names = {name: lines[0][metric][name] for name in lines[0][metric]}  # type: ignore[index]
        summary[metric] = {"mean": float(np.mean([value for value in names.values() if value is not None])), **names}
    (folder / SUMMARY).write_text(json.dumps(summary))
    return folder


def test_a_largest_component_is_kept_if_it_helps_and_makes_no_fold_worse(tmp_path: Path) -> None:
    folders = [
        write_fold(tmp_path / "fold_0", ({"a": 0.8, "b": 0.5, "c": 0.9}, {"a": 0.9, "b": 0.8, "c": 0.9})),
        write_fold(
            tmp_path / "fold_1",
            ({"a": 0.7, "b": 0.5, "c": None}, {"a": 0.7, "b": 0.4, "c": None}),
            ({"a": None, "b": 0.5, "c": 0.2}, {"a": None, "b": 0.5, "c": 0.2}),
        ),
    ]
    a, b = measure_gains(folders)  # nothing changes in c
    assert (a.structure, a.is_kept, a.gain) == ("a", True, pytest.approx(0.05))
    assert a.folds == (pytest.approx(0.1), 0)
    assert not b.is_kept
    assert a.describe() == "a: largest component alone kept: Dice +0.0500"
    assert b.describe() == "b: largest component alone not kept: Dice +0.0667, worse on 1 of 2 folds"
    assert with_kept(folders[0], [a, b]) == {"fold_0_0": {"a": 0.9, "b": 0.5, "c": 0.9}}


def test_folds_that_an_older_version_evaluated_have_no_gains(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2, settings=SETTINGS))
    scores = {"front": 0.5, "back": 0.5}
    for fold in range(2):
        write_fold(out / f"fold_{fold}", (scores, {"front": 0.6, "back": 0.5}))
        _write_weights(out, fold)
        (out / f"fold_{fold}" / SUMMARY).touch()
    old = out / "fold_1"
    (old / CASES).unlink()
    (old / SUMMARY).write_text(json.dumps({"mean_dice": {"mean": 0.5, **scores}}))
    dice = cross_validate(out, dataset, 2, None, report=lambda text: None)
    assert dice == {"mean": [0.5, 0.5], "front": [0.5, 0.5], "back": [0.5, 0.5]}
    assert read_evaluation(out) is None
    assert any("compare_largest" in word for word in fold_commands(out, dataset, 0, 2)[1])
    (out / "configs" / "compare_largest.yaml").unlink()
    assert not any("largest" in word for word in fold_commands(out, dataset, 0, 2)[1])


def _write_weights(out: Path, fold: int) -> None:
    """Write weights that find noise: many components of both classes."""
    import torch

    torch.manual_seed(fold)
    with with_segnets():
        from segnets import UNet

        state = UNet(3, 1, 3, **SMALL).state_dict()
    *_, weight = (name for name in state if name.endswith(".weight"))
    state[weight] *= 12
    torch.save(state, out / f"fold_{fold}" / "model.pt")


def run(out: Path, run_id: str, config: str, **values: Any) -> None:
    """Run a config of a bundle as `python -m monai.bundle run` does, but in this process."""
    from monai.bundle import ConfigWorkflow

    with with_segnets():
        values["checkpoint"] = out / WEIGHTS
        given = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        files = {"meta_file": str(out / METADATA), "logging_file": False, "run_id": run_id}
        workflow = ConfigWorkflow(str(out / "configs" / f"{config}.yaml"), **files, **given)
        workflow.initialize()
        workflow.run()


@pytest.mark.usefixtures("inline_cohorts")
def test_monai_and_napari_seg_keep_the_same_components(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2, settings=SETTINGS))
    for fold in range(2):
        (out / f"fold_{fold}").mkdir()
        _write_weights(out, fold)
        write_fold(out / f"fold_{fold}", ({"front": 0.5, "back": 0.5}, {"front": 0.6, "back": 0.4}))
    lines: list[str] = []
    for _ in range(2):  # again as after a kill: the step is there once
        dice = cross_validate(out, dataset, 2, None, report=lines.append)
        steps = datasets.configs(out)["inference"]["postprocessing"]["transforms"]
        step = {"_target_": "monai.transforms.KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
        assert [one for one in steps if isinstance(one, dict) and "KeepLargest" in one["_target_"]] == [step]
    assert dice == {"mean": [0.55, 0.55], "front": [0.6, 0.6], "back": [0.5, 0.5]}
    assert "front: largest component alone kept: Dice +0.1000" in lines
    assert "back: largest component alone not kept: Dice -0.1000, worse on 2 of 2 folds" in lines
    entry = read_evaluation(out)
    assert entry is not None
    assert [one["mean"] for one in entry["dice"]] == [0.6, 0.5, 0.55]
    assert [one["kept"] for one in entry["largest component"]] == [True, False]
    with with_segnets():
        check_code(out, Choices())  # the step is no foreign code

    assert (
        main(["predict", str(dataset / "imagesTr"), "--model", str(out), "--trust", "-o", str(tmp_path / "ours")]) == 0
    )
    run(out, "inference", "inference", dataset_dir=dataset, output_dir=tmp_path / "monai")
    for number in range(6):
        name = f"case_0{number}_seg.nii.gz"
        labels = np.asarray(read_label_map(tmp_path / "ours" / name).array)
        assert np.array_equal(labels, read_label_map(tmp_path / "monai" / name).array)
        assert components(labels == 1, np.ones((3, 3, 3)))[1] == 1
        assert components(labels == 2, np.ones((3, 3, 3)))[1] > 1
    run(out, "evaluating", "evaluate", dataset_dir=dataset, output_dir=tmp_path / "scores", part="all")
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())["mean_dice"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "ours"), str(dataset / "labelsTr"), "--json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    for name in ("front", "back"):
        assert scores[name] == pytest.approx(segments[name]["dice"]["mean"], abs=1e-5)
