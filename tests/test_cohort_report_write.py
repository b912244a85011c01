"""Test which files a report writes, and which it leaves alone."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import START, add_done, add_failed, draw_preview, new_manifest

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.facts import Facts, gather
from napari_seg.cohort.report.write import REPORT, write_report
from napari_seg.errors import CohortError, OutputError

TABLES = ("cases.csv", "cases.json", "volumes_long.csv", "volumes_wide.csv")


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with new_manifest(tmp_path / "out", ended=START + 60) as manifest:
        add_done(manifest, "a", {"front": 1.0})
        add_failed(manifest, "b")
        yield manifest


def test_a_report_replaces_the_earlier_one(manifest: Manifest) -> None:
    folder = manifest.path.parent
    assert write_report(manifest) == folder / REPORT
    before = (folder / "cases.csv").read_bytes()
    add_done(manifest, "c", {"front": 2.0})
    write_report(manifest)
    assert (folder / "cases.csv").read_bytes() != before
    assert {path.name for path in folder.iterdir() if not path.name.startswith("manifest")} == {REPORT, *TABLES}


def test_tables_and_page_show_the_same_moment_of_a_run(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_while_a_case_ends(read: Manifest) -> Facts:
        facts = gather(read)
        add_done(manifest, "c", {"back": 2.0})  # a structure that the facts do not know
        return facts

    monkeypatch.setattr("napari_seg.cohort.report.write.gather", gather_while_a_case_ends)
    folder = write_report(manifest).parent
    for name in (REPORT, "cases.csv", "cases.json", "volumes_long.csv"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "a_seg" in text or "front" in text
        assert "c_seg" not in text
        assert '"back"' not in text
    assert manifest.counts()["done"] == 2


def test_a_locked_manifest_is_reported(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.cohort.manifest._WAIT_SECONDS", 0.1)
    with sqlite3.connect(manifest.path) as other, Manifest.open(manifest.path.parent, read_only=True) as read:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CohortError) as fault:
            write_report(read)
    assert fault.value.code == "cohort.manifest_locked"


@pytest.mark.parametrize("name", [REPORT, *TABLES])
def test_files_of_other_programs_stay(name: str, manifest: Manifest) -> None:
    path = manifest.path.parent / name
    for content in (b"case,segment,dice\r\n", b"", b"<title>Evaluation of 2 cases</title>"):
        path.write_bytes(content)
        with pytest.raises(OutputError) as fault:
            write_report(manifest)
        assert fault.value.code == "output.exists"
        assert name in fault.value.message
        assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir() if not one.name.startswith("manifest")] == [name]
    write_report(manifest, overwrite=True)
    assert path.read_bytes() != content


def test_a_report_in_another_folder_links_back(manifest: Manifest, tmp_path: Path) -> None:
    draw_preview(manifest.path.parent / "a_seg.png")
    page = write_report(manifest, tmp_path / "my report")
    html = page.read_text(encoding="utf-8")
    assert page == tmp_path / "my report" / REPORT
    assert '"base":"../out/"' in html
    assert re.search('"0":"[A-Za-z0-9+/]{200,}', html)  # the preview was found
    assert '"base":""' in write_report(manifest).read_text(encoding="utf-8")


def test_a_folder_that_can_not_be_written_to_is_reported(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as fault:
        write_report(manifest, tmp_path / "file")
    assert fault.value.code == "output.folder"


def test_unfinished_files_lie_where_the_next_run_removes_them(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = manifest.path.parent
    before = {path.name for path in folder.iterdir()}
    seen: list[str] = []

    def write_page(*content: object) -> None:
        seen.extend(sorted(path.name for path in folder.iterdir() if path.name not in before))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_seg.cohort.report.write.write_page", write_page)
    with pytest.raises(OutputError):
        write_report(manifest)
    assert seen[0] == ".napari-seg"
    assert not any(name.startswith(".") for name in seen[1:])
    assert not (folder / ".napari-seg").exists()
