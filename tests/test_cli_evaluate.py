"""Tables of `napari-seg evaluate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.cli.main import main


def test_an_interval_that_is_unknown_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("found", "truth"):
        (tmp_path / folder).mkdir()
        phantoms.write_nifti(phantoms.head(), tmp_path / folder / "a.nii.gz", np.uint16)
    assert main(["evaluate", str(tmp_path / "found"), str(tmp_path / "truth")]) == 0
    printed = capsys.readouterr().out
    assert "│ –    │ 1.0000 " in printed
    assert "nan" not in printed
