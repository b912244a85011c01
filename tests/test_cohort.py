"""Results of many scans: all files of a case or none, whatever ends a run, and names that give nobody away."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

import napari_seg.evaluation.overlay
import napari_seg.formats.dicom.seg_write
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort import results
from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.naming import is_result
from napari_seg.cohort.results import OutputFolder
from napari_seg.cohort.runner import run_cohort
from napari_seg.errors import InputError, Notice, OutputError
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.read import read
from napari_seg.formats.record import read_record
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume

FILES = ["case.seg.nrrd", "case_seg.json", "case_seg.nii.gz", "case_seg.png", "case_seg_entropy.nii.gz"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans are segmented by a threshold, and the pictures are some bytes."""

    def threshold(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        return segmentation(volume, 100)

    def draw(volume: Volume, found: Segmentation, path: Path, title: str = "") -> None:
        path.write_bytes(os.urandom(8))

    monkeypatch.setattr("napari_seg.inference.segment.segment", threshold)
    monkeypatch.setattr(napari_seg.evaluation.overlay, "draw_overlay", draw)


def segmentation(volume: Volume, level: int) -> Segmentation:
    labels = (volume.array[0] > level).astype(np.uint8)
    maps = ConfidenceMaps(labels, labels)
    return Segmentation(labels, volume.grid, (Segment(1, "bright", (255, 0, 0)),), {1: 0.9}, confidence_maps=maps)


def one_case(folder: Path) -> tuple[Case, Volume]:
    path = phantoms.write_nifti(phantoms.head(), folder / "case.nii.gz")
    (case,), _ = find_cases([path])
    return case, case.scan.read()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Killed(BaseException):
    """Stands for a signal that nothing can catch."""


def write(case: Case, volume: Volume, level: int, out: Path, bundle: Bundle, also: tuple = ("nrrd",)) -> None:
    with OutputFolder(out) as output:
        output.write_case(case, volume, segmentation(volume, level), bundle, also)


def killed(case: Case, volume: Volume, out: Path, bundle: Bundle, last: int) -> None:
    """A run that is killed at a rename, and could undo or remove nothing any more."""
    with pytest.MonkeyPatch.context() as patch:
        renames_until(patch, last, Killed(), out)
        patch.setattr(results, "_move_back", lambda *args: None)
        patch.setattr(results.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            write(case, volume, 300, out, bundle)


def renames_until(monkeypatch: pytest.MonkeyPatch, last: int, error: BaseException, out: Path) -> None:
    """Lets renames of and to the results fail from the last one on."""
    real, count = os.replace, 0

    def rename(source: Any, target: Any) -> None:
        nonlocal count
        if Path(target).parent == out or Path(source).parent == out:
            count += 1
            if count == last:
                raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)


def test_a_replacement_that_fails_at_any_rename_keeps_the_files_that_were_there(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    write(case, volume, 100, out, bundle)
    before = content(out)
    assert sorted(before) == sorted([*FILES, "case_seg_confidence.nii.gz"])
    for last in range(1, 13):
        with monkeypatch.context() as patch:
            renames_until(patch, last, PermissionError(errno.EACCES, "Permission denied"), out)
            with pytest.raises(OutputError) as caught:
                write(case, volume, 300, out, bundle)
        assert caught.value.code == "output.not_written"
        assert content(out) == before, last
        assert names(out) == sorted(before), last


def test_a_first_result_that_fails_at_any_rename_leaves_nothing(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    for last in range(1, 7):
        with monkeypatch.context() as patch:
            renames_until(patch, last, KeyboardInterrupt(), out)
            with pytest.raises(KeyboardInterrupt):
                write(case, volume, 300, out, bundle)
        assert names(out) == [], last


@pytest.mark.parametrize("replaces", [False, True])
def test_a_run_killed_at_any_rename_is_undone_by_the_next(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    if replaces:
        write(case, volume, 100, out, bundle)
    else:
        out.mkdir()
    before = content(out)
    for last in range(1, 13 if replaces else 7):
        killed(case, volume, out, bundle, last)
        assert any(name.startswith(".unfinished-") for name in names(out))
        if last % 2:  # killed once more, while it is undone
            with monkeypatch.context() as patch, suppress(Killed):
                renames_until(patch, 2, Killed(), out)
                OutputFolder(out).__enter__()
        with OutputFolder(out) as output:
            output.refuse_others_files(case)
        assert content(out) == before, last
        assert names(out) == sorted(before), last
    write(case, volume, 300, out, bundle)
    assert np.array_equal(read(out / "case_seg.nii.gz").array, volume.array > 300)


def test_what_a_person_changed_after_a_killed_run_stays(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    killed(case, volume, out, bundle, 3)
    edited = phantoms.write_nifti(volume, out / "case_seg.nii.gz").read_bytes()
    with OutputFolder(out) as output, pytest.raises(OutputError, match=r"output\.exists"):
        output.refuse_others_files(case)
    assert content(out) == {"case_seg.nii.gz": edited}


def test_a_running_run_keeps_its_hidden_folder_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from napari_seg.cohort.results import OutputFolder\n"
        "with OutputFolder(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        (hidden,) = tmp_path.iterdir()
        with OutputFolder(tmp_path):
            assert hidden.is_dir()
        process.kill()
        process.wait()
    assert names(tmp_path) == [hidden.name]
    with OutputFolder(tmp_path):
        assert not hidden.exists()
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_cohort
case, volume = test_cohort.one_case(Path(sys.argv[2]).parent)
real, out, count = os.replace, Path(sys.argv[2]), 0
def rename(source, target):
    global count
    count += out in (Path(source).parent, Path(target).parent)
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = rename
test_cohort.write(case, volume, 300, out, test_cohort.read_bundle(), ())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing kills a process like this here")
def test_a_run_that_the_system_kills_between_two_renames_is_undone(tmp_path: Path, bundle: Bundle) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    write(case, volume, 100, out, bundle, ())
    before = content(out)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out), "9"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert content(out) != before
    with OutputFolder(out) as output:
        output.refuse_others_files(case)
    assert content(out) == before
    assert names(out) == sorted(before)


def test_what_a_run_of_an_earlier_version_left_is_undone(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    write(case, volume, 300, out, bundle, ())
    hidden = out / ".unfinished-abc"
    hidden.mkdir()
    for name in ("case_seg.json", "case_seg.png"):  # killed with the labels in place, and nothing that tells whose
        (out / name).rename(hidden / name)
    for path in out.glob("case_seg_*"):
        path.unlink()
    with OutputFolder(out) as output:
        output.refuse_others_files(case)
    assert names(out) == []


def test_a_folder_in_the_way_is_never_moved(tmp_path: Path, bundle: Bundle, no_network: None) -> None:
    (case, volume), out = one_case(tmp_path), tmp_path / "out"
    (out / "case_seg.png").mkdir(parents=True)
    (out / "case_seg.png" / "mine").touch()
    with pytest.raises(OutputError, match=r"case_seg\.png is a folder"):
        write(case, volume, 300, out, bundle)
    assert [str(path.relative_to(out)) for path in out.rglob("*")] == ["case_seg.png", "case_seg.png/mine"]


def test_a_full_disk_ends_the_run(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    cases, _ = find_cases([tmp_path])
    real, opened = napari_seg.evaluation.overlay.draw_overlay, []

    def draw(volume: Volume, found: Segmentation, path: Path, title: str = "") -> None:
        if title == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(volume, found, path, title)

    monkeypatch.setattr(napari_seg.evaluation.overlay, "draw_overlay", draw)
    with pytest.raises(OutputError) as caught:
        run_cohort(cases, tmp_path / "out", bundle, on_case=lambda number, name: opened.append(name))
    assert caught.value.code == "output.disk_full"
    assert opened == ["a", "b"]
    assert [name for name in names(tmp_path / "out") if "a_seg" not in name] in ([], ["b_failed.json"])


def test_a_format_that_cannot_hold_a_result_costs_nothing_else(
    tmp_path: Path, bundle: Bundle, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OutputError("output.no_dicom", "the headers lack what it needs")

    phantoms.write_series(phantoms.head(), tmp_path / "series")
    monkeypatch.setattr(napari_seg.formats.dicom.seg_write, "write_dicom_seg", refuse)
    (result,) = run_cohort(find_cases([tmp_path / "series"])[0], tmp_path / "out", bundle, also=["seg", "nrrd"])
    name = "MR_T1w_sagittal_003"
    assert (result.status, [notice.code for notice in result.notices]) == ("done", ["output.no_dicom"])
    assert f"{name}_seg.dcm is left out" in (tmp_path / "out" / f"{name}_seg.json").read_text()
    assert f"{name}_seg.dcm" not in names(tmp_path / "out")
    assert f"{name}.seg.nrrd" in names(tmp_path / "out")


def test_a_failure_lies_in_the_folder_until_the_case_is_done(tmp_path: Path, bundle: Bundle, no_network: None) -> None:
    path, out = tmp_path / "scans" / "case.nii.gz", tmp_path / "out"
    path.parent.mkdir()
    path.write_bytes(b"no scan")
    failed = run_cohort(find_cases([path.parent])[0], out, bundle)
    assert names(out) == ["case_failed.json"]
    record = json.loads((out / "case_failed.json").read_text())
    assert {"status": "failed", "code": failed[0].code, "source": "case.nii.gz"}.items() <= record.items()
    phantoms.write_nifti(phantoms.head(), path)
    assert run_cohort(find_cases([path.parent])[0], out, bundle)[0].status == "done"
    assert "case_failed.json" not in names(out)
    (out / "case_failed.json").write_text("mine")
    path.write_bytes(b"no scan")
    run_cohort(find_cases([path.parent])[0], out, bundle)
    assert (out / "case_failed.json").read_text() == "mine"


def test_an_output_that_is_closed_or_no_folder_is_one_clear_error(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"output\.folder"):
            run_cohort([], out, bundle)
        with (
            pytest.raises(OutputError, match=r"output\.not_written"),
            verified_write(out / "x.json", ".json") as hidden,
        ):
            hidden.write_text("{}")


def test_records_and_results_name_no_folder_above_the_inputs(tmp_path: Path, bundle: Bundle, no_network: None) -> None:
    patient = tmp_path / "CANARY_Tweety_CAN4711"
    phantoms.write_series(phantoms.head(), patient / "Tweety visit" / "dicom")
    (patient / "nifti").mkdir()
    phantoms.write_nifti(phantoms.head(), patient / "nifti" / "case.nii.gz")
    for number, source in enumerate((tmp_path, patient, patient / "nifti" / "case.nii.gz")):
        out = tmp_path.with_name(f"{tmp_path.name}_{number}") / "out"
        found = run_cohort(find_cases([source])[0], out, bundle)
        told = json.dumps([result.as_dict() for result in found]) + " ".join(names(out))
        told += " ".join(path.read_text() for path in out.glob("*.json"))
        assert not [canary for canary in phantoms.CANARIES if canary.lower() in told.lower()]
        assert str(tmp_path) not in told.replace(str(out), "")
    records = [json.loads(path.read_text()) for path in tmp_path.parent.rglob("case_seg.json")]
    assert len({record["identity"] for record in records}) == len(records)  # the same scan, another salt


def test_names_follow_from_the_place_alone(tmp_path: Path) -> None:
    for file in (
        "site_a/T1.nii.gz",
        "site_b/T1.nii.gz",
        "site_b/other/case.nii.gz",
        "sub-01/ses-1/anat/T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
        "flat/case.nii.gz",
        "set/imagesTr/case_1.nii.gz",
        "site_c/images/T1.nii.gz",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        phantoms.write_nifti(phantoms.head(), tmp_path / file)

    def found(*inputs: Path) -> dict[str, str]:
        return {Path(case.place).relative_to(tmp_path).as_posix(): case.name for case in find_cases(inputs)[0]}

    together = found(tmp_path)
    assert together == {
        "site_a/T1.nii.gz": "site_a_T1",
        "site_b/T1.nii.gz": "site_b_T1",
        "site_b/other/case.nii.gz": "site_b_other_case",
        "sub-01/ses-1/anat/T1w.nii.gz": "sub-01_ses-1_anat_T1w",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz": "sub-01_ses-1_T2w",
        "flat/case.nii.gz": "flat_case",
        "set/imagesTr/case_1.nii.gz": "set_case_1",
        "site_c/images/T1.nii.gz": "site_c_T1",
    }
    assert found(tmp_path / "set") == {"set/imagesTr/case_1.nii.gz": "case_1"}
    t1 = {file: name for file, name in together.items() if file.endswith(("T1.nii.gz", "T1w.nii.gz"))}
    assert found(*(tmp_path / file for file in t1)) == t1
    for file, name in t1.items():
        assert found(tmp_path / file) == {file: name}
        assert found((tmp_path / file).parent)[file] == name
    assert found(tmp_path / "site_b", tmp_path / "site_a")["site_a/T1.nii.gz"] == "site_a_T1"
    both = {"flat/case.nii.gz": "case", "site_b/other/case.nii.gz": "other_case"}
    assert both.items() <= found(tmp_path / "flat", tmp_path / "site_b", tmp_path / "site_a" / "T1.nii.gz").items()
    assert found(tmp_path / "flat") == {"flat/case.nii.gz": "case"}
    assert found(tmp_path / "flat" / "case.nii.gz", tmp_path) == together


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_has_its_own_name_and_the_identity_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "store" / "3f").mkdir(parents=True)
    (tmp_path / "set" / "site_a").mkdir(parents=True)
    file = phantoms.write_nifti(phantoms.head(), tmp_path / "store" / "3f" / "3fa9.nii.gz")
    (tmp_path / "set" / "site_a" / "T1.nii.gz").symlink_to(file)
    (case,), _ = find_cases([tmp_path / "set"])
    assert (case.name, case.source, case.place) == ("site_a_T1", "site_a/T1.nii.gz", str(file.resolve()))


def test_names_fit_a_file_system(tmp_path: Path, bundle: Bundle, no_network: None) -> None:
    for name in ("\u8133" * 80 + "1", "\u8133" * 80 + "2"):
        phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    found = run_cohort(find_cases([tmp_path])[0], tmp_path / "out", bundle, also=["nrrd"])
    assert [result.status for result in found] == ["done", "done"]
    assert len({result.name for result in found}) == 2
    assert [case.name for case in find_cases([tmp_path])[0]] == [result.name for result in found]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_odd_names_cost_no_other_scan(tmp_path: Path, bundle: Bundle, no_network: None) -> None:
    (tmp_path / "scans").mkdir()
    odd = [b"M\xfcller.nii.gz", b"red\x1b[31m.nii.gz", b"two\nlines.nii.gz", "\u5c71.nii.gz".encode()]
    good = phantoms.write_nifti(phantoms.head(), tmp_path / "good.nii.gz").read_bytes()
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path / "scans") + b"/" + name)).write_bytes(good)
    (tmp_path / "scans" / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "scans" / "deep_seg.nii.gz").write_bytes(good)
    (tmp_path / "scans" / "deep_seg.json").write_text("[" * 100_000)
    cases, faults = find_cases([tmp_path / "scans"])
    found = {result.name: result.status for result in run_cohort(cases, tmp_path / "out", bundle)}
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


def test_a_record_that_is_none_of_ours_is_passed_over(tmp_path: Path) -> None:
    scan = phantoms.write_nifti(phantoms.head(), tmp_path / "case_seg.nii.gz")
    record = tmp_path / "case_seg.json"
    for text in (b'{"a":' * 200_000, b"\xff\xfe", b"[]", b'{"program": 3}', b"{", b"9" * 10_000):
        record.write_bytes(text)
        assert read_record(record) is None
        assert not is_result(scan)
    record.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(record)  # reading it would wait for ever
        assert not is_result(scan)


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    assert InputError("file.odd", "M\udcfcller\x1b[2J\x07").message == "M\u00fcller_[2J_"
    assert str(Notice("file.odd", "\ud800\x9b")) == "file.odd: __"
