"""What `predict --dry-run` prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from pydicom import Dataset

from napari_seg.cli.main import main
from napari_seg.cli.predict_plan import MAX_ROWS, print_plan, summary, superseded
from napari_seg.cohort.plan import PlannedCase, RunPlan, plan_run, with_estimates
from napari_seg.cohort.select import Selection, UnusedScan, select_cases
from napari_seg.cohort.settings import RunSettings


def plan_of(root: Path) -> RunPlan:
    from napari_seg.bundles.read import read_bundle

    return plan_run(select_cases(Selection((root,)), lambda reference, is_of_user: read_bundle()), RunSettings())


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    phantoms.write_nifti(phantoms.head(), scans / "[red]head.nii.gz")
    (scans / "bad_ct.nii.gz").write_bytes(b"no scan")
    assert main(["predict", str(scans), "-o", str(out), "--dry-run", "--device", "cpu"]) == 3
    printed = capsys.readouterr()
    assert "[red]head_seg.nii.gz" in printed.out
    assert "refuse   bad_ct  file.not_nifti" in printed.out
    assert "1 to run (1 with Hippocampus, anterior and posterior), 0 done before, 0 skipped, 1 refused" in printed.out
    assert "an estimate from 1 scan, one case after the other" in printed.out
    assert printed.err.splitlines() == ["estimating the time of [red]head with Hippocampus, anterior and posterior"]
    assert not out.exists()
    assert main(["predict", str(scans), "-o", str(out), "--dry-run", "--json", "--modality", "CT"]) == 4
    content = json.loads(capsys.readouterr().out)
    assert content["cases"] == []
    assert [one["code"] for one in content["refused"]] == ["file.not_nifti"]


def test_a_scan_of_another_modality_is_refused_as_by_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.Modality = "CT"

    phantoms.write_series(phantoms.head(), tmp_path / "series", edit=edit)
    words = ["predict", str(tmp_path / "series"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--dry-run"]) == 4
    printed = capsys.readouterr().out
    assert "bundle.modality: the scan is CT; model 'Hippocampus, anterior and posterior' was trained on MR" in printed
    assert "0 to run (none), 0 done before, 0 skipped, 1 refused" in printed


def test_a_file_that_is_named_as_another_modality_gets_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("patient_CT", "patient_T1w", "patient"):
        phantoms.write_nifti(phantoms.head(), scans / f"{name}.nii.gz")
    print_plan(plan_of(scans), tmp_path / "out")
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warn")]
    assert warning.startswith(
        "warn     patient_CT  fitness.modality: its file name, or the JSON file next to it, says CT;"
    )
    assert "'Hippocampus, anterior and posterior' was trained on MR" in warning
    assert main(["inspect", str(scans), "--json"]) == 0
    assert [one["modality"] for one in json.loads(capsys.readouterr().out)] == ["", "CT", "MR"]


@pytest.mark.parametrize("ending", ["nii.gz", "nii"])
def test_a_label_map_without_an_image_gets_a_warning_and_is_no_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    scans, head = tmp_path / "scans", phantoms.head()
    scans.mkdir()
    labels = np.kron((head.array > 100).astype(np.uint8), np.ones((1, 2, 2, 2), np.uint8))
    grid = replace(head.grid, shape=labels.shape[1:])
    phantoms.write_nifti(replace(head, array=labels, grid=grid), scans / f"lesions.{ending}")
    noise = np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)
    phantoms.write_nifti(replace(head, array=noise, grid=grid), scans / f"scan.{ending}")
    plan = with_estimates(plan_of(scans), RunSettings(), NoEstimates())  # type: ignore[arg-type]
    print_plan(plan, tmp_path / "out")
    printed = capsys.readouterr().out
    (warning,) = [line for line in printed.splitlines() if line.startswith("warn")]
    assert warning.startswith("warn     lesions  fitness.label_map: the values reach from 0 to 1,")
    assert "2 to run" in printed
    assert [one["notices"] for one in plan.as_dict()["cases"]][1] == []


class NoEstimates:
    """Stands for the worker process that estimates times."""

    def run(self, *args: object) -> None:
        return None


def test_earlier_results_that_count_no_longer_are_counted_by_their_reasons(tmp_path: Path) -> None:
    plan = RunPlan((), results_left_out=2, results_renamed=1)
    assert list(summary(plan, tmp_path))[1:] == [
        "2 earlier results will be in no table: this run leaves out or refuses the scans; the files stay, and count "
        "again in a run that has them",
        "1 earlier result will be in no table: this run has the scans under other names (cohort.renamed); the files "
        "stay",
    ]
    assert next(superseded(0, 1)).startswith("1 earlier result is in no table: ")


def test_long_plans_are_cut_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantoms.write_nifti(phantoms.head(), tmp_path / "a.nii.gz")
    (one,) = plan_of(tmp_path).cases
    many = tuple(UnusedScan(f"x{n}", "", "nifti", "cohort.series", "no\nmatch") for n in range(MAX_ROWS + 10))
    plan = RunPlan((one,) * (MAX_ROWS + 3), skipped=many, repeated=2, other_files={"skip.localizer": 3})
    print_plan(plan, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "... and 3 more; --json lists all" in lines
    assert f"skip     ... {MAX_ROWS + 10} in all: {MAX_ROWS + 10} cohort.series" in lines
    assert "skip     x0  cohort.series: no_match" in lines
    assert "2 found twice, and run once" in lines
    assert "3 files are no scans (3 skip.localizer); 'napari-seg inspect' says why" in lines
    print_plan(plan, tmp_path, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["cases"]) == MAX_ROWS + 3
    print_plan(replace(plan, other_files={"skip.localizer": 1}), tmp_path)
    assert "1 file is no scan (1 skip.localizer); 'napari-seg inspect' says why" in capsys.readouterr().out


def test_a_plan_with_finished_cases_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phantoms.write_nifti(phantoms.head(), tmp_path / "hippocampus_001.nii.gz")
    (one,) = plan_of(tmp_path).cases
    done = replace(one, voxels=12_345_678, is_done=True)
    monkeypatch.setenv("COLUMNS", "80")
    print_plan(RunPlan((done, replace(done, is_done=False, seconds=65.0, windows=3)), examples=1), Path("out"))
    _, *rows = capsys.readouterr().out.splitlines()[:3]
    assert [row.split() for row in rows] == [
        ["hippocampus_001", "12,345,678", *time.split(), "hippocampus_001_seg.nii.gz"] for time in ("done", "1 min 5 s")
    ]
    print_plan(RunPlan((done, replace(done, model="liver"))), Path("out"))
    assert "liver" in capsys.readouterr().out.partition("to run")[0], "of two models each is named"


def test_rows_in_a_file_are_not_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{'long' * 30}_001"
    phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    monkeypatch.delenv("COLUMNS", raising=False)
    print_plan(plan_of(tmp_path), Path("out"))
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == f"{name}_seg.nii.gz"


def test_an_unknown_time_is_not_summed_up(tmp_path: Path) -> None:
    phantoms.write_nifti(phantoms.head(), tmp_path / "a.nii.gz")
    (one,) = plan_of(tmp_path).cases
    known = PlannedCase(one.case, one.model, one.outputs, one.voxels, seconds=7200.0, windows=5)
    assert not [line for line in summary(RunPlan((one, known)), tmp_path) if "estimate" in line]
    (line,) = [line for line in summary(RunPlan((known,), examples=1), tmp_path) if "estimate" in line]
    assert line.startswith("about 2 h")


def test_a_scan_that_the_layout_refuses_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantoms.write_nifti(phantoms.head(), tmp_path / "head.nii.gz")
    command = ["predict", str(tmp_path / "head.nii.gz"), "-o", str(tmp_path / "out"), "--layout", "bids"]
    assert main([*command, "--dry-run"]) == 4
    assert not (tmp_path / "out").exists()
    for _ in range(2):
        assert main(command) == 4
        printed = capsys.readouterr().out
        assert "failed   head: cohort.not_bids" in printed
        assert f"report   {tmp_path / 'out' / 'report.html'}" in printed
        assert "head,failed,cohort.not_bids," in (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8")
    assert main(["status", str(tmp_path / "out")]) == 4
    printed = capsys.readouterr().out
    assert "failed   head: cohort.not_bids" in printed
    assert f"report   {tmp_path / 'out' / 'report.html'}" in printed
    assert "rate" not in printed
