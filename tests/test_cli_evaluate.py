"""Tables of `napari-seg evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.cli.main import main


def test_what_would_be_ignored_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name in (("found", "a"), ("truth", "a"), ("truth", "b"), ("other", "b")):
        (tmp_path / folder).mkdir(exist_ok=True)
        phantoms.write_nifti(phantoms.head(), tmp_path / folder / f"{name}.nii.gz", np.uint16)
    found, truth, other = (str(tmp_path / folder) for folder in ("found", "truth", "other"))
    with pytest.raises(SystemExit):
        main(["evaluate", found, truth, "--trained", str(tmp_path / "no")])
    assert "--trained without --part" in capsys.readouterr().err
    assert main(["evaluate", found, truth, "--versus", other]) == 2
    assert "expected the same names as in" in capsys.readouterr().err
    assert main(["evaluate", truth, truth, "--versus", other]) == 0
    assert "has 1 of 2 cases; the others are not compared" in capsys.readouterr().err
    (tmp_path / "found" / "cases.csv").write_text("name,state,code,message,source")
    assert main(["evaluate", found, truth, "-o", found]) == 1
    assert "output.exists" in capsys.readouterr().err


def test_an_interval_that_is_unknown_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("found", "truth"):
        (tmp_path / folder).mkdir()
        phantoms.write_nifti(phantoms.head(), tmp_path / folder / "a.nii.gz", np.uint16)
    assert main(["evaluate", str(tmp_path / "found"), str(tmp_path / "truth")]) == 0
    printed = capsys.readouterr().out
    assert "│ –    │ 1.0000 " in printed
    assert "nan" not in printed


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Results, references without names, and results of the same with another name."""
    labels = replace(phantoms.head(), array=(phantoms.head().array > 300).astype(np.uint8))
    for folder, name in (("found", "x"), ("truth", ""), ("other", "y")):
        (tmp_path / folder).mkdir()
        phantoms.write_nifti(labels, tmp_path / folder / "a.nii.gz")
        if name:
            table = [{"label": 1, "name": name, "color": [1, 1, 1]}]
            (tmp_path / folder / "a.json").write_text(json.dumps({"segments": table}))
    return [str(tmp_path / folder) for folder in ("found", "truth", "other")]


def test_other_results_are_found_before_the_comparison(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth, other = folders
    monkeypatch.setattr("napari_seg.evaluation.pairs.compare_pairs", lambda *_: pytest.fail("compared"))
    (Path(other) / "a.nii.gz").rename(Path(other) / "b.nii.gz")
    for versus, code in ((found + "x", "input.missing"), (other, "input.none")):
        assert main(["evaluate", found, truth, "--versus", versus]) == 2
        assert code in capsys.readouterr().err


def test_what_was_compared_is_printed_before_an_error(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth, other = folders
    assert main(["evaluate", found, truth, "--versus", other, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["code"], answer["segments"]["mean"]["dice"]["mean"]) == ("evaluation.versus", 1)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("napari_seg.evaluation.report.atomic_write", fail)  # as for a table that Excel has open
    assert main(["evaluate", found, truth, "-o", str(tmp_path / "out")]) == 5
    output = capsys.readouterr()
    assert "1.0000" in output.out
    assert "output.not_written" in output.err
