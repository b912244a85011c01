"""Looks at a folder of results, as the Batch tab takes them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from cohorts import START, add_done, add_failed, new_manifest

from napari_seg.cohort.runners import Runner
from napari_seg.errors import CohortError
from napari_seg.plugin.batch import watch
from napari_seg.plugin.batch.watch import Look, look, volumes_text


def test_a_folder_without_a_manifest_has_no_rows(tmp_path: Path) -> None:
    assert look(tmp_path / "missing") == Look(tmp_path / "missing")
    (tmp_path / "manifest.sqlite").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(CohortError) as raised:
        look(tmp_path)
    assert raised.value.code == "cohort.manifest"


def test_many_rows_come_in_parts_and_each_change_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_ROWS", 4)
    with new_manifest(tmp_path / "out", ended=START + 9) as manifest:
        for number in range(6):
            add_failed(manifest, f"case{number}")
        first = look(tmp_path / "out")
        assert [row.number for row in first.rows] == [1, 2, 3, 4]
        assert first.is_partial
        second = look(tmp_path / "out", first)
        assert [row.number for row in second.rows] == [5, 6]
        assert not second.is_partial
        assert look(tmp_path / "out", second).rows == ()
        manifest.change_case(2, {"state": "waiting"})
        third = look(tmp_path / "out", second)
        assert [(row.name, row.state, row.text, row.seconds) for row in third.rows] == [("case1", "waiting", "", 0.0)]
        (tmp_path / "out" / "report.html").touch()
        assert look(tmp_path / "out", third).has_report
        assert [row.number for row in look(tmp_path / "out", Look(tmp_path)).rows] == [1, 2, 3, 4]


def test_a_run_that_this_process_has_lost_does_not_go_on(tmp_path: Path) -> None:
    with new_manifest(tmp_path / "out", host=socket.gethostname(), pid=os.getpid()) as manifest:
        number = manifest.add_case("case", {"state": "waiting"})
        manifest.claim(number, 1, 0)
        found = look(tmp_path / "out")
        assert found.at_work == ()
        assert found.lost == manifest.runners()[0]
        assert [row.state for row in found.rows] == ["stopped"]
        with Runner(tmp_path / "out", manifest) as runner:
            found = look(tmp_path / "out", found)
            assert [one.id for one in found.at_work] == [runner.id]
            assert watch.is_here(found.at_work[0])
            assert found.lost is None
        assert look(tmp_path / "out", found).lost is None


def test_done_cases_have_labels_and_many_structures_are_cut_to_those_found(tmp_path: Path) -> None:
    with new_manifest(tmp_path / "out", ended=START + 9) as manifest:
        add_done(manifest, "case", {"left": 1.0, "right": 0.0}, seconds=3.0)
        (row,) = look(tmp_path / "out").rows
    assert row.labels == tmp_path / "out" / "case_seg.nii.gz"
    assert (row.text, row.seconds, row.source) == ("left 1.00 ml, right 0.00 ml", 3.0, "scans/case.nii.gz")
    many = {f"s{number}": float(number < 2) for number in range(30)}
    assert volumes_text(many) == "s0 1.00 ml, s1 1.00 ml, 28 others not found"


@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/secret.nii.gz", "//host/share/a.nii.gz", "C:/a.nii.gz"])
def test_a_strangers_manifest_leads_to_no_file_outside_its_folder(path: str, tmp_path: Path) -> None:
    with new_manifest(tmp_path / "out", ended=START + 9) as manifest:
        number = add_done(manifest, "case", {"left": 1.0})
        files = {"labels": {"path": path, "sha256": "", "bytes": 1, "mtime_ns": 1}}
        manifest.change_case(number, {"outputs": files})
    (row,) = look(tmp_path / "out").rows
    assert row.labels is None
