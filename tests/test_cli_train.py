"""`napari-seg train` as a user meets it: a data set in, a bundle out; faults, stops, second starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from preloaded import run_python

from napari_seg.bundles.read import read_bundle
from napari_seg.cli.main import main
from napari_seg.cli.set_option import _value
from napari_seg.cli.train_output import predicting, print_steps
from napari_seg.formats.channels import read_channels
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.nifti import write_volume
from napari_seg.formats.read import read
from napari_seg.inference.segment import segment
from napari_seg.training import rate, time_plan
from napari_seg.training import run as training_run
from napari_seg.training.choices import Choices
from napari_seg.training.pace import Pace
from napari_seg.training.prepare import plan_bundle

BRIEF = ["max_epochs=3", "val_interval=3", "num_workers=0", "learning_rate=0.01"]
SMALL = [f"network_def#{arguments}" for arguments in ("channels=[4,8]", "strides=[1,2]", "encoder_convs=1")]
PACE = Pace("cpu", step=0.5, case=0.1, validation=1.0, training_cases=3, validation_cases=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write_decathlon(tmp_path_factory.mktemp("data") / "balls", cases=6)


def run_preloaded(command: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
    status, printed = run_python(command[1:], stop_file.parent)
    assert status == 0, printed[-3000:]


def train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def test_dry_run_says_what_and_why_and_how(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(dataset, "-o", tmp_path / "out", "--folds", 2, "--max-minutes", 5, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "patch_size [32, 40, 32]: contains 95 % of the images whole" in output
    assert output.count("monai.bundle run training") == output.count("monai.bundle run evaluating") == 1
    assert "--fold 0 --folds 2" in output
    assert output.endswith("... and 2 more; --fold I prints those of a fold\n")
    assert "--max_minutes 5.0" in output
    assert "network UNet: channels [32, 64, 128, 256], strides 2" in output
    assert re.search(r"size    S  +5\.1 million parameters, .* a step  <- planned\nsize    M ", output)
    assert re.search(r"memory  about [\d.]+ [MG]iB of [\d.]+ [MG]iB that may be used \(", output)
    assert re.search(r"time    a step takes .*, a validation .*\n +.* steps .* in all for each of 2 folds", output)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_suggests_a_learning_rate_and_leaves_only_the_curve(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan, "measure_pace", lambda *_: PACE)
    monkeypatch.setattr(rate, "STEPS", 4)
    words = [dataset, "-o", tmp_path / "out", "--set", *SMALL, "num_workers=0"]
    assert train(*words, "--dry-run", "--find-rate", tmp_path / "rate.png") == 0
    assert re.search(
        r"rate +learning_rate 0\.002 is planned; no other one .* 4 steps: keep it", capsys.readouterr().out
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rate.png"]
    settings = dict.fromkeys(["num_workers"], 0) | {
        word.split("=")[0]: json.loads(word.split("=")[1]) for word in SMALL
    }
    plan_bundle(dataset, tmp_path / "out", Choices(settings=settings))
    before = sorted((tmp_path / "out").rglob("*"))
    assert train(*words, "learning_rate=0.001", "--dry-run", "--find-rate", tmp_path / "again.png") == 0
    assert "learning_rate 0.001 is planned; no other one" in capsys.readouterr().out
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert train(*words, "--dry-run", "--find-rate", tmp_path / "rate.png") == 1
    assert "output.exists" in capsys.readouterr().err
    assert train(*words, "--find-rate", tmp_path / "rate.png") == 1
    assert "found --find-rate without --dry-run" in capsys.readouterr().err


def test_all_cases_train_and_none_is_measured(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "run", run_preloaded)
    words = [dataset, "-o", tmp_path / "out", "--set", *BRIEF, *SMALL]
    assert train(*words, "--fold", "all") == 0
    output = capsys.readouterr().out
    assert "split   all 6 train; none chooses the weights or is left for a test: the last weights are taken" in output
    assert "plan    val_interval" not in output
    assert re.search(r"time    a step takes [\d.]+ s \(cpu.*\n +\d+ steps \d+ s, preparing", output)
    assert "no validation; the last weights are the bundle's" in output
    weights = (tmp_path / "out" / "models" / "model.pt").read_bytes()
    assert weights == (tmp_path / "out" / "training" / "model_final.pt").read_bytes()
    metadata = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {}
    assert "trained on 6 of 6 cases" in metadata["description"]
    for more in (["--folds", 2], ["--folds", 2, "--compare"]):
        assert train(dataset, "-o", tmp_path / "other", "--fold", "all", *more) == 1
        assert "bundle.fold: found --fold all with --folds or --compare" in capsys.readouterr().err


def test_configurations_are_planned_together(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan, "measure_pace", lambda *_: PACE)
    words = [dataset, "-o", tmp_path / "out", "--folds", 2, "--set", *SMALL, "--compare"]
    assert train(*words, "--dry-run", "--max-minutes", 3) == 0
    output = capsys.readouterr().out
    assert output.index("configuration 2d\n") < output.index("configuration 3d\n")
    assert re.search(r"left    3d_lowres: a patch of 3d shows \d+% of a typical image", output)
    assert "pairs   2d+3d: compared with the single ones on the validation cases of the folds, about " in output
    assert re.search(r"total   about \d+ min \d+ s for all folds of 2 configurations", output)
    commands = output.partition("would run\n")[2].splitlines()
    fold = tmp_path / "out" / "training" / "2d" / "fold_0"
    for line, folder in zip(commands, (fold, fold / "evaluation"), strict=False):
        assert f"--output_dir {folder} " in line
    assert commands[2:] == ["  ... and 6 more; --fold I prints those of a fold"]
    assert not (tmp_path / "out").exists()
    assert train(dataset, "-o", tmp_path / "out", "--compare", "2d", "3d") == 1
    assert "bundle.compare: found --compare without --folds; add the number of folds" in capsys.readouterr().err


def test_wrong_usage_says_what_is_right(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(dataset, "-o", tmp_path / "out", "--network", "Unet") == 1
    assert "found network 'Unet'; did you mean UNet?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(dataset, "-o", tmp_path / "out", "--set", "learning_rate")
    assert "found 'learning_rate'; expected NAME=VALUE" in capsys.readouterr().err
    assert train(dataset, "-o", tmp_path / "out", "--folds", -2) == 1
    assert "bundle.folds: found -2 folds" in capsys.readouterr().err
    assert train(dataset, "-o", tmp_path / "out", "--track", "clearml") == 1
    assert "found --track clearml; expected one of tensorboard, mlflow, wandb, aim" in capsys.readouterr().err
    assert train(tmp_path / "nothing", "-o", tmp_path / "out") == 2
    assert "dataset.missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("5e-4", 0.0005), ("010", 10), ("-2", -2), ("null", None), ("[4, 8]", [4, 8]), ("1-9", "1-9")],
)
def test_values_are_what_a_person_means(text: str, value: object) -> None:
    assert (_value(text), type(_value(text))) == (value, type(value))


def test_where_the_files_lie_and_what_can_be_tried(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan, "measure_pace", lambda *_: PACE)
    root = tmp_path / "data"
    for given, name in (("imagesTr", "scans"), ("labelsTr", "truth")):
        shutil.copytree(dataset / given, tmp_path / "data" / name)
    words = [root, "-o", tmp_path / "out", "--dry-run", "--images", "scans", "--layout", "folders"]
    assert train(*words, "--labels-dir", root / "truth") == 0
    assert "labels_dir=truth" in capsys.readouterr().out
    assert predicting({"fingerprint": {"modality": "MR"}}, tmp_path)[1] == "predict"
    two = predicting({"fingerprint": {"modality": "MR", "channels": ["T1", "FLAIR"]}}, tmp_path)
    assert two[:6] == ["napari-seg", "predict", "--channel", "T1=FILE", "--channel", "FLAIR=FILE"]
    image = predicting({"fingerprint": {"modality": "image2d", "channels": ["a", "b", "c"]}}, tmp_path)
    assert image[:3] == ["napari-seg", "predict", "SCAN"]


def test_steps_that_were_not_reached_are_told(capsys: pytest.CaptureFixture) -> None:
    for steps in (None, (4000, 4000)):
        assert print_steps(steps)
    assert capsys.readouterr().out == ""
    assert print_steps((3000, 4000))
    assert capsys.readouterr().out == "steps   3000 of 4000 planned (75.0%)\n"
    assert not print_steps((16, 4000))  # and no command that segments is proposed
    assert "16 of 4000 planned (0.4%)\n        too few for a useful network" in capsys.readouterr().out
    assert print_steps((16, 4000), tuned_dice=0.7)
    assert capsys.readouterr().out == "steps   16 of 4000 planned (0.4%)\n"
    assert not print_steps((16, 4000), tuned_dice=0.01)


def test_all_faults_are_told_before_anything_is_made(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    import nibabel

    broken = datasets.write_decathlon(tmp_path / "broken", cases=8)
    paths = [broken / folder / "case_0{}.nii.gz" for folder in ("imagesTr", "labelsTr")]
    images, labels = ([Path(str(path).format(n)) for n in range(8)] for path in paths)

    def edit(path: Path, change: object, affine: np.ndarray | None = None) -> None:
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).copy()
        change(array)  # type: ignore[operator]
        nibabel.save(nibabel.Nifti1Image(array, image.affine if affine is None else affine), path)

    labels[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-300])
    edit(labels[2], lambda array: None, np.diag([2.0, 1, 1, 1]))
    edit(labels[3], lambda array: array.__setitem__((0, 0, 0), 9))
    edit(images[4], lambda array: array.__setitem__((1, 2, 3), np.nan))
    edit(labels[5], lambda array: array.fill(0))
    assert train(broken, "-o", tmp_path / "out", "--labels", "front=1", "back=2") == 4
    report = capsys.readouterr().err
    assert report.count("napari-seg: data.faults: 6 faults") == 1
    for n in range(6):
        assert sum(f"  case_0{n}  " in line for line in report.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("inline_cohorts")
def test_train_then_predict_then_extend(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "balls"
    assert train(dataset, "-o", out, "--labels", "front=1", "back=2", "--set", *BRIEF, *SMALL) == 0
    output = capfd.readouterr().out
    assert "best    Dice" in output
    assert f"--model {out}" in output
    assert f"report  {out / 'training' / 'report.html'}" in output
    report = (out / "training" / "report.html").read_text(encoding="utf-8")
    assert ">front<" in report
    assert "9 of 9 planned steps" in report
    history = [json.loads(line) for line in (out / "training" / "history.jsonl").read_text().splitlines()]
    best = max(entry["mean_dice"] for entry in history if "mean_dice" in entry)
    # six cases have no test part; the validation part is evaluated, here on the grid that the network validated on
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    evaluated = metadata["eval_metrics"]["mean Dice of the validation part"]
    assert evaluated == pytest.approx(best, abs=0.01)
    assert metadata["eval_metrics"] == {
        "validation mean Dice": round(best, 4),
        "mean Dice of the validation part": evaluated,
    }
    entry = metadata["napari_seg"]["evaluation"]
    summary = json.loads((out / "training" / "evaluation" / "summary.json").read_text())
    assert (entry["part"], entry["cases"]) == ("validation", summary["cases"])
    assert {one["structure"]: one["mean"] for one in entry["dice"]} == {
        **{name: round(summary["mean_dice"][name], 4) for name in ("front", "back")},
        "mean of the structures": round(summary["mean_dice"]["mean"], 4),
    }
    assert "validation: Dice on the grids of the images" in output
    assert "there is no test part" in output
    assert "<h2>Scores of the bundle</h2>" in report

    scan = dataset / "imagesTr" / "case_00.nii.gz"
    assert main(["predict", str(scan), "--bundle", str(out), "-o", str(tmp_path / "results")]) == 0
    labels = read(tmp_path / "results" / "case_00_seg.nii.gz")
    assert labels.grid.matches(read(scan).grid)
    assert set(np.unique(labels.array)) <= {0, 1, 2}
    record = json.loads((tmp_path / "results" / "case_00_seg.json").read_text())
    assert [s["name"] for s in record["segments"]] == ["front", "back"]

    anew = ["accumulation_steps=2", "learning_rate=0.001", "patience=null", "optimizer#weight_decay=0.1"]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "run", run_preloaded)  # the way of the first training, from other processes
        assert train(dataset, "-o", out, "--max-epochs", 4, "--set", *anew) == 0
    history = [json.loads(line) for line in (out / "training" / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history if "loss" in entry] == [1, 2, 3, 4]

    (out / "stop").touch()
    assert train(dataset, "-o", out, "--max-epochs", 5) == 130
    assert "run.stopped" in capfd.readouterr().err
    assert not (out / "stop").exists()


@pytest.mark.slow
def test_a_model_of_four_channels_predicts_its_own_images_in_every_layout(tmp_path: Path) -> None:
    brats = ("FLAIR", "T1w", "T1gd", "T2w")
    dataset, out = datasets.write_nnunet(tmp_path / "Dataset001_Tumour", brats), tmp_path / "tumour"
    assert train(dataset, "-o", out, "--set", *BRIEF, *SMALL) == 0
    bundle = read_bundle(out)
    assert bundle.channel_names == brats
    images = [dataset / "imagesTr" / f"case_00_{n:04d}.nii.gz" for n in range(4)]
    for folder, names in {
        "bids/sub-01/anat": [f"sub-01_{name}" for name in ("FLAIR", "T1w", "ce-gd_T1w", "T2w")],
        "brats/case-01": [f"case-01-{name}" for name in ("t2f", "t1n", "t1c", "t2w")],
        "nnunet": [f"case-01_{n:04d}" for n in range(4)],
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for image, name in zip(images, names, strict=True):
            shutil.copy(image, tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "4d").mkdir()
    volume = read_channels(dict(zip(brats, images, strict=True)))
    write_volume(volume, tmp_path / "4d" / "case-01.nii.gz")
    given = [word for name, image in zip(brats, images, strict=True) for word in ("--channel", f"{name}={image}")]
    expected = segment(volume, read_bundle(out, trust=True)).array
    for how in (["bids"], ["brats"], ["nnunet"], ["4d"], given):
        inputs = [str(tmp_path / how[0])] if len(how) == 1 else how
        results = tmp_path / "results" / how[0]
        assert main(["predict", *inputs, "--bundle", str(out), "--trust", "-o", str(results)]) == 0
        (labels,) = results.glob("*_seg.nii.gz")
        name = "case_00" if how is given else "sub-01" if how == ["bids"] else "case-01"
        assert labels.name == f"{name}_seg.nii.gz"
        np.testing.assert_array_equal(read(labels).array[0], expected)
    assert (
        main(["predict", str(dataset / "imagesTr"), "--bundle", str(out), "--trust", "-o", str(tmp_path / "all")]) == 0
    )
    assert len(list((tmp_path / "all").glob("*_seg.nii.gz"))) == 6


@pytest.mark.slow
def test_a_model_of_2d_images_predicts_them_in_grey_and_colours(tmp_path: Path) -> None:
    dataset, out = datasets.write_pictures(tmp_path / "pictures", cases=6), tmp_path / "model"
    assert train(dataset, "-o", out, "--labels", "front=127", "back=255", "--set", *BRIEF, *SMALL) == 0
    folder = tmp_path / "new"
    folder.mkdir()
    image = Image.open(dataset / "images" / "p0.png")
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.png")
    assert main(["predict", str(folder), "--bundle", str(out), "--trust", "-o", str(tmp_path / "results")]) == 0
    expected = segment(read(folder / "rgb.png"), read_bundle(out, trust=True)).array
    found = {name: read_label_map(tmp_path / "results" / f"{name}_seg.nii.gz").array for name in ("grey", "rgb")}
    assert found["grey"].shape == found["rgb"].shape == (*image.size, 1)
    np.testing.assert_array_equal(found["rgb"], expected)


@pytest.mark.slow
def test_folds_become_an_ensemble(dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / "balls"
    assert train(dataset, "-o", out, "--folds", 2, "--fold", 1, "--set", *BRIEF, *SMALL) == 0
    assert not (out / "models" / "model.pt").exists()
    assert "over 1 of 2 folds" in capfd.readouterr().out
    assert train(dataset, "-o", out) == 0
    output = capfd.readouterr().out
    assert "fold 1 of 2 is finished" in output
    assert "Dice    mean" in output
    assert "over 2 of 2 folds" in output
    assert train(dataset, "-o", out, "--fold", 0, "--max-epochs", 4) == 0  # evaluated as the one network that it is
    words = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--dataset_dir", str(dataset), "--config_file"]
    words += [str(out / "configs" / "evaluate.yaml"), "--output_dir", str(tmp_path / "scores")]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "evaluation.seen: part is validation" in refused.stderr
    subprocess.run([*words, "--part", "all"], check=True)
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["cases"] == 6
    scan = dataset / "imagesTr" / "case_00.nii.gz"
    assert main(["predict", str(scan), "--bundle", str(out), "--trust-bundle", "-o", str(tmp_path / "results")]) == 0


@pytest.mark.slow
def test_a_termination_is_passed_on_and_the_weights_kept(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "balls"
    words = [sys.executable, "-m", "napari_seg", "train", str(dataset), "-o", str(out), "--set"]
    words += ["max_epochs=1000", "val_interval=1", "num_workers=0", *SMALL]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 900
        while not (out / "training" / "model.pt").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output[-3000:]
    assert (out / "models" / "model.pt").is_file()
    assert (out / "training" / "checkpoints" / "latest.pt").is_file()
