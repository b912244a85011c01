"""The command line as a user meets it: results, pictures, exit codes, and one clear line for each wrong input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from bundles import write_threshold_bundle
from nnunet_models import configuration, write_model
from pydicom.dataset import Dataset

from napari_seg.cli.main import main
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.write import REPORT_FILES
from napari_seg.formats.nifti import write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.volume import Volume

pytestmark = pytest.mark.usefixtures("inline_cohorts")


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(write_threshold_bundle(tmp_path / "threshold"))


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments), "--trust-bundle"])


def files_below(folder: Path) -> list[str]:
    """Return all files but the manifest."""
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return [name for name in found if Path(name).name not in ("manifest.sqlite", *REPORT_FILES)]


def test_one_file_gives_labels_picture_and_record(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    path = phantoms.write_nifti(head, tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    assert predict(path, "-o", out, "--bundle", bundle) == 0
    assert files_below(out) == ["case_seg.json", "case_seg.nii.gz", "case_seg.png"]
    labels = read(out / "case_seg.nii.gz")
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array[0], head.array[0] > 100)
    np.testing.assert_allclose(labels.grid.affine, head.grid.affine, atol=1e-4)
    record = json.loads((out / "case_seg.json").read_text())
    assert [s["name"] for s in record["segments"]] == ["bright", "upper"]
    assert {"precision": "auto", "windows": "fewest", "crop": True}.items() <= record["options"].items()
    assert record["segments"][0]["voxels"] == int((head.array[0] > 100).sum())
    output = capsys.readouterr().out
    assert f"{record['segments'][0]['volume_ml']:.2f}" in output
    assert "1 done, 0 failed" in output


def test_statistics_are_written_beside_the_labels_and_replaced_with_them(
    head: Volume, tmp_path: Path, bundle: str
) -> None:
    path, out = phantoms.write_nifti(head, tmp_path / "case.nii.gz"), tmp_path / "out"
    file = out / "case_seg_statistics.json"
    assert predict(path, "-o", out, "--bundle", bundle, "--statistics-all") == 0
    found = json.loads(file.read_text())
    bright = head.array[0][head.array[0] > 100]
    assert found["bright"]["volume"] == pytest.approx(len(bright) * 1.5 * 1.25 * 2.5)
    assert found["bright"]["intensity"] == pytest.approx(bright.mean(), abs=1e-4)
    assert predict(path, "-o", out, "--bundle", bundle, "--statistics") == 1  # other files than before
    assert predict(path, "-o", out, "--bundle", bundle, "--statistics", "--redo") == 0
    assert json.loads(file.read_text())["bright"] == {"volume": 0.0, "intensity": 0.0}  # it touches the border
    notices = json.loads((out / "case_seg.json").read_text())["notices"]
    assert any(notice["code"] == "result.at_border" and "bright" in notice["message"] for notice in notices)
    assert predict(path, "-o", out, "--bundle", bundle, "--redo") == 0
    assert not file.exists()


def test_certainty_is_written_beside_the_labels_and_is_no_scan(head: Volume, tmp_path: Path, bundle: str) -> None:
    (tmp_path / "scans").mkdir()
    path = phantoms.write_nifti(head, tmp_path / "scans" / "case.nii.gz")
    assert predict(path, "-o", path.parent, "--bundle", bundle, "--certainty") == 0
    confidence, entropy = (read(path.parent / f"case_seg_{name}.nii.gz") for name in ("confidence", "entropy"))
    np.testing.assert_allclose(confidence.grid.affine, head.grid.affine, atol=1e-4)
    assert confidence.array.dtype == entropy.array.dtype == np.uint8
    assert confidence.array[0][head.array[0] > 110].min() > 250
    assert entropy.array[0][head.array[0] > 110].max() < 5
    assert predict(path.parent, "-o", path.parent, "--bundle", bundle, "--certainty") == 0
    (path.parent / "case_seg_entropy.nii.gz").write_bytes(b"mine")
    assert predict(path, "-o", path.parent, "--bundle", bundle, "--redo") == 4  # nothing of another is replaced
    assert (path.parent / "case_seg_entropy.nii.gz").read_bytes() == b"mine"
    (path.parent / "case_seg_entropy.nii.gz").unlink()
    assert predict(path.parent, "-o", path.parent, "--bundle", bundle, "--redo") == 0
    expected = ["case.nii.gz", "case_seg.json", "case_seg.nii.gz", "case_seg.png"]
    assert files_below(path.parent) == expected  # maps of labels that are no more have gone


def test_bad_scans_are_named_and_the_others_done(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    good = phantoms.write_nifti(head, folder / "good.nii.gz")
    (folder / "text.nii.gz").write_text("not an image at all")
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:-400])
    (folder / "notes.txt").write_text("no scan")
    phantoms.write_series(head, folder / "series", slices=[0, 1, 2, 3, 5, 6, 7])
    phantoms.write_series(head, folder / "whole", description="T2w", number=4)
    assert predict(folder, "-o", out, "--bundle", bundle) == 3
    output = capsys.readouterr().out
    assert "2 done, 3 failed" in output
    for code in ("geometry.missing_slice", "file.not_nifti", "file.truncated"):
        assert sum(code in line for line in output.splitlines()) == 1
    assert len(files_below(out)) == 6
    with Manifest.open(out, read_only=True) as manifest:
        codes = {row.code for row in manifest.rows(("failed",))}
    assert codes == {"geometry.missing_slice", "file.not_nifti", "file.truncated"}
    for canary in phantoms.CANARIES:
        assert canary.lower() not in output.lower()
        assert not any(canary.lower() in name.lower() for name in files_below(out))
        assert not any(canary.lower() in p.read_text().lower() for p in out.glob("*.json"))


def test_json_lists_every_scan(head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture) -> None:
    path = phantoms.write_nifti(head, tmp_path / "case.nii.gz")
    (tmp_path / "text.nii").write_text("x")
    assert predict(path, tmp_path / "text.nii", "-o", tmp_path / "out", "--bundle", bundle, "--json") == 3
    first, second = json.loads(capsys.readouterr().out)
    assert (first["status"], second["status"], second["code"]) == ("done", "failed", "file.not_nifti")
    assert first["volumes_ml"]["bright"] > 0


def test_exit_codes_of_wrong_usage(tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert predict(empty, "-o", tmp_path / "out", "--bundle", bundle) == 2
    assert predict(tmp_path / "nowhere", "-o", tmp_path / "out", "--bundle", bundle) == 2
    assert predict(empty, "-o", tmp_path / "out", "--bundle", "no-such-bundle") == 1
    assert "bundle.unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["predict"])
    assert caught.value.code == 1
    (tmp_path / "text.nii").write_text("x")
    for option in ("--structures", "--modality"):  # which takes all words that follow
        with pytest.raises(SystemExit):
            main(["predict", option, "liver", str(tmp_path / "text.nii"), "-o", "out"])
        assert f"text.nii was taken for a value of {option}; put INPUT before {option}" in capsys.readouterr().err
    assert predict(tmp_path / "text.nii", "-o", tmp_path / "out", "--bundle", bundle) == 4
    assert predict(tmp_path / "text.nii", "-o", tmp_path / "text.nii" / "out", "--bundle", bundle) == 5
    assert files_below(tmp_path / "out") == []


def test_an_untrusted_bundle_stops_before_any_scan(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    path = phantoms.write_nifti(head, tmp_path / "case.nii.gz")
    assert main(["predict", str(path), "-o", str(tmp_path / "out"), "--bundle", bundle]) == 1
    assert "bundle.untrusted" in capsys.readouterr().err


def test_bundles_that_no_scan_fits_are_refused_once_and_early(
    head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a", "b"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        phantoms.write_nifti(head, tmp_path / "scans" / f"{name}.nii.gz")
    for name, edit in {
        "images": lambda text: text.replace("roi_size: [64, 64, 64]", "roi_size: '@size'") + "size: [64, 64]\n",
        "channels": lambda text: f"{text}inference: []\ndataset_dir: x\noutput_dir: y\n",
    }.items():
        root = write_threshold_bundle(tmp_path / name)
        config = root / "configs" / "inference.yaml"
        config.write_text(edit(config.read_text()))
        if name == "channels":
            metadata = root / "configs" / "metadata.json"
            metadata.write_text(metadata.read_text().replace('{"num_channels": 1', '{"num_channels": 2'))
        assert predict(tmp_path / "scans", "-o", tmp_path / "out", "--bundle", root) == 1
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("napari-seg: bundle.")]
        code = {"images": "bundle.dimensions", "channels": "bundle.channels"}[name]
        assert line.startswith(f"napari-seg: {code}: bundle '{name}' ")
        assert f"python -m monai.bundle run {'inference ' * (name == 'channels')}--config_file {config}" in line
        assert line.endswith("--dataset_dir IMAGES --output_dir RESULTS") == (name == "channels")
        assert not (tmp_path / "out").exists()


def test_folders_that_are_called_after_patients_give_no_names(head: Volume, tmp_path: Path) -> None:
    def of(name: str, number: str) -> Callable[[int, Dataset], None]:
        def edit(k: int, dataset: Dataset) -> None:
            dataset.SpecificCharacterSet = "ISO_IR 192"
            dataset.PatientName, dataset.PatientID = name, number

        return edit

    for name, number in (("Doe^John", "CAN4711"), ("Roe^Jane", "CAN4712"), ("\u5c71\u7530^\u592a\u90ce", "CAN4713")):
        folder = tmp_path / f"{name.upper()}_{number}" / "visit 1"
        phantoms.write_series(head, folder, edit=of(name, number))
    first, faults = find_cases([tmp_path])
    names = [case.name for case in first]
    assert faults == []
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{6}_visit 1_MR_T1w_sagittal_003", name) for name in names), names


def test_scans_of_one_name_are_told_apart_by_their_folders(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    study, out = tmp_path / "study", tmp_path / "out"

    def add(subject: str) -> Path:
        (study / subject / "anat").mkdir(parents=True)
        return phantoms.write_nifti(head, study / subject / "anat" / "T1.nii.gz")

    second = add("sub-02")
    assert predict(study, "-o", out, "--bundle", bundle) == 0
    alone = (out / "sub-02_anat_T1_seg.nii.gz").stat().st_mtime_ns
    first = add("sub-01")
    capsys.readouterr()
    # each scan once, however often it is named, by the name that it has alone
    assert predict(second, study, "-o", out, "--bundle", bundle, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert sorted((entry["name"], entry["source"]) for entry in listed) == [
        ("sub-01_anat_T1", "sub-01/anat/T1.nii.gz"),
        ("sub-02_anat_T1", "sub-02/anat/T1.nii.gz"),
    ]
    assert (out / "sub-02_anat_T1_seg.nii.gz").stat().st_mtime_ns == alone  # done before
    assert predict(first, "-o", out, "--bundle", bundle) == 0
    other = phantoms.write_nifti(replace(head, array=head.array + 1), tmp_path / "sub-02_anat_T1.nii.gz")
    assert predict(other, "-o", out, "--bundle", bundle) == 4
    assert "belongs to another scan" in capsys.readouterr().out


def test_a_result_that_cannot_be_finished_leaves_nothing(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    path, out = phantoms.write_nifti(head, tmp_path / "case.nii.gz"), tmp_path / "out"
    (out / "case_seg.png").mkdir(parents=True)
    assert predict(path, "-o", out, "--bundle", bundle) == 4
    assert "output.exists" in capsys.readouterr().out
    assert predict(path, "-o", out, "--bundle", bundle, "--overwrite") == 4
    assert "output.not_written" in capsys.readouterr().out
    left = {path.name for path in out.iterdir()} - {*REPORT_FILES}
    assert left == {"case_seg.png", "manifest.sqlite"}


def test_our_own_mistakes_cost_one_case_only(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_seg

    real = napari_seg.segment

    def faulty(volume: Volume, *args: Any, **kwargs: Any) -> Any:
        if volume.name == "bad":
            raise ZeroDivisionError("a bug")
        return real(volume, *args, **kwargs)

    monkeypatch.setattr("napari_seg.inference.segment.segment", faulty)
    for name in ("bad", "good"):
        phantoms.write_nifti(head, tmp_path / f"{name}.nii.gz")
    assert predict(tmp_path / "bad.nii.gz", tmp_path / "good.nii.gz", "-o", tmp_path / "out", "--bundle", bundle) == 3
    assert "internal.error: this should not have happened: ZeroDivisionError" in capsys.readouterr().out


def test_stopping_keeps_what_is_done(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_seg

    real = napari_seg.segment

    def interrupted(volume: Volume, *args: Any, **kwargs: Any) -> Any:
        if volume.name == "b":
            raise KeyboardInterrupt
        return real(volume, *args, **kwargs)

    monkeypatch.setattr("napari_seg.inference.segment.segment", interrupted)
    for name in ("a", "b", "c"):
        phantoms.write_nifti(head, tmp_path / f"{name}.nii.gz")
    assert predict(*sorted(tmp_path.glob("*.nii.gz")), "-o", tmp_path / "out", "--bundle", bundle) == 130
    assert files_below(tmp_path / "out") == ["a_seg.json", "a_seg.nii.gz", "a_seg.png"]
    assert "stopped" in capsys.readouterr().err


def test_a_users_own_label_map_is_a_scan_like_any_other(head: Volume, tmp_path: Path, bundle: str) -> None:
    (tmp_path / "scans").mkdir()
    phantoms.write_nifti(head, tmp_path / "scans" / "mine_seg.nii.gz")
    (tmp_path / "scans" / "mine_seg.json").write_text('{"Manual": true}')
    assert predict(tmp_path / "scans", "-o", tmp_path / "out", "--bundle", bundle) == 0
    assert len(files_below(tmp_path / "out")) == 3


def test_edited_results_are_not_replaced_unasked(
    head: Volume, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture
) -> None:
    path, out = phantoms.write_nifti(head, tmp_path / "case.nii.gz"), tmp_path / "out"
    command = (path, "-o", out, "--bundle", bundle)
    assert predict(*command) == 0
    assert predict(*command, "--redo-all") == 0  # our own, untouched: replaced
    edited = phantoms.write_nifti(head, out / "case_seg.nii.gz").read_bytes()
    assert predict(*command) == 0
    assert "1 by an earlier run" in capsys.readouterr().out
    assert predict(*command, "--redo-all") == 4
    assert "output.exists" in capsys.readouterr().out
    assert (out / "case_seg.nii.gz").read_bytes() == edited
    assert predict(*command, "--overwrite") == 0
    assert (out / "case_seg.nii.gz").read_bytes() != edited


def test_results_among_the_scans_are_not_segmented_again(head: Volume, tmp_path: Path, bundle: str) -> None:
    (tmp_path / "scans").mkdir()
    phantoms.write_nifti(head, tmp_path / "scans" / "case.nii.gz")
    for _ in range(2):
        assert predict(tmp_path / "scans", "-o", tmp_path / "scans", "--bundle", bundle) == 0
    assert len(files_below(tmp_path / "scans")) == 4


def test_bundles_are_listed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    monkeypatch.setenv("NAPARI_SEG_BUNDLES", str(Path(bundle).parent))
    assert main(["bundles"]) == 0
    assert "left anterior hippocampus" in capsys.readouterr().out
    assert main(["bundles", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["trusted"]) for entry in listed][1:] == [("threshold", False)]


BRATS = ("T1c", "T1", "T2", "FLAIR")


@pytest.fixture
def four(tmp_path: Path) -> str:
    """A bundle with four channels; it finds what is above 100 in T2."""
    return str(write_threshold_bundle(tmp_path / "four", channels=BRATS, channel=2, roi=(24, 24, 24)))


def write_channels(head: Volume, paths: dict[str, Path]) -> None:
    """Only T2 shows the head; T1c lies on a grid of its own."""
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = head if name == "T2" else replace(head, array=np.full_like(head.array, 7))
        if name == "FLAIR":
            grid = Grid((15, 20, 18), head.grid.affine @ np.diag([1.4, 1.35, 0.8, 1.0]))
            volume = replace(volume, grid=grid, array=np.full((1, *grid.shape), 9, np.int16))
        phantoms.write_nifti(volume, path)


@pytest.mark.parametrize("how", ["options", "nnunet", "bids", "brats", "names", "4d"])
def test_a_case_of_four_images_is_found_in_every_layout(
    head: Volume, tmp_path: Path, four: str, how: str, capsys: pytest.CaptureFixture
) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    bids = dict(zip(BRATS, ("ce-gd_T1w", "T1w", "T2w", "FLAIR"), strict=True))
    brats = dict(zip(BRATS, ("t1c", "t1n", "t2w", "t2f"), strict=True))
    paths = {
        "options": {name: folder / f"{name}.nii.gz" for name in BRATS},
        "nnunet": {name: folder / f"case_{n:04d}.nii.gz" for n, name in enumerate(BRATS)},
        "bids": {name: folder / "sub-01" / "anat" / f"sub-01_{bids[name]}.nii.gz" for name in BRATS},
        "brats": {name: folder / "B-001" / f"B-001-{brats[name]}.nii" for name in BRATS},
        "names": {name: folder / "B-002" / f"{name}.nii" for name in BRATS},
        "4d": {},
    }[how]
    write_channels(head, paths)
    inputs = [folder]
    if how == "options":
        inputs = [part for name, path in paths.items() for part in ("--channel", f"{name.lower()}={path}")]
    if how == "4d":
        folder.mkdir()
        array = np.concatenate([head.array * (n == 2) for n in range(4)])
        write_volume(replace(head, array=array), folder / "case.nii.gz")
    assert predict(*inputs, "-o", out, "--bundle", four, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    name = {"options": "scans", "bids": "sub-01", "brats": "B-001", "names": "B-002"}.get(how, "case")
    assert found["name"] == name
    assert [notice["code"] for notice in found["notices"]] == ([] if how == "4d" else ["channels.resampled"])
    np.testing.assert_array_equal(read(out / f"{name}_seg.nii.gz").array[0] > 0, head.array[0] > 100)
    record = json.loads((out / f"{name}_seg.json").read_text())
    stems = {one: path.name.partition(".")[0] for one, path in paths.items()}
    assert record.get("channels", {}) == stems


def test_series_of_a_study_are_one_case_and_give_a_segmentation(head: Volume, tmp_path: Path, four: str) -> None:
    def of_study(k: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4"

    for number, text in enumerate(("T1 post", "T1", "T2", "FLAIR", "DWI"), start=1):
        volume = head if text == "T2" else replace(head, array=np.full_like(head.array, 7))
        folder = tmp_path / "scans" / "study" / text
        phantoms.write_series(volume, folder, edit=of_study, description=text, number=number)
    assert predict(tmp_path / "scans", "-o", tmp_path / "out", "--bundle", four, "--also", "seg") == 0
    assert files_below(tmp_path / "out") == ["study_seg.dcm", "study_seg.json", "study_seg.nii.gz", "study_seg.png"]
    np.testing.assert_array_equal(read(tmp_path / "out" / "study_seg.nii.gz").array[0] > 0, head.array[0] > 100)


@pytest.mark.parametrize(
    ("channels", "code"),
    [
        (("T1", "T2", "FLAIR"), "channels.missing"),
        ((*BRATS, "DWI"), "channels.unknown"),
        (("T1X", *(name for name in BRATS if name != "T1")), "channels.unknown"),
        ((*BRATS, "t1w"), "channels.ambiguous"),
        ((*BRATS, "T1"), "channels.ambiguous"),
    ],
)
def test_wrong_channels_are_refused(
    head: Volume, tmp_path: Path, four: str, channels: tuple[str, ...], code: str, capsys: pytest.CaptureFixture
) -> None:
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    options = [part for name in channels for part in ("--channel", f"{name}={path}")]
    assert predict(*options, "-o", tmp_path / "out", "--bundle", four) == 1
    assert code in capsys.readouterr().err
    assert predict(path, "--channel", f"T1={path}", "-o", tmp_path / "out", "--bundle", four) == 1
    assert "channels.with_input" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_nnunet_without_its_channels_is_refused_by_their_names(
    tmp_path: Path, head: Volume, capsys: pytest.CaptureFixture
) -> None:
    entry = configuration(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
    root = write_model(tmp_path, entry=entry, dataset_changes={"channel_names": {"0": "T1", "1": "FLAIR"}})
    phantoms.write_nifti(head, tmp_path / "scan.nii.gz")
    assert predict(tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "--model", root) == 1
    line = capsys.readouterr().err
    assert "napari-seg: bundle.channels: " in line
    assert "T1, FLAIR" in line
    assert "monai.bundle" not in line


def test_a_wrong_structure_ends_a_run_at_its_first_scan(
    tmp_path: Path, head: Volume, capsys: pytest.CaptureFixture
) -> None:
    for name in ("one", "two"):
        phantoms.write_nifti(head, tmp_path / f"{name}.nii.gz")
    model = write_model(tmp_path / "model")
    scans = [tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"]
    for words in ([], ["--dry-run"]):
        assert predict(*scans, "-o", tmp_path / "out", "--model", model, "--structures", "liver", *words) == 1
        message = capsys.readouterr().err
        assert message.count("bundle.structures") == 1
        assert f"'napari-seg models show {model}' lists them" in message
        assert not (tmp_path / "out").exists()
    assert predict(*scans, "-o", tmp_path / "out", "--model", model, "--structures", "inner,outer") == 1
    assert "names are separated by spaces, not commas" in capsys.readouterr().err
    assert predict(scans[0], "-o", tmp_path / "out", "--model", model, "--structures", "OUTER") == 0
    record = json.loads((tmp_path / "out" / "one_seg.json").read_text())
    assert record["options"]["structures"] == ["outer"]


def test_a_run_on_a_missing_device_leaves_nothing_behind(tmp_path: Path, head: Volume) -> None:
    phantoms.write_nifti(head, tmp_path / "one.nii.gz")
    words = [tmp_path / "one.nii.gz", "-o", tmp_path / "out", "--model", write_model(tmp_path / "model")]
    for more in (["--device", "cuda:99"], ["--device", "cuda:99", "--dry-run"]):
        assert predict(*words, *more) == 5
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    assert predict(*words, "--device", "cuda:99") == 5
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]
