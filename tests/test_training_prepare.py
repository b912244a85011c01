"""A bundle is planned on cases that are converted first: once, and whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import nibabel
import numpy as np
import pytest
import SimpleITK
from filelock import FileLock

from napari_seg.cli.main import main
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.formats.itk import to_itk
from napari_seg.geometry import Grid
from napari_seg.training.choices import Choices
from napari_seg.training.prepare import data_folder, plan_bundle


@pytest.fixture(scope="module")
def nrrd_balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases in folders with an NRRD file and a label map each."""
    balls = datasets.write_decathlon(tmp_path_factory.mktemp("balls") / "nifti", cases=6)
    root = tmp_path_factory.mktemp("data") / "nrrd"
    for path in sorted((balls / "imagesTr").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        (root / name).mkdir(parents=True)
        for folder, word in (("imagesTr", "scan"), ("labelsTr", "seg")):
            array = np.asarray(nibabel.load(balls / folder / path.name).dataobj)
            SimpleITK.WriteImage(to_itk(array, Grid(array.shape, np.eye(4))), str(root / name / f"{word}.nrrd"))
    return root


def test_models_that_were_trained_inside_the_folder_are_no_data(nrrd_balls: Path, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    shutil.copytree(nrrd_balls, root)
    plan_bundle(root, root / "model1", Choices())
    for out, is_dry in ((root / "model2", False), (tmp_path / "elsewhere", True)):
        assert plan_bundle(root, out, Choices(), dry_run=is_dry)["dataset"]["cases"] == 6


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    nrrd_balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (nrrd_balls / "case_00" / "letter.docx").touch()
    assert main(["train", str(nrrd_balls), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "converting 6 of 6 cases" in output
    assert "value   1 label 1: in 6 of 6 cases" in output
    assert "left    1 .docx: skip.not_an_image" in output
    assert f"--dataset_dir {tmp_path / 'out' / 'data'}" in output
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_converted_cases_is_planned_once(nrrd_balls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    choices = Choices(settings={"channels": ["scan"]})
    plan = plan_bundle(nrrd_balls, out, choices, report=lines.append)
    assert data_folder(nrrd_balls, out, plan) == out / "data"
    assert plan["dataset"]["cases"] == 6
    assert [row["value"] for row in plan["label table"]] == [1, 2]
    config = (out / "configs" / "train.yaml").read_text()
    assert "channels: null" in config  # the converted files need no such setting
    assert plan_bundle(nrrd_balls, out, choices, report=lines.append) == plan
    assert [line for line in lines if line.startswith("converting 6")] == ["converting 6 of 6 cases"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    (nrrd_balls / "case_05").rename(tmp_path / "case_05")
    os.utime(nrrd_balls / "case_00" / "scan.nrrd", (1, 1))
    with pytest.raises(OutputError, match="a data set of 6 cases, now another of 5"):
        plan_bundle(nrrd_balls, out, choices)
    (tmp_path / "case_05").rename(nrrd_balls / "case_05")
    for is_dry in (True, False):
        assert plan_bundle(nrrd_balls, out, choices, dry_run=is_dry, report=lines.append) == plan
    assert lines[-1].startswith("1 of 6 cases have changed or moved since they were converted")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    missing = out / "data" / "labelsTr" / "case_03.nii.gz"
    missing.unlink()
    plan_bundle(nrrd_balls, out, choices, dry_run=True)
    assert not missing.exists()
    plan_bundle(nrrd_balls, out, choices)
    assert missing.read_bytes() == before[missing][0]
    with pytest.raises(OutputError, match="other files, names, patients or parts of its cases, or another order;"):
        plan_bundle(nrrd_balls, out, Choices(settings={"channels": ["scan"], "patient": "case_0"}))
    del plan["dataset"]["rows"]  # as earlier versions have it
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(OutputError, match=r"run\.outdated: .* train again in a new folder"):
        plan_bundle(nrrd_balls, out, choices)


def test_a_received_bundle_is_checked_before_anything_is_converted(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan_bundle(nrrd_balls, out, Choices())
    (out / "segnets" / "losses.py").write_text("print(1)")
    case = out / "data" / "imagesTr" / "case_00_scan.nii.gz"
    case.unlink()
    with pytest.raises(BundleError) as caught:
        plan_bundle(nrrd_balls, out, Choices())
    assert caught.value.code == "bundle.untrusted"
    assert not case.exists()


def test_no_file_is_locked_through_a_link(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json.unfinished").touch()
    (tmp_path / "thesis.docx").write_text("all of it")
    try:
        (out / "plan.json.lock").symlink_to(tmp_path / "thesis.docx")
    except OSError:
        pytest.skip("this system allows no links")
    with pytest.raises(OutputError, match="did not write"):
        plan_bundle(nrrd_balls, out, Choices())
    assert (tmp_path / "thesis.docx").read_text() == "all of it"


def test_only_one_process_plans_in_a_folder(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json.unfinished").touch()
    (out / "configs").mkdir()
    with FileLock(out / "plan.json.lock"):
        with pytest.raises(TrainingError) as caught:
            plan_bundle(nrrd_balls, out, Choices())
        assert caught.value.code == "run.in_use"
        assert (out / "configs").is_dir()
        assert not (out / "data").exists()
    with pytest.raises(BundleError):
        plan_bundle(nrrd_balls, out, Choices(network="Unet"))
    assert sorted(path.name for path in out.iterdir()) == ["data", "plan.json.unfinished"]


def test_converted_cases_stay_after_a_failure(nrrd_balls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    with pytest.raises(BundleError):
        plan_bundle(nrrd_balls, out, Choices(network="Unet"), report=lines.append)
    assert sorted(path.name for path in out.iterdir()) == ["data", "plan.json.unfinished"]
    plan_bundle(nrrd_balls, out, Choices(), report=lines.append)
    assert [line for line in lines if line.startswith("converting 6")] == ["converting 6 of 6 cases"]
    assert (out / "plan.json").is_file()
