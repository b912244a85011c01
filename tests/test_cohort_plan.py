"""The plan of a run: what will run, be skipped and be refused, and an estimate of the time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import phantoms
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.plan import RunPlan, estimate_case, plan_run, with_estimates
from napari_seg.cohort.select import Selection, select_cases
from napari_seg.cohort.settings import RunSettings
from napari_seg.errors import BundleError, EnvironmentFault, InputError
from napari_seg.inference.options import SegmentOptions


class InProcess:
    """Stands for the worker process; returns the costs of scans by their voxels."""

    def __init__(self, costs: dict[str, Any] | None = None) -> None:
        self.costs = costs or {}
        self.asked: list[str] = []

    def run(self, function: Any, case: Any, bundle: Any, settings: Any) -> Any:
        assert function is estimate_case
        self.asked.append(case.name)
        cost = self.costs.get(case.name, (1.0, 1))
        if isinstance(cost, Exception):
            raise cost
        return cost


def planned(root: Path, done: Any = (), **asked: Any) -> RunPlan:
    settings = asked.pop("settings", RunSettings())
    selection = Selection((root,), **asked)
    return plan_run(select_cases(selection, lambda reference, is_of_user: read_bundle()), settings, done)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Scans of 5, 10, 20 and 40 slices of 20 x 26 voxels, a damaged file and a text."""
    root = tmp_path / "scans"
    root.mkdir()
    head = phantoms.head()
    for slices in (5, 10, 14):
        grid = replace(head.grid, shape=(20, 26, slices))
        volume = replace(head, array=head.array[..., :slices].copy(), grid=grid)
        phantoms.write_nifti(volume, root / f"s{slices:02d}.nii.gz")
    (root / "bad.nii.gz").write_bytes(b"no scan")
    (root / "readme.txt").touch()
    return root


def test_a_plan_says_what_runs_with_which_files_and_what_does_not(scans: Path) -> None:
    settings = RunSettings(SegmentOptions(confidence_maps=True), also=("nrrd", "seg"), statistics="all")
    plan = planned(scans, {"s10"}, series=("s*",), settings=settings)
    title = "Hippocampus, anterior and posterior"  # which --model takes
    assert [(one.case.key, one.model, one.voxels, one.is_done) for one in plan.cases] == [
        ("s05", title, 20 * 26 * 5, False),
        ("s10", title, 20 * 26 * 10, True),
        ("s14", title, 20 * 26 * 14, False),
    ]
    assert sorted(plan.cases[0].outputs) == [  # no DICOM format, since the scan is not DICOM
        "s05.seg.nrrd",
        "s05_seg.json",
        "s05_seg.nii.gz",
        "s05_seg.png",
        "s05_seg_confidence.nii.gz",
        "s05_seg_entropy.nii.gz",
        "s05_seg_statistics.json",
    ]
    assert [(one.key, one.code) for one in plan.skipped] == [("bad", "cohort.series")]
    assert plan.refused == ()
    assert plan.other_files == {"skip.not_an_image": 1}
    assert plan.voxels == 20 * 26 * 19
    assert plan.seconds is None
    assert [(one.key, one.code) for one in planned(scans).refused] == [("bad", "file.not_nifti")]


def test_times_are_interpolated_between_scans_of_different_sizes(scans: Path) -> None:
    process = InProcess({"s05": (2.0, 4), "s14": (20.0, 40)})
    plan = with_estimates(planned(scans, exclude=("bad*",)), RunSettings(), process)  # type: ignore[arg-type]
    assert sorted(process.asked) == ["s05", "s10", "s14"]
    assert plan.examples == 3
    assert [one.seconds for one in plan.cases] == pytest.approx([2.0, 1.0, 20.0])
    process = InProcess({"s05": (2.0, 4), "s14": (20.0, 40), "s10": InputError("file.truncated", "it is cut")})
    plan = with_estimates(planned(scans, exclude=("bad*",)), RunSettings(), process)  # type: ignore[arg-type]
    assert plan.examples == 2
    assert [one.seconds for one in plan.cases] == pytest.approx([2.0, 20.0])
    assert [one.windows for one in plan.cases] == [4, 40]
    assert (plan.seconds, plan.windows) == (pytest.approx(22.0), 44)
    assert [(one.key, one.code) for one in plan.refused] == [("s10", "file.truncated")]


def test_a_scan_outside_of_the_examples_is_taken_in_proportion(scans: Path) -> None:
    process = InProcess({"s05": MemoryError(), "s14": MemoryError(), "s10": (10.0, 10)})
    plan = with_estimates(planned(scans, exclude=("bad*",)), RunSettings(), process)  # type: ignore[arg-type]
    assert [one.seconds for one in plan.cases] == pytest.approx([5.0, 10.0, 14.0])


@pytest.mark.parametrize(
    ("cost", "reason"),
    [(MemoryError("it broke"), "it broke"), (None, "not known before it runs")],
)
def test_a_time_that_is_unknown_is_said_to_be(scans: Path, cost: Any, reason: str) -> None:
    process = InProcess(dict.fromkeys(["s05", "s10", "s14"], cost))
    plan = with_estimates(planned(scans), RunSettings(), process)  # type: ignore[arg-type]
    assert (plan.seconds, plan.windows, plan.examples) == (None, None, 0)
    assert plan.doubts[0].startswith("the time of Hippocampus, anterior and posterior is unknown")
    assert plan.doubts[0].endswith(reason)


