"""Label maps of a folder are accepted with their scans; one that fails does not stop the others."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.main import main
from napari_seg.cohort.outputs import sha256_of
from napari_seg.errors import InputError, OutputError
from napari_seg.formats.nifti import write_nifti
from napari_seg.formats.record import record_path, write_record
from napari_seg.learning import accept_files
from napari_seg.learning.accept_files import (
    AcceptedFile,
    AcceptOptions,
    CorrectedLabels,
    accept_file,
    accept_or_fault,
    find_corrected,
)
from napari_seg.learning.training_set import read_training_set
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def cohort(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three scans, what a model found in them, and a correction of each."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    (tmp_path / "scans").mkdir()
    for number, name in enumerate(NAMES):
        scan = phantoms.write_nifti(replace(head, array=head.array + number), tmp_path / "scans" / f"{name}.nii.gz")
        for folder, size in (("results", 3), ("corrected", 4)):
            write_labels(head, tmp_path / folder / f"{name}_seg.nii.gz", scan, size)
    return tmp_path


def write_labels(head: Volume, path: Path, scan: Path, size: int) -> None:
    """Write labels with the record of a run; those that are as the model made them have size 3."""
    path.parent.mkdir(exist_ok=True)
    array = np.zeros(head.grid.shape, np.uint8)
    array[4 : 4 + size, 5:12, 3:6] = 1
    write_nifti(Segmentation(array, head.grid, (Segment(1, "Left", (255, 0, 0)),)), path)
    segments = [{"label": 1, "name": "Left", "color": [255, 0, 0]}]
    made = {"source": scan.name, "input_sha256": sha256_of([scan]), "bundle": {"name": "balls", "version": "1"}}
    write_record(record_path(path), {**made, "segments": segments, "sha256": sha256_of([path]) if size == 3 else "0"})


def accepted(root: Path, *labels: str, **options: object) -> dict[str, str]:
    """Accept label maps and return name -> state, or the code of an error."""
    before = root / "results" if labels == ("corrected",) else None
    chosen = AcceptOptions(**options)
    found = find_corrected([root / one for one in labels], root / "scans", chosen, before)
    results = [accept_or_fault(one, root / "set", chosen) for one in found]
    return {one.name: one.code or one.state for one in results}


def test_corrected_results_are_accepted_with_what_was_changed(cohort: Path) -> None:
    assert set(accepted(cohort, "corrected").values()) == {"accepted"}
    cases = read_training_set(cohort / "set").cases
    assert [case.part for case in cases] == ["training", "validation", "training"]
    assert {case.provenance.model for case in cases} == {("balls", "1")}
    assert {case.provenance.changes["Left"].added for case in cases} == {21}


def test_results_that_nobody_corrected_are_left_out_unless_they_were_checked(cohort: Path) -> None:
    assert accepted(cohort, "results") == {f"{name}_seg.nii.gz": "left out" for name in NAMES}
    assert not (cohort / "set").exists()
    assert accepted(cohort, "results/a_seg.nii.gz", "results/b_seg.nii.gz") == {
        "a_seg.nii.gz": "accepted",
        "b_seg.nii.gz": "accepted",
    }, "named themselves"
    states = accepted(cohort, "results", with_uncorrected=True)
    assert [*states.values()] == ["unchanged", "unchanged", "accepted"]


def test_labels_that_equal_those_before_are_left_out(cohort: Path, head: Volume) -> None:
    """As another program, or a pass of corrections that changed nothing, writes them: the files differ."""
    path = cohort / "corrected" / "a_seg.nii.gz"
    write_labels(head, path, cohort / "scans" / "a.nii.gz", 3)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    assert accepted(cohort, "corrected") == {
        "a_seg.nii.gz": "left out",
        "b_seg.nii.gz": "accepted",
        "c_seg.nii.gz": "accepted",
    }
    assert accepted(cohort, "corrected", with_uncorrected=True)["a_seg.nii.gz"] == "accepted"


def test_labels_with_another_name_are_a_correction(cohort: Path, head: Volume) -> None:
    path = record_path(cohort / "corrected" / "a_seg.nii.gz")
    write_labels(head, cohort / "corrected" / "a_seg.nii.gz", cohort / "scans" / "a.nii.gz", 3)
    path.write_text(path.read_text().replace("Left", "Right").replace('"sha256"', '"other"'))
    assert accepted(cohort, "corrected")["a_seg.nii.gz"] == "accepted"


def test_copies_that_edit_did_not_change_are_left_out(cohort: Path) -> None:
    folders = [str(cohort / name) for name in ("results", "filled", "larger")]
    assert main(["edit", folders[0], "-o", folders[1], "--fill-holes"]) == 0
    assert set(accepted(cohort, "filled").values()) == {"left out"}
    assert main(["edit", folders[1], "-o", folders[2], "--dilate", "3"]) == 0
    assert set(accepted(cohort, "larger").values()) == {"accepted"}


def test_accepted_labels_are_unchanged_the_second_time(cohort: Path, head: Volume) -> None:
    accepted(cohort, "corrected")
    write_labels(head, cohort / "corrected" / "b_seg.nii.gz", cohort / "scans" / "b.nii.gz", 5)
    states = accepted(cohort, "corrected")
    assert [*states.values()] == ["unchanged", "accept.again", "unchanged"]
    assert [*accepted(cohort, "corrected", may_replace=True).values()] == ["unchanged", "accepted", "unchanged"]
    assert [case.revision for case in read_training_set(cohort / "set").cases] == [1, 2, 1]


def test_a_case_that_fails_does_not_stop_the_others(cohort: Path) -> None:
    (cohort / "scans" / "a.nii.gz").unlink()
    (cohort / "corrected" / "b_seg.nii.gz").write_text("no labels")
    assert accepted(cohort, "corrected") == {
        "a_seg.nii.gz": "accept.no_scan",
        "b_seg.nii.gz": "file.not_nifti",
        "c_seg.nii.gz": "accepted",
    }


def test_a_scan_is_known_by_its_files_whatever_its_name(cohort: Path) -> None:
    (cohort / "scans" / "a.nii.gz").rename(cohort / "scans" / "x.nii.gz")
    (cohort / "scans" / "b.nii.gz").rename(cohort / "scans" / "a.nii.gz")
    (found, other, _) = find_corrected([cohort / "corrected"], cohort / "scans", AcceptOptions())
    assert found.scan is not None
    assert found.scan.files[0].name == "x.nii.gz"
    assert other.scan is not None
    assert other.scan.files[0].name == "a.nii.gz"


def test_a_scan_of_the_name_with_other_files_is_refused(cohort: Path) -> None:
    (cohort / "scans" / "a.nii.gz").write_bytes((cohort / "scans" / "b.nii.gz").read_bytes())
    assert accepted(cohort, "corrected")["a_seg.nii.gz"] == "accept.other_scan"


def test_labels_without_a_record_are_found_by_their_names(cohort: Path) -> None:
    for name in NAMES:
        record_path(cohort / "corrected" / f"{name}_seg.nii.gz").unlink()
        record_path(cohort / "results" / f"{name}_seg.nii.gz").unlink()
        path = cohort / "corrected" / f"{name}_seg.nii.gz"
        path.rename(cohort / "scans" / path.name)  # beside their scans
    found = find_corrected([cohort / "scans"], cohort / "scans", AcceptOptions())
    assert [(one.name, one.scan and one.scan.files[0].name) for one in found] == [
        (f"{name}_seg.nii.gz", f"{name}.nii.gz") for name in NAMES
    ]


def test_nothing_to_accept_is_said(cohort: Path) -> None:
    (cohort / "empty").mkdir()
    with pytest.raises(InputError, match=r"input\.none"):
        find_corrected([cohort / "empty"], cohort / "scans", AcceptOptions())
    with pytest.raises(InputError, match=r"input\.none"):
        find_corrected([cohort / "corrected"], cohort / "empty", AcceptOptions())
    with pytest.raises(InputError, match=r"input\.missing"):
        find_corrected([cohort / "corrected"], cohort / "nowhere", AcceptOptions())


def test_the_command_prints_a_table_and_says_what_failed(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    (cohort / "corrected" / "b_seg.nii.gz").write_text("no labels")
    words = ["accept", *(str(cohort / one) for one in ("corrected", "scans")), "--into", str(cohort / "set")]
    words += ["--before", str(cohort / "results")]
    assert main(words) == 3
    printed = capsys.readouterr().out
    assert "case0001" in printed
    assert "+21 -0" in printed
    assert "failed   b_seg.nii.gz: file.not_nifti" in printed
    assert "2 accepted, 0 unchanged, 1 failed" in printed
    assert main([*words, "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in printed] == ["unchanged", "failed", "unchanged"]
    assert printed[0]["changes"]["Left"]["added"] == 21
    assert main([words[0], str(cohort / "results"), *words[2:5]]) == 0
    assert "3 results are as the model made them and left out; --uncorrected" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words[:5], "--before", str(cohort / "results" / "a_seg.nii.gz")])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (KeyboardInterrupt(), ExitCode.CANCELLED, "run.cancelled"),
        (OutputError("output.disk_full", "the disk is full"), ExitCode.ENVIRONMENT, "output.disk_full"),
        (OSError(5, "Input/output error", "index.json"), ExitCode.ENVIRONMENT, "environment.system"),
        (RuntimeError("unexpected"), None, "internal.error"),
    ],
)
def test_what_was_accepted_before_an_early_end_is_printed(
    cohort: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: ExitCode | None,
    code: str,
) -> None:
    def accept_one(one: CorrectedLabels, *others: Any) -> AcceptedFile:
        if one.name.startswith("b"):
            raise error
        return accept_file(one, *others)

    monkeypatch.setattr(accept_files, "accept_or_fault", accept_one)
    words = ["accept", *(str(cohort / one) for one in ("corrected", "scans")), "--into", str(cohort / "set")]
    for is_json in (False, True):
        with pytest.raises(RuntimeError) if status is None else nullcontext():
            assert main([*words, *["--json"] * is_json]) == status
        printed = capsys.readouterr().out
        if is_json:
            (first, last) = json.loads(printed)
            assert (first["case"], last["state"], last["code"]) == ("case0001", "failed", code)
        else:
            assert "case0001" in printed
            assert "1 accepted, 0 unchanged, 0 failed" in printed
            assert "2 label maps were not finished" in printed


def test_one_file_finds_its_scan_in_a_folder(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["accept", str(cohort / "corrected" / "b_seg.nii.gz"), str(cohort / "scans"), "--into", str(cohort / "set")]
    assert main(words) == 0
    assert "case0001  training, patient 1, accepted for the first time" in capsys.readouterr().out
    assert main(words) == 0
    assert "case0001  training, patient 1, accepted with the same labels before" in capsys.readouterr().out


def test_two_label_maps_of_one_scan_are_refused_and_the_others_accepted(cohort: Path, head: Volume) -> None:
    write_labels(head, cohort / "corrected" / "reader2_a_seg.nii.gz", cohort / "scans" / "a.nii.gz", 5)
    found = find_corrected([cohort / "corrected"], cohort / "scans", AcceptOptions())
    results = {one.name: accept_or_fault(one, cohort / "set", AcceptOptions(may_replace=True)) for one in found}
    assert [one.code for one in results.values()] == ["accept.two_labels", "", "", "accept.two_labels"]
    assert "a_seg.nii.gz, reader2_a_seg.nii.gz of one scan" in results["a_seg.nii.gz"].message
    assert len(read_training_set(cohort / "set").cases) == 2


def test_a_correction_without_a_record_is_accepted_beside_its_result(cohort: Path) -> None:
    """As 3D Slicer saves it: the result that it replaces is as the model made it, and left out."""
    results = cohort / "results"
    path = results / "sub" / "a_seg.nii.gz"
    path.parent.mkdir()
    (cohort / "corrected" / "a_seg.nii.gz").rename(path)
    names = {"1": "Left"}
    states = accepted(cohort, "results", names=names)
    assert states["sub/a_seg.nii.gz"] == "accepted"
    assert sorted(states.values()) == ["accepted", "left out", "left out", "left out"]
    both = accepted(cohort, "results", names=names, with_uncorrected=True)
    assert both["sub/a_seg.nii.gz"] == both["a_seg.nii.gz"] == "accept.two_labels"


def test_scans_beside_results_are_no_label_maps(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a_seg.nii.gz", "a_seg.json"):
        (cohort / "corrected" / name).rename(cohort / "scans" / name)
    scans = str(cohort / "scans")
    words = ["accept", scans, scans, "--into", str(cohort / "set"), "--before", str(cohort / "corrected")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "b.nii.gz, c.nii.gz: lie among the scans" in printed
    assert "1 accepted, 0 unchanged, 0 failed" in printed
    assert "a_seg.nii.gz: found no labels of the same name in the folder of --before" in printed


def test_two_scans_that_find_one_another_are_no_label_maps(cohort: Path) -> None:
    (cohort / "two").mkdir()
    scan = (cohort / "scans" / "a.nii.gz").read_bytes()
    (cohort / "two" / "a.nii.gz").write_bytes(scan)
    (cohort / "two" / "a.nii").write_bytes(gzip.decompress(scan))
    with pytest.raises(InputError, match=r"input\.none"):
        find_corrected([cohort / "two"], cohort / "two", AcceptOptions())


@pytest.mark.parametrize(
    ("labels", "scan", "is_found"),
    [
        ("patientB/T1_003_seg.nii.gz", "patientA/T1_003.nii.gz", False),
        ("patientA/T1_003_seg.nii.gz", "patientA/anat/T1_003.nii.gz", True),
        ("derivatives/patientA/T1_003_dseg.nii.gz", "patientA/T1_003.nii.gz", True),
        ("reader1/T1_003.nii.gz", "T1_003.nii.gz", True),
        ("T1_003.nii.gz", "patientA/T1_003.nii.gz", True),
    ],
)
def test_a_name_in_the_folder_of_another_patient_is_none(cohort: Path, labels: str, scan: str, is_found: bool) -> None:
    for path, file in (("labels", labels), ("images", scan)):
        (cohort / path / file).parent.mkdir(parents=True)
        (cohort / path / file).write_bytes((cohort / "scans" / "a.nii.gz").read_bytes())
    (found,) = find_corrected([cohort / "labels"], cohort / "images", AcceptOptions())
    assert (found.scan is not None) == is_found
    if found.fault is not None:
        assert found.fault.code == "accept.no_scan"
        assert "patientA/T1_003.nii.gz" in found.fault.message


def test_the_record_before_finds_the_scan_of_a_record_without_its_files(cohort: Path) -> None:
    (cohort / "scans" / "a.nii.gz").rename(cohort / "scans" / "renamed.nii.gz")
    write_record(record_path(cohort / "corrected" / "a_seg.nii.gz"), {"by_hand": True})
    found = find_corrected([cohort / "corrected"], cohort / "scans", AcceptOptions(), cohort / "results")
    assert found[0].scan is not None
    assert found[0].scan.files[0].name == "renamed.nii.gz"


def test_scans_without_a_patient_are_named_and_given_one(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["accept", str(cohort / "corrected"), str(cohort / "scans"), "--into"]
    assert main([*words, str(cohort / "set")]) == 0
    assert "3 patients: 3 cases name none and count as one patient each" in capsys.readouterr().out
    assert main([*words, str(cohort / "other"), "--patient", "p"]) == 0
    assert "patients:" not in capsys.readouterr().out
    assert len({case.patient for case in read_training_set(cohort / "other").cases}) == 1
    assert main([*words, str(cohort / "set"), "--patient", "p"]) == 0
    assert "0 accepted, 3 unchanged" in capsys.readouterr().out
    cases = read_training_set(cohort / "set").cases
    assert {(case.patient, case.part) for case in cases} == {("patient 1", "training")}, "known later"


def test_a_folder_of_masks_is_one_label_map(cohort: Path, head: Volume) -> None:
    for number, name in enumerate(("liver", "spleen")):
        array = np.zeros(head.grid.shape, np.uint8)
        array[4 * number : 4 * number + 3, 5:12, 3:6] = 1
        (cohort / "masks").mkdir(exist_ok=True)
        write_nifti(Segmentation(array, head.grid, ()), cohort / "masks" / f"{name}.nii.gz")
    words = ["accept", str(cohort / "masks"), str(cohort / "scans" / "a.nii.gz"), "--into", str(cohort / "set")]
    assert main(words) == 0
    (case,) = read_training_set(cohort / "set").cases
    assert set(case.provenance.changes) == {"liver", "spleen"}
    (found,) = find_corrected([cohort / "results"], cohort / "scans" / "a.nii.gz", AcceptOptions())[:1]
    assert found.is_listed, "results of several scans"
