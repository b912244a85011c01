"""Runs over many scans: what is done once, what is tried again, what is refused, and names that give nobody away."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from cohorts import content, statuses

import napari_seg.evaluation.overlay
import napari_seg.formats.dicom.seg_write
from napari_seg.bundles.read import read_bundle
from napari_seg.cohort import runners
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.layout import DERIVATIVES
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.write import REPORT_FILES
from napari_seg.cohort.runners import Runner
from napari_seg.cohort.select import Selection
from napari_seg.errors import (
    Cancelled,
    CohortError,
    EnvironmentFault,
    InputError,
    LocaliseError,
    NapariSegError,
    Notice,
    OutputError,
)
from napari_seg.formats.atomic import verified_write
from napari_seg.volume import Segmentation, Volume
from napari_seg.worker import WorkerDied

FILES = ["seg.json", "seg.nii.gz", "seg.png"]


OF_THE_RUN = ["manifest.sqlite", *REPORT_FILES]
"""Files of a run as a whole."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_grows_keeps_the_names_of_its_results(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out, first, second = tmp_path / "out", scans / "one" / "imagesTr", scans / "two" / "imagesTr"
    for folder in (first, second):
        folder.mkdir(parents=True)
    (scans / "a.nii.gz").rename(first / "x.nii.gz")
    results = list(Cohort(first, out))
    assert statuses(results) == {"x": "done"}
    (scans / "b.nii.gz").rename(second / "x.nii.gz")
    grown = Cohort([first, second], out)
    assert [one.is_done for one in grown.plan(with_time=False).cases] == [True, False]
    assert statuses(list(grown)) == {"x": "done before", "two_imagesTr_x": "done"}
    assert len(no_network) == 2


def test_a_second_run_does_what_is_left(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    (scans / "b.nii.gz").rename(tmp_path / "b.nii.gz")
    (scans / "b.nii.gz").write_bytes(b"no scan")
    assert statuses(list(Cohort(scans, out))) == {"a": "done", "b": "failed", "c": "done"}
    first = content(out)
    (tmp_path / "b.nii.gz").rename(scans / "b.nii.gz")
    results = list(Cohort(scans, out))
    assert statuses(results) == {"a": "done before", "b": "done", "c": "done before"}
    assert no_network == ["a", "c", "b"]
    assert first.items() <= content(out).items()
    assert results[0].volumes_ml["bright"] > 0
    assert results[0].labels == out / "a_seg.nii.gz"
    table = Cohort(scans, out).volumes()
    assert list(table["name"]) == ["a", "b", "c"]
    assert set(table["structure"]) == {"bright"}
    assert names(out) == sorted([f"{n}_{f}" for n in "abc" for f in FILES] + OF_THE_RUN)


def test_lost_files_are_made_again_and_edited_ones_stay(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))
    (out / "a_seg.png").unlink()
    edited = phantoms.write_nifti(phantoms.head(), out / "b_seg.nii.gz").read_bytes()
    assert statuses(list(Cohort(scans, out))) == {"a": "done", "b": "done before", "c": "done before"}
    (redone,) = [result for result in Cohort(scans / "b.nii.gz", out, redo="all")]
    assert redone.code == "output.exists"
    assert (out / "b_seg.nii.gz").read_bytes() == edited
    assert statuses(list(Cohort(scans / "b.nii.gz", out, redo="all", overwrite=True))) == {"b": "done"}
    assert (out / "b_seg.nii.gz").read_bytes() != edited


def test_empty_and_cut_off_results_are_made_again(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))
    before = content(out)
    (out / "a_seg.nii.gz").write_bytes(b"")
    (out / "b_seg.nii.gz").write_bytes(before["b_seg.nii.gz"][:-20])
    (out / "c_seg.json").write_bytes(b"")
    assert statuses(list(Cohort(scans, out))) == {"a": "done", "b": "done", "c": "done"}
    assert [content(out)[name] for name in ("a_seg.nii.gz", "b_seg.nii.gz")] == [
        before[name] for name in ("a_seg.nii.gz", "b_seg.nii.gz")
    ]
    assert statuses(list(Cohort(scans, out))) == dict.fromkeys("abc", "done before")


