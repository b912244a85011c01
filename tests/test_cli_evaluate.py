"""Tables of `napari-seg evaluate`."""

from __future__ import annotations

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
