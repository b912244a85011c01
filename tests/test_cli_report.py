"""Test the command that writes the report of a run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cohorts import add_done, new_manifest

from napari_seg.cli.main import main


def test_the_report_is_written_from_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "out"
    with new_manifest(folder) as manifest:
        add_done(manifest, "a", {"front": 1.0})
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report   {folder / 'report.html'}\n"
    assert (folder / "volumes_wide.csv").read_text().splitlines()[1] == "a,scans/a.nii.gz,,1"
    assert main(["report", str(folder), "-o", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "new" / "report.html")}


def test_files_of_other_programs_are_replaced_on_request_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "out"
    with new_manifest(folder):
        pass
    (folder / "cases.csv").write_text("mine")
    assert main(["report", str(folder)]) == 1
    assert "output.exists" in capsys.readouterr().err
    assert (folder / "cases.csv").read_text() == "mine"
    assert main(["report", str(folder), "--overwrite"]) == 0
    assert (folder / "cases.csv").read_text().startswith("name,state")