def test_a_refused_run_changes_no_table_of_bids(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    folder, bundle = tmp_path / "bids" / "sub-01" / "anat", read_bundle()
    folder.mkdir(parents=True)
    (scans / "a.nii.gz").rename(folder / "sub-01_T1w.nii.gz")
    out, selection = tmp_path / "out", Selection(layout="bids")
    list(Cohort(tmp_path / "bids", out, bundle, selection=selection))
    (table,) = (out / DERIVATIVES).glob("*_dseg.tsv")
    before = table.read_text()
    segments = tuple(replace(one, name=f"other {one.name}") for one in bundle.segments)
    for options in ({"tta": "shifts"}, {"redo": "none"}):
        other = Cohort(tmp_path / "bids", out, replace(bundle, segments=segments), selection=selection, **options)
        with pytest.raises(CohortError, match=r"cohort\.changed"):
            list(other)
        assert table.read_text() == before


def test_a_plan_says_what_the_run_does(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))
    with pytest.raises(CohortError, match=r"cohort\.changed"):
        Cohort(scans, out, tta="shifts").plan(with_time=False)
    (out / "a_seg.nii.gz").unlink()
    head = phantoms.head()
    phantoms.write_nifti(replace(head, array=head.array + 200), scans / "b.nii.gz")
    (scans / "c.nii.gz").rename(scans / "C.nii.gz")
    plan = Cohort(scans, out).plan(with_time=False)
    assert {one.case.key: one.is_done for one in plan.cases} == {"a": False, "C": True}
    assert [(one.key, one.code) for one in plan.refused] == [("b", "output.exists")]
    run = Cohort(scans, out)
    assert {one.name: one.code for one in run} == {"a": "", "b": "output.exists", "c": ""}
    plan = Cohort(scans, out, redo="changed").plan(with_time=False)
    assert {one.case.key: one.is_done for one in plan.cases} == {"a": True, "b": False, "C": True}


