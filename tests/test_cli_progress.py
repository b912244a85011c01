"""Test the table of results on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.cli.progress import print_results
from napari_seg.cohort.outcome import CaseResult
from napari_seg.errors import Notice


def test_names_that_differ_at_their_end_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"sub-01_ses-baseline_acq-highres_run-1_T1w_{number}" for number in (1, 2)]
    volumes = {"anterior hippocampus": 1.2, "posterior hippocampus": 1.3}
    print_results([CaseResult(name, "done", volumes_ml=volumes) for name in names], Path("out"))
    table = capsys.readouterr().out.split("done ")[0]
    assert max(map(len, table.splitlines())) <= 80
    shown = "".join(row.split("│")[1].strip() for row in table.splitlines() if row.startswith("│"))
    assert shown == "".join(names)


def test_a_structure_that_was_not_found_has_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    unsure = (Notice("result.implausible", "too small", "anterior"), Notice("result.implausible", "none", "posterior"))
    volumes = {"anterior": 0.2, "middle": 0.5, "posterior": 0.0}
    print_results([CaseResult("a", "done", volumes_ml=volumes, notices=unsure)], Path("out"))
    rows = [row.split("│") for row in capsys.readouterr().out.splitlines() if row.startswith("│")]
    assert [row[5].strip() for row in rows] == ["doubtful", "", "not found"]


@pytest.mark.parametrize(
    ("source", "title"), [("a.nii.gz", "volumes"), ("b.PNG", "volumes; 1000 pixels of a 2D image")]
)
def test_the_unit_of_a_2d_image_is_stated(source: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_results([CaseResult("a", "done", source=source, volumes_ml={"nucleus": 1.5})], Path("out"))
    assert capsys.readouterr().out.split(" count")[0].splitlines()[0].rstrip() == title


def test_the_result_of_a_label_map_is_doubtful(capsys: pytest.CaptureFixture[str]) -> None:
    notices = (Notice("fitness.label_map", "as in a label map"),)
    print_results([CaseResult("case", "done", volumes_ml={"left": 1.0}, notices=notices)], Path("out"))
    printed = capsys.readouterr().out
    assert "doubtful" in printed
    assert "warning  case: " in printed
