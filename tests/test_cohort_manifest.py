"""The manifest: states, claims, journals, and files that are damaged, locked, full or of others."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path, PurePath, PureWindowsPath

import pytest
from cohorts import add_done

from napari_seg.cohort import manifest as module
from napari_seg.cohort.manifest import FILE, Manifest
from napari_seg.cohort.outcome import Outcome, OutputFile
from napari_seg.cohort.rows import Claim
from napari_seg.errors import CohortError, Notice, OutputError


def test_a_case_goes_from_waiting_to_done(tmp_path: Path) -> None:
    outcome = Outcome(
        {"labels": OutputFile("a_seg.nii.gz", "00" * 32, 3, 4)},
        {"left": 1.25},
        {"left": 0.9},
        (Notice("result.implausible", "small", "left"),),
        {"match": "fast"},
        modality="MR",
        seconds=2.0,
        read_seconds=0.5,
    )
    with Manifest.open(tmp_path) as manifest:
        model = manifest.add_model("balls", "1", "monai", "ab")
        assert manifest.add_model("balls", "1", "monai", "ab") == model
        assert manifest.add_model("balls", "1", "monai", "cd") != model
        number = manifest.add_case("a", {"state": "waiting", "source": "x/a.nii", "model": model})
        first, second = (manifest.add_runner("here", pid, "x", True) for pid in (7, 8))
        claim = manifest.claim(number, first, 0)
        assert claim == Claim(number, first, 1, {})
        assert manifest.claim(number, second, 0) is None  # another runner has it
        manifest.check_holds(claim)
        manifest.set_moving(claim, outcome)
        manifest.set_done(claim)
        assert manifest.claim(number, second, 0) is None  # it was started since it was planned
        again = manifest.claim(number, second, 1)
        assert again is not None
        assert again.before == outcome.outputs
        for late in (manifest.check_holds, manifest.set_back, manifest.set_done):
            with pytest.raises(CohortError, match=r"cohort\.taken_over"):
                late(claim)
        manifest.end_runner(first)
        with pytest.raises(CohortError, match=r"cohort\.taken_over"):
            manifest.claim(number, first, 1)
        manifest.set_moving(again, outcome)
        manifest.set_done(again)
        manifest.set_meta("settings", '{"tta": null}')
        assert manifest.counts() == {"waiting": 0, "running": 0, "moving": 0, "done": 1, "failed": 0, "skipped": 0}
        with Manifest.open(tmp_path, read_only=True) as reader:  # while the other writes
            (row,) = reader.rows(("done",))
            assert reader.row("b") is None
            assert reader.settings() == {"tta": None}
    assert (row.name, row.source, row.model, row.attempts) == ("a", "x/a.nii", model, 2)
    assert (row.outputs, row.volumes_ml, row.confidence) == (outcome.outputs, {"left": 1.25}, {"left": 0.9})
    assert (row.notices, row.run, row.modality) == (outcome.notices, {"match": "fast"}, "MR")
    assert (row.seconds, row.read_seconds) == (2.0, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]  # the journal goes with the last connection


def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    with Manifest.open(tmp_path) as manifest:
        with suppress(KeyError), manifest.transaction():
            manifest.add_case("a", {"state": "waiting"})
            raise KeyError
        assert manifest.counts()["waiting"] == 0


def test_wal_is_used_only_where_no_other_machine_writes(tmp_path: Path) -> None:
    with Manifest.open(tmp_path) as manifest:
        assert not manifest.is_wal
        assert manifest.use_wal(True)
        with Manifest.open(tmp_path) as other:
            assert other.is_wal
            other.counts()
            assert not manifest.use_wal(False)  # it can't change while another has the file open
        assert manifest.use_wal(False)
    with Manifest.open(tmp_path) as manifest:
        assert not manifest.is_wal  # the last writer leaves it so


@pytest.mark.parametrize("is_joined", [False, True])
def test_the_note_before_files_are_renamed_reaches_the_disk(tmp_path: Path, is_joined: bool) -> None:
    levels: dict[str, int] = {}
    with Manifest.open(tmp_path) as manifest:
        manifest.use_wal(not is_joined)
        run = manifest._connection.execute

        def note_level(statement: str) -> None:
            if "SET state = " in statement:
                levels[statement.partition("state = ")[2].split("'")[1]] = run("PRAGMA synchronous").fetchone()[0]

        manifest._connection.set_trace_callback(note_level)
        add_done(manifest, "a", {"left": 1.0})
        manifest._connection.set_trace_callback(None)
    normal, full = 1, 2
    assert levels == {"moving": full, "done": full if is_joined else normal}


def test_a_folder_without_a_manifest_and_one_that_is_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"cohort\.no_manifest"):
        Manifest.open(tmp_path, read_only=True)
    with Manifest.open(tmp_path) as manifest:
        for number in range(400):
            manifest.add_case(f"case {number}", {"state": "waiting", "source": "x" * 200})
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(CohortError, match=r"cohort\.manifest: .* is damaged"), Manifest.open(tmp_path) as manifest:
        list(manifest.rows())
    for content in (b"no database" * 100, whole[:50]):
        path.write_bytes(content)
        for read_only in (False, True):
            with pytest.raises(CohortError, match=r"cohort\.manifest"):
                Manifest.open(tmp_path, read_only=read_only)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    with pytest.raises(CohortError, match="of another program"):
        Manifest.open(tmp_path)


def test_a_manifest_of_a_later_version_is_refused(tmp_path: Path) -> None:
    with Manifest.open(tmp_path) as manifest:
        manifest.set_meta("format", "3")
    with pytest.raises(CohortError, match="format 3; expected 2"):
        Manifest.open(tmp_path)


def test_a_manifest_of_an_earlier_version_gets_places(tmp_path: Path) -> None:
    with Manifest.open(tmp_path) as manifest:
        manifest.add_case("a", {"state": "done"})
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("ALTER TABLE cases DROP COLUMN place")
        connection.execute("DELETE FROM meta WHERE key = 'salt'")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'format'")
    connection.close()
    with Manifest.open(tmp_path, read_only=True) as manifest:
        assert [(row.name, row.place, manifest.salt) for row in manifest.rows()] == [("a", "", "")]
    for _ in range(2):
        with Manifest.open(tmp_path) as manifest:
            manifest.add_places()
            assert [(row.name, row.place, len(manifest.salt)) for row in manifest.rows()] == [("a", "", 64)]
            assert manifest.meta("format") == "2"


def test_a_program_that_keeps_the_file_locked_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.1)
    with Manifest.open(tmp_path) as manifest:
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CohortError, match=r"cohort\.manifest_locked"):
            manifest.set_meta("a", "b")
        other.execute("ROLLBACK")
        other.close()
        manifest.set_meta("a", "b")


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with Manifest.open(tmp_path) as manifest:
        manifest._connection.execute("PRAGMA max_page_count = 12")
        with pytest.raises(OutputError, match=r"output\.disk_full"):
            manifest.add_case("case", {"state": "waiting", "source": "x" * 200_000})


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PureWindowsPath(r"\\server\share\a b\m.sqlite"), "file:////server/share/a%20b/m.sqlite"),
        (PureWindowsPath(r"Z:\results\m.sqlite"), "file:///Z:/results/m.sqlite"),
        (PurePath("/results/m.sqlite"), "file:///results/m.sqlite"),
    ],
)
def test_the_address_of_a_manifest_has_no_authority(path: PurePath, uri: str) -> None:
    assert module._uri(path) == uri


@pytest.mark.skipif(os.name == "nt", reason="the path stands for one of Windows")
def test_a_manifest_on_a_network_drive_of_windows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest.open(tmp_path) as manifest:
        manifest.set_meta("a", "b")
    first = f"file:/{tmp_path / FILE}"  # the first folder stands for a server
    monkeypatch.setattr(PurePath, "as_uri", lambda self: first)
    with Manifest.open(tmp_path, read_only=True) as manifest:
        assert manifest.meta("a") == "b"
