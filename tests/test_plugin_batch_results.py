"""Results of a batch as a table; tests of the model open them as layers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from cohorts import START, add_done, add_failed, new_manifest

from napari_seg.errors import Notice
from napari_seg.plugin.batch.results import read_row, write_table
from napari_seg.plugin.batch.watch import Row, look


def test_the_table_has_a_column_for_each_structure_and_all_remarks(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with new_manifest(output, ended=START + 9) as manifest:
        add_done(manifest, "a", {"left": 1.5}, seconds=2.0)
        add_done(manifest, "b", {"left": 0.00003, "right": 2.0}, notices=(Notice("x.y", "odd"), Notice("x.z", "odder")))
        add_failed(manifest, "c")
        write_table(output, look(output).rows, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        a, b, c = csv.DictReader(file)
    assert list(a) == ["scan", "state", "seconds", "left (ml)", "right (ml)", "code", "remarks"]
    assert list(a.values()) == ["a", "done", "2.0", "1.5", "", "", ""]
    assert (b["left (ml)"], b["right (ml)"], b["remarks"]) == ("3e-05", "2.0", "odd; odder")
    assert (c["state"], c["left (ml)"], c["code"]) == ("failed", "", "file.not_nifti")


def test_a_row_without_scan_and_labels_opens_nothing_and_says_why() -> None:
    assert read_row(Row(1, "a", "waiting"), None, "It is not there.", (), None, None) == ([], ("It is not there.",))