def test_an_error_of_all_cases_refuses_the_plan_or_the_cases_of_one_model(scans: Path) -> None:
    fault = BundleError("bundle.tta", "its network knows one side")
    process = InProcess(dict.fromkeys(["s05", "s10", "s14"], fault))
    plan = planned(scans)
    with pytest.raises(BundleError, match=r"bundle\.tta"):
        with_estimates(plan, RunSettings(), process)  # type: ignore[arg-type]
    other = replace(plan.cases[0].case, name="other")
    another = replace(plan.cases[0], case=other, model="another", is_done=True)
    found = with_estimates(replace(plan, cases=(*plan.cases, another)), RunSettings(), process)  # type: ignore[arg-type]
    assert [one.model for one in found.cases] == ["another"]
    assert [one.code for one in found.refused[1:]] == ["bundle.tta"] * 3


def test_what_is_done_is_not_estimated(scans: Path) -> None:
    process = InProcess()
    plan = with_estimates(planned(scans, {"s05", "s10", "s14"}), RunSettings(), process)  # type: ignore[arg-type]
    assert process.asked == []
    assert (plan.to_run, plan.seconds, plan.windows) == ((), 0, 0)


def test_a_plan_of_all_is_plain_json_and_names_no_folder(scans: Path) -> None:
    content = planned(scans).as_dict()
    assert str(scans) not in json.dumps(content)
    assert content["total"] == {
        "cases": 3,
        "voxels": 20 * 26 * 29,
        "windows": None,
        "hours": None,
        "estimated_from": 0,
    }


def test_the_real_estimate_runs_in_a_worker_and_the_run_follows_the_plan(scans: Path, tmp_path: Path) -> None:
    cohort = Cohort(scans / "s14.nii.gz", tmp_path / "out", selection=Selection(layout="mirror"), device="cpu")
    plan = cohort.plan()
    assert plan.examples == 1
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert not (tmp_path / "out").exists()


def test_the_time_of_one_slice_is_estimated_for_a_model_of_slices(tmp_path: Path, monkeypatch: Any) -> None:
    head = phantoms.head()
    grid = replace(head.grid, shape=(*head.grid.shape[:2], 1))
    phantoms.write_nifti(replace(head, array=head.array[..., :1].copy(), grid=grid), tmp_path / "slice.nii.gz")
    (one,) = planned(tmp_path).cases
    assert one.case.bundle is not None
    monkeypatch.setattr(
        "napari_seg.inference.estimate.estimate",
        lambda volume, *_: SimpleNamespace(seconds=2.0, windows=volume.grid.shape[2]),
    )
    assert estimate_case(one.case, replace(one.case.bundle, takes_one_slice=True), RunSettings()) == (2.0, 1)
    with pytest.raises(InputError, match=r"data\.2d"):
        estimate_case(one.case, one.case.bundle, RunSettings())


def test_mirror_and_bids_are_written_and_resumed(tmp_path: Path, inline_cohorts: Any, monkeypatch: Any) -> None:
    import numpy as np

    from napari_seg.volume import Segment, Segmentation

    def threshold(volume: Any, *args: Any, **options: Any) -> Segmentation:
        labels = (volume.array[0] > 100).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "bright", (255, 0, 0)),), {1: 0.9})

    monkeypatch.setattr("napari_seg.inference.segment.segment", threshold)
    folder = tmp_path / "in" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    phantoms.write_nifti(phantoms.head(), folder / "sub-01_T1w.nii.gz")
    for layout, stem in (
        ("mirror", "sub-01/anat/sub-01_T1w_seg"),
        ("bids", "derivatives/napari-seg/sub-01/anat/sub-01_seg-hippocampus_desc-T1w_dseg"),
    ):
        out = tmp_path / layout
        for is_done in (False, True):
            cohort = Cohort(tmp_path / "in", out, selection=Selection(layout=layout))  # type: ignore[arg-type]
            assert [one.is_done for one in cohort.plan(with_time=False).cases] == [is_done]
            assert [result.status for result in cohort] == ["done"]
        files = {str(path.relative_to(out).as_posix()) for path in out.rglob("*") if path.is_file()}
        assert {f"{stem}.nii.gz", f"{stem}.png", f"{stem}.json"} <= files
        assert {f"{stem}.{ending}" for ending in ("nii.gz", "png", "json")} == {one for one in files if stem in one}
    assert json.loads((out / "derivatives/napari-seg/dataset_description.json").read_text())["DatasetType"]
    # results among the scans are no scans
    assert [case.key for case in Cohort(out, tmp_path / "again").cases] == []


def test_a_refused_run_leaves_no_description_of_its_results(tmp_path: Path, inline_cohorts: Any) -> None:
    def run(name: str) -> Path:
        (tmp_path / name).mkdir()
        phantoms.write_nifti(phantoms.head(), tmp_path / name / f"{name}.nii.gz")
        list(Cohort(tmp_path / name, tmp_path / "out", selection=Selection(layout="bids"), device="cuda:99"))
        return tmp_path / "out"

    with pytest.raises(EnvironmentFault, match=r"environment\.device"):
        run("sub-01")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "derivatives").mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"environment\.device"):
        run("sub-02")
    assert [*(tmp_path / "out").rglob("*")] == [tmp_path / "out" / "derivatives"]
    assert not (run("no_subject") / "derivatives" / "napari-seg").exists()