def test_a_run_that_ends_because_its_model_changed_has_a_report(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(scans, tmp_path / "out")
    run = iter(cohort)
    assert next(run).name == "a"
    monkeypatch.setattr("napari_seg.cohort.used_models._STAMP_SECONDS", -1.0)
    monkeypatch.setattr("napari_seg.cohort.used_models.model_stamp", lambda bundle: ("other",))
    with pytest.raises(CohortError, match=r"cohort\.changed"):
        list(run)
    assert cohort.report is not None
    assert "a,done" in (tmp_path / "out" / "cases.csv").read_text()


def test_equal_headers_with_other_pixel_files_are_other_scans(tmp_path: Path, no_network: list[str]) -> None:
    out, scans = tmp_path / "out", tmp_path / "scans"
    for patient, value in (("a", 200), ("b", 300)):  # as registered scans are often stored
        folder = scans / patient
        folder.mkdir(parents=True)
        header = "ObjectType = Image\nNDims = 3\nDimSize = 8 6 4\nElementType = MET_SHORT\n"
        (folder / "scan.mhd").write_text(f"{header}ElementDataFile = scan.raw\n")
        (folder / "scan.raw").write_bytes(np.full((4, 6, 8), value, np.int16).tobytes())
        os.utime(folder / "scan.mhd", (315532800, 315532800))
    assert statuses(list(Cohort(scans / "a", out))) == {"scan": "done"}
    (other,) = Cohort(scans / "b", out)
    assert (other.status, other.code) == ("failed", "output.exists")
    (scans / "a" / "scan.mhd").touch()  # its files have new times, such as those of a copy
    assert statuses(list(Cohort(scans, out))) == {"scan": "done before", "b_scan": "done"}
    assert len(no_network) == 2


def test_a_kept_scan_with_another_fingerprint_is_read_whole_only_once(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans / "a.nii.gz", out))
    with Manifest.open(out) as manifest:
        manifest.change_case(1, {"fingerprint": "of an earlier version"})
    assert statuses(list(Cohort(scans / "a.nii.gz", out))) == {"a": "done before"}

    def fail(files: object) -> str:
        raise AssertionError("a scan was read whole")

    monkeypatch.setattr("napari_seg.cohort.scan_files.sha256_of", fail)
    assert statuses(list(Cohort(scans / "a.nii.gz", out))) == {"a": "done before"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_no_scan_is_segmented_for_a_place_outside_of_the_output_folder(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    list(Cohort(scans / "a.nii.gz", out))
    victim.write_text("mine")
    with Manifest.open(out) as manifest:
        (row,) = manifest.rows()
        theirs = {"labels": {**row.outputs["labels"].to_record(), "path": "../victim"}}
        manifest.change_case(row.id, {"outputs": theirs})
    with pytest.raises(CohortError, match=r"cohort\.manifest"):
        list(Cohort(scans, out, redo="all"))
    assert victim.read_text() == "mine"
    assert no_network == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_in_the_place_of_a_folder_of_results_is_named_before_the_run(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (elsewhere, out, scans / "sub"):
        folder.mkdir()
    (scans / "b.nii.gz").rename(scans / "sub" / "b.nii.gz")
    link, selection = out / "sub", Selection(layout="mirror")

    def cohort() -> Cohort:
        return Cohort(scans, out, selection=selection)

    link.symlink_to(elsewhere)
    for refused in (cohort().plan, lambda **_: list(cohort())):
        with pytest.raises(OutputError, match=rf"output\.folder: {re.escape(str(link))} is a link"):
            refused(with_time=False)
    assert no_network == []
    link.unlink()
    results = iter(cohort())
    first = next(results)
    link.symlink_to(elsewhere)  # while the run goes on, it costs the cases below it
    assert {one.name: one.code for one in (first, *results)} == {"a": "", "c": "", "sub/b": "output.folder"}
    assert not list(elsewhere.iterdir())


def test_a_second_run_at_the_same_time_is_refused_unless_both_join(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out = tmp_path / "out"
    first = iter(Cohort(scans, out))
    next(first)
    for join in (False, True):
        with pytest.raises(CohortError, match="this process works in") as caught:
            list(Cohort(scans, out, join=join))
        assert caught.value.code == "cohort.locked"
    assert [result.status for result in first] == ["done", "done"]
    out = tmp_path / "shared"
    first = iter(Cohort(scans, out, join=True))
    assert next(first).name == "a"  # the next one is claimed, too
    second = iter(Cohort(scans, out, join=True))
    assert statuses([next(second), next(second)]) == {"a": "done before", "c": "done"}
    assert statuses([next(first)]) == {"b": "done"}
    assert statuses(list(second)) == {"b": "done before"}  # it waits for what the other has
    assert statuses(list(first)) == {"c": "done before"}
    assert names(out) == sorted([f"{n}_{f}" for n in "abc" for f in FILES] + OF_THE_RUN)


def test_a_joined_run_takes_no_result_of_another_scan_for_its_own(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_seg.cohort.loop._JOIN_SECONDS", 0.0)
    out, other, head = tmp_path / "out", tmp_path / "other", phantoms.head()
    other.mkdir()
    for name in ("a", "b", "c"):
        phantoms.write_nifti(replace(head, array=head.array + 200), other / f"{name}.nii.gz")
    first = iter(Cohort(scans, out, join=True))
    ours, theirs = [next(first)], []  # b is claimed, too
    for result in (second := iter(Cohort(other, out, join=True))):
        theirs.append(result)
        if result.name == "c":
            ours += first
    assert not list(second)
    assert {one.name: one.code for one in ours} == {"a": "", "b": "", "c (2)": "output.exists"}
    assert {one.name: one.code for one in theirs} == {"a (2)": "output.exists", "c": "", "b (2)": "output.exists"}
    assert not any(one.is_earlier for one in (*ours, *theirs))


RUNNER = """
import sys, time
from pathlib import Path
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.runners import Runner
from napari_seg.cohort.select import Selection
out = Path(sys.argv[1])
with Manifest.open(out) as manifest, Runner(out, manifest) as runner:
    number = manifest.add_case("a", {"state": "waiting"})
    manifest.claim(number, runner.id, 0)
    (runner.staging(number, 1) / "a_seg.nii.gz").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_taken_over(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        with pytest.raises(CohortError, match=f"process {process.pid} on"):
            list(Cohort(scans, out))
        process.kill()
        process.wait()
    assert (out / ".napari-seg").is_dir()
    assert statuses(list(Cohort(scans, out))) == dict.fromkeys("abc", "done")
    assert names(out) == sorted([f"{n}_{f}" for n in "abc" for f in FILES] + OF_THE_RUN)


def test_a_run_of_another_machine_is_dead_if_it_gives_no_sign_of_life(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Manifest.open(out) as manifest:
        with monkeypatch.context() as patch:
            patch.setattr("socket.gethostname", lambda: "elsewhere")
            patch.setattr(runners, "machine", lambda: "another")
            patch.setattr(runners, "_BEAT_SECONDS", 0.2)
            runner = Runner(out, manifest).__enter__()
        monkeypatch.setattr(runners, "_WATCH_SECONDS", 0.1)
        monkeypatch.setattr(runners, "DEAD_SECONDS", 1.0)
        with pytest.raises(CohortError, match="on elsewhere"):
            list(Cohort(scans, out))
        runner._has_ended.set()  # it was killed
        runner._lock.release(force=True)
        assert statuses(list(Cohort(scans, out))) == dict.fromkeys("abc", "done")
        assert not runner.folder.exists()
        number = next(manifest.rows()).id
        with pytest.raises(CohortError, match=r"cohort\.taken_over"):  # it was only asleep
            manifest.claim(number, runner.id, 1)


def test_a_case_whose_worker_dies_is_tried_once_more_alone(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[tuple[str, bool]] = []

    def run(self: Any, work: Any, **callbacks: Any) -> Any:
        tries.append((work.case.name, work.is_alone))
        if work.case.name == "a" or (work.case.name == "b" and not work.is_alone):
            return module.Failed(work.number, WorkerDied("environment.ended", "it died"), is_crash=True)
        return real(self, work, **callbacks)

    import napari_seg.cohort.workers as module

    real = module.CaseWorker.run
    monkeypatch.setattr(module.CaseWorker, "run", run)
    results = list(Cohort(scans, tmp_path / "out"))
    assert tries == [("a", False), ("b", False), ("c", False), ("a", True), ("b", True)]
    assert {result.name: result.code for result in results} == {"c": "", "a": "environment.ended", "b": ""}


def test_an_error_of_all_scans_ends_the_run_and_one_of_a_scan_does_not(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, NapariSegError] = {
        "a": LocaliseError("localise.failed", "no head"),
        "b": EnvironmentFault("environment.device", "there is no GPU"),
    }

    def fail(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        raise errors[volume.name]

    monkeypatch.setattr("napari_seg.inference.segment.segment", fail)
    run = iter(Cohort(scans, tmp_path / "out"))
    assert next(run).code == "localise.failed"
    with pytest.raises(EnvironmentFault, match="there is no GPU"):
        next(run)
    with Manifest.open(tmp_path / "out", read_only=True) as manifest:
        assert {row.name: row.state for row in manifest.rows()} == {"a": "failed", "b": "waiting", "c": "waiting"}


def test_an_output_folder_that_goes_away_ends_the_run_and_can_be_continued(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    run = iter(Cohort(scans, tmp_path / "out"))
    assert next(run).name == "a"
    (tmp_path / "out").rename(tmp_path / "away")
    with pytest.raises(OutputError, match="is gone") as caught:
        list(run)
    assert caught.value.code == "output.folder"
    assert not (tmp_path / "out").exists()
    later = list(Cohort(scans, tmp_path / "away"))
    assert {result.name: result.is_earlier for result in later} == {"a": True, "b": False, "c": False}
    assert names(tmp_path / "away") == sorted([f"{n}_{f}" for n in "abc" for f in FILES] + OF_THE_RUN)


def test_stopping_once_finishes_what_runs_and_the_next_run_goes_on(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    cohort = Cohort(scans, tmp_path / "out")
    run = iter(cohort)
    first = [next(run)]
    cohort.stop.request()
    with pytest.raises(Cancelled):
        first.extend(run)
    assert [result.name for result in first] == ["a", "b"]  # b was on its way
    assert statuses(list(Cohort(scans, tmp_path / "out"))) == {"a": "done before", "b": "done before", "c": "done"}
    cohort = Cohort(scans, tmp_path / "other")
    run = iter(cohort)
    next(run)
    cohort.stop.request()
    cohort.stop.request()
    with pytest.raises(Cancelled):
        next(run)
    with Manifest.open(tmp_path / "other", read_only=True) as manifest:
        assert manifest.counts() == {"waiting": 2, "running": 0, "moving": 0, "done": 1, "failed": 0, "skipped": 0}
    assert not (tmp_path / "other" / ".napari-seg").exists()


def test_real_workers_give_the_same_files_whatever_their_number(scans: Path, tmp_path: Path) -> None:
    found = {}
    for workers in (1, 2):
        results = list(Cohort(scans, tmp_path / str(workers), workers=workers, device="cpu"))
        assert [result.status for result in results] == ["done"] * 3, results
        found[workers] = content(tmp_path / str(workers))
    assert found[1] == found[2]
    assert len(found[1]) == 9


def test_a_full_disk_ends_the_run(tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    real, opened = napari_seg.evaluation.overlay.draw_overlay, []

    def draw(volume: Volume, found: Segmentation, path: Path, title: str = "") -> None:
        if title == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(volume, found, path, title)

    monkeypatch.setattr(napari_seg.evaluation.overlay, "draw_overlay", draw)
    with pytest.raises(OutputError) as caught:
        opened.extend(result.name for result in Cohort(tmp_path, tmp_path / "out"))
    assert caught.value.code == "output.disk_full"
    assert opened == ["a"]
    assert [name for name in names(tmp_path / "out") if "a_seg" not in name] == sorted(OF_THE_RUN)


def test_an_empty_manifest_is_started_again_and_results_stay(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))
    before = content(out)
    (out / "manifest.sqlite").write_bytes(b"")
    assert not any(case.is_done for case in Cohort(scans, out).plan(with_time=False).cases)
    assert {result.code for result in Cohort(scans, out)} == {"output.exists"}
    assert content(out) == before
    (out / "manifest.sqlite").write_bytes(b"")
    assert statuses(list(Cohort(scans, out, overwrite=True))) == dict.fromkeys("abc", "done")


def test_a_run_without_previews_writes_none(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    results = list(Cohort(scans, out, preview=False))
    assert [result.overlay for result in results] == [None] * 3
    assert sorted(content(out)) == [f"{name}_{end}" for name in "abc" for end in FILES if not end.endswith("png")]
    assert "overlay_sha256" not in json.loads((out / "a_seg.json").read_text())
    assert statuses(list(Cohort(scans, out, preview=False))) == dict.fromkeys("abc", "done before")
    with pytest.raises(CohortError, match="preview was left out and is written"):
        list(Cohort(scans, out))
    assert statuses(list(Cohort(scans, out, redo="changed"))) == dict.fromkeys("abc", "done")
    assert (out / "a_seg.png").is_file()
    (out / "manifest.sqlite").unlink()
    list(Cohort(scans, out, preview=False, overwrite=True))
    assert not (out / "a_seg.png").exists()  # it showed other labels


def test_a_format_that_cannot_hold_a_result_costs_nothing_else(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OutputError("output.no_dicom", "the headers lack what it needs")

    phantoms.write_series(phantoms.head(), tmp_path / "series")
    monkeypatch.setattr(napari_seg.formats.dicom.seg_write, "write_dicom_seg", refuse)
    (result,) = Cohort(tmp_path / "series", tmp_path / "out", also=("seg", "nrrd"))
    name = "MR_T1w_sagittal_003"
    assert (result.status, [notice.code for notice in result.notices]) == ("done", ["output.no_dicom"])
    assert f"{name}_seg.dcm is left out" in (tmp_path / "out" / f"{name}_seg.json").read_text()
    assert f"{name}_seg.dcm" not in names(tmp_path / "out")
    assert f"{name}.seg.nrrd" in names(tmp_path / "out")


def test_an_output_that_is_closed_or_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"output\.folder"):
            list(Cohort(tmp_path / "file", out))
        with (
            pytest.raises(OutputError, match=r"output\.not_written"),
            verified_write(out / "x.json", ".json") as hidden,
        ):
            hidden.write_text("{}")


def test_records_and_results_name_no_folder_above_the_inputs(tmp_path: Path, no_network: list[str]) -> None:
    patient = tmp_path / "CANARY_Tweety_CAN4711"
    phantoms.write_series(phantoms.head(), patient / "Tweety visit" / "dicom")
    (patient / "nifti").mkdir()
    phantoms.write_nifti(phantoms.head(), patient / "nifti" / "case.nii.gz")
    for number, source in enumerate((tmp_path, patient, patient / "nifti" / "case.nii.gz")):
        out = tmp_path.with_name(f"{tmp_path.name}_{number}") / "out"
        found = list(Cohort(source, out))
        told = json.dumps([result.as_dict() for result in found]) + " ".join(names(out))
        told += " ".join(path.read_text() for path in out.glob("*.json"))
        assert not [canary for canary in phantoms.CANARIES if canary.lower() in told.lower()]
        assert str(tmp_path) not in told.replace(str(out), "")
        with (out / "manifest.sqlite").open("rb") as file:
            told += file.read().decode("latin-1")
        assert not [canary for canary in phantoms.CANARIES if canary.lower() in told.lower()]


def test_names_fit_a_file_system(tmp_path: Path, no_network: list[str]) -> None:
    for name in ("\u8133" * 80 + "1", "\u8133" * 80 + "2"):
        phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    found = list(Cohort(tmp_path, tmp_path / "out", also=("nrrd",)))
    assert [result.status for result in found] == ["done", "done"]
    assert len({result.name for result in found}) == 2
    assert [case.name for case in find_cases([tmp_path])[0]] == [result.name for result in found]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_odd_names_cost_no_other_scan(tmp_path: Path, no_network: list[str]) -> None:
    (tmp_path / "scans").mkdir()
    odd = [b"M\xfcller.nii.gz", b"red\x1b[31m.nii.gz", b"two\nlines.nii.gz", "\u5c71.nii.gz".encode()]
    good = phantoms.write_nifti(phantoms.head(), tmp_path / "good.nii.gz").read_bytes()
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path / "scans") + b"/" + name)).write_bytes(good)
    (tmp_path / "scans" / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "scans" / "deep_seg.nii.gz").write_bytes(good)
    (tmp_path / "scans" / "deep_seg.json").write_text("[" * 100_000)
    _, faults = find_cases([tmp_path / "scans"])
    found = {result.name: result.status for result in Cohort(tmp_path / "scans", tmp_path / "out")}
    assert faults == []
    assert found == {
        "M\u00fcller": "done",
        "red_[31m": "done",
        "two lines": "done",
        "\u5c71": "done",
        "loop": "failed",
        "deep_seg": "done",
    }
    for path in (tmp_path / "out").glob("*.json"):
        json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode()


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    assert InputError("file.odd", "M\udcfcller\x1b[2J\x07").message == "M\u00fcller_[2J_"
    assert str(Notice("file.odd", "\ud800\x9b")) == "file.odd: __"


def test_a_run_ends_with_a_report_of_all_cases(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    cohort = Cohort(scans / "a.nii.gz", out)
    list(cohort)
    assert cohort.report is None  # one case needs none
    assert names(out) == sorted([*(f"a_{f}" for f in FILES), "manifest.sqlite"])
    cohort = Cohort(scans, out)
    list(cohort)
    assert (cohort.report, cohort.report_fault) == (out / "report.html", None)
    lines = (out / "volumes_wide.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["name", "a", "b", "c"]


def test_a_stopped_run_has_a_report_and_one_that_ends_at_once_has_none(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    for requests in (1, 2):
        cohort = Cohort(scans, tmp_path / f"out{requests}")
        run = iter(cohort)
        next(run)
        for _ in range(requests):
            cohort.stop.request()
        with pytest.raises(Cancelled):
            list(run)
        assert (cohort.report is not None) == (requests == 1)


def test_a_report_that_can_not_be_written_costs_no_result(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "cases.csv").write_text("mine")
    cohort = Cohort(scans, out)
    assert statuses(list(cohort)) == {"a": "done", "b": "done", "c": "done"}
    assert cohort.report is None
    assert cohort.report_fault is not None
    assert cohort.report_fault.code == "output.exists"
    assert (out / "cases.csv").read_text() == "mine"

    def fail(manifest: Manifest) -> Path:
        raise ValueError("private")

    monkeypatch.setattr("napari_seg.cohort.cohort.write_report", fail)
    assert len(list(cohort)) == 3
    assert cohort.report_fault.code == "internal.error"
    assert "private" not in cohort.report_fault.message


def test_a_redo_that_fails_keeps_the_earlier_result(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans / "a.nii.gz", out))
    before = content(out)

    def fail(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        raise LocaliseError("localise.failed", "no head")

    with monkeypatch.context() as patch:
        patch.setattr("napari_seg.inference.segment.segment", fail)
        (result,) = Cohort(scans / "a.nii.gz", out, redo="changed", tta="shifts")
    assert (result.name, result.code) == ("a (2)", "localise.failed")
    assert "the earlier result is kept" in result.message
    edited = phantoms.write_nifti(phantoms.head(), out / "a_seg.nii.gz").read_bytes()
    (result,) = Cohort(scans / "a.nii.gz", out, redo="changed", tta="shifts")
    assert (result.name, result.code) == ("a (2)", "output.exists")
    assert (out / "a_seg.nii.gz").read_bytes() == edited
    assert statuses(list(Cohort(scans / "a.nii.gz", out))) == {"a": "done before"}
    assert content(out) == before | {"a_seg.nii.gz": edited}


def test_a_file_that_can_not_be_looked_at_ends_no_run(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(scans, tmp_path / "out")
    assert len(cohort.cases) == 3
    real = os.stat

    def stale(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("b.nii.gz") and "scans" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", stale)
    monkeypatch.setattr("napari_seg.inference.segment.segment", lambda *args, **options: 1 / 0)
    assert {result.name: result.code for result in cohort} == dict.fromkeys("abc", "internal.error")
