"""Archives are folders; one that is not to be trusted is refused, and nothing is written outside its own folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
from bundles import write_threshold_bundle

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.formats import archive
from napari_seg.formats.find import find, find_scans
from napari_seg.formats.temporary import TemporaryFolder, remove_leftovers
from napari_seg.formats.verdict import verdicts
from napari_seg.volume import Volume


def pack(folder: Path, path: Path) -> Path:
    """All files of a folder as zip or tar."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz") as packed:
            for file in files:
                packed.add(file, str(file.relative_to(folder)))
    return path


@pytest.mark.parametrize("name", ["study.zip", "study.tar.gz"])
def test_scans_in_an_archive_are_found_and_named_by_it(tmp_path: Path, head: Volume, name: str) -> None:
    phantoms.write_series(head, tmp_path / "study" / "series")
    phantoms.write_nifti(head, tmp_path / "study" / "t1.nii.gz")
    (tmp_path / "study" / "__MACOSX").mkdir()
    (tmp_path / "study" / "__MACOSX" / "._t1.nii.gz").write_bytes(b"resource fork")
    (tmp_path / "in").mkdir()
    packed = pack(tmp_path / "study", tmp_path / "in" / name)
    for path in (packed, tmp_path / "in"):
        series, nifti = find_scans(path)
        assert (series.source, nifti.source) == (str(packed / "series"), str(packed / "t1.nii.gz"))
        assert np.array_equal(series.read().array, head.array)
        assert np.array_equal(nifti.read().array, head.array)


@pytest.mark.usefixtures("inline_cohorts")
def test_results_of_an_archive_are_known_again(tmp_path: Path, head: Volume, capsys: pytest.CaptureFixture) -> None:
    phantoms.write_series(head, tmp_path / "study")
    packed, bundle = pack(tmp_path / "study", tmp_path / "study.zip"), write_threshold_bundle(tmp_path / "bundle")
    for _ in range(2):
        words = ["predict", packed, "-o", tmp_path / "out", "--bundle", bundle, "--trust-bundle", "--json"]
        assert main([str(word) for word in words]) == 0
        assert json.loads(capsys.readouterr().out)[0]["source"] == packed.name
        archive._forget()  # as in another process
    expected = head.array[0] > 100
    assert np.array_equal(nibabel.load(tmp_path / "out" / "MR_T1w_sagittal_003_seg.nii.gz").get_fdata() > 0, expected)


@pytest.mark.parametrize(
    "name", ["../escaped.nii", "/tmp/escaped.nii", "a/../../escaped.nii", "..\\escaped.nii", "C:/x.nii"]
)
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"study{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(name, b"content")
    else:
        with tarfile.open(path, "w") as packed:
            entry = tarfile.TarInfo(name)
            entry.size = 7
            packed.addfile(entry, io.BytesIO(b"content"))
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(InputError, match=r"archive\.unsafe"):
        archive.unpacked(path)
    assert set(tmp_path.parent.rglob("*")) == before
    (verdict,) = verdicts(tmp_path)
    assert (verdict.verdict, verdict.code) == ("refuse", "archive.unsafe")


def test_links_are_left_out_of(tmp_path: Path) -> None:
    (tmp_path / "secret.nii").write_bytes(b"private")
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo("link.nii")
            entry.type, entry.linkname = kind, str(tmp_path / "secret.nii")
            packed.addfile(entry)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        info = zipfile.ZipInfo("link.nii")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        packed.writestr(info, str(tmp_path / "secret.nii"))
    for path in (tmp_path / "a.tar", tmp_path / "b.zip"):
        assert find(path) == find(path)
        assert find(path).scans == ()
        assert [skipped.code for skipped in find(path).skipped] == ["skip.link"]


def test_a_bomb_ends_when_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros.nii", bytes(2**24))
    monkeypatch.setattr(archive, "MAX_FREE_FRACTION", 1e-9)
    (verdict,) = verdicts(path)
    assert verdict.code == "archive.too_large"


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"no archive"])
@pytest.mark.parametrize("name", ["study.zip", "study.tar.gz"])
def test_a_damaged_archive_is_one_failed_scan(tmp_path: Path, head: Volume, name: str, damage: object) -> None:
    phantoms.write_nifti(head, tmp_path / "t1.nii")
    path = pack(tmp_path, tmp_path / name)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    found = {verdict.name: verdict.code for verdict in verdicts(tmp_path)}
    assert found == {"t1": "", "study": "file.truncated"}


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.nii", b"content")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # the flags of the file, there and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    (verdict,) = verdicts(tmp_path)
    assert verdict.code == "archive.encrypted"


def test_a_zipped_tar_is_checked_to_its_end(tmp_path: Path, head: Volume) -> None:
    scan, path = phantoms.write_nifti(head, tmp_path / "t1.nii"), tmp_path / "study.tar.gz"
    with gzip.GzipFile(path, "wb", compresslevel=0) as stored, tarfile.open(fileobj=stored, mode="w") as packed:
        packed.add(scan, "t1.nii")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [verdict.code for verdict in verdicts(path)] == ["file.truncated"]


@pytest.mark.parametrize("name", [".", "", "T1 12:30.nii"])
def test_strange_names_do_not_end_the_run(tmp_path: Path, head: Volume, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(phantoms.write_nifti(head, tmp_path / "good.nii"), name)
    codes = {verdict.name: verdict.code for verdict in verdicts(tmp_path)}
    assert codes == {"good": "", **({"T1 12:30": ""} if name.endswith(".nii") else {"a": "archive.unsafe"})}


def test_an_archive_in_an_archive_is_left_to_a_person(tmp_path: Path, head: Volume) -> None:
    phantoms.write_nifti(head, tmp_path / "good.nii")
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as packed:
        packed.write(tmp_path / "good.nii", "good.nii")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as packed:
        packed.write(tmp_path / "inner.zip", "inner.zip")
    assert [verdict.code for verdict in verdicts(tmp_path / "outer.zip")] == ["archive.nested"]


def test_an_archive_of_nothing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        raise AssertionError("it is looked for compression")

    monkeypatch.setattr(archive.lzma, "open", slow)
    (tmp_path / "zeros.tar").write_bytes(bytes(1 << 20))
    assert [(verdict.verdict, verdict.code) for verdict in verdicts(tmp_path)] == [("skip", "skip.empty")]


def test_hidden_members_are_said(tmp_path: Path, head: Volume) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(phantoms.write_nifti(head, tmp_path / "t1.nii"), "in/t1.nii")
        packed.writestr(".t2.nii", b"hidden")
    told = list(verdicts(tmp_path / "a.zip"))
    found = {verdict.code: verdict.path for verdict in told}
    assert found == {"": str(tmp_path / "a.zip" / "in" / "t1.nii"), "skip.hidden": str(tmp_path / "a.zip/.t2.nii")}
    assert "1 hidden entry in a.zip " in " ".join(verdict.message for verdict in told)


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("t1.nii", b"one")
            with pytest.warns(UserWarning, match="Duplicate"):
                packed.writestr("t1.nii", b"two")
    else:
        with tarfile.open(path, "w") as packed:
            for content in (b"one", b"two"):
                entry = tarfile.TarInfo("t1.nii")
                entry.size = 3
                packed.addfile(entry, io.BytesIO(content))
    assert [verdict.code for verdict in verdicts(path)] == ["archive.same_name"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_what_a_killed_process_unpacked_goes_with_the_next(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, room = tmp_path / "study.zip", tmp_path / "temporary"
    room.mkdir()
    with zipfile.ZipFile(packed, "w") as files:
        files.write(phantoms.write_nifti(head, tmp_path / "t1.nii"), "t1.nii")
    code = f"""
import os, signal, sys
from napari_seg.formats.find import find
find({str(packed)!r})
print(*os.listdir({str(room)!r}), flush=True)
if sys.argv[1:]: os.kill(os.getpid(), signal.SIGKILL)
"""
    (room / "napari-seg-notes").mkdir()  # somebody's own
    environment = os.environ | {"TMPDIR": str(room)}

    def run(*words: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, check=False
        )
        return set(done.stdout.split()) - {"napari-seg-notes"}

    (left,) = run("kill")
    assert stat.S_IMODE((room / left).stat().st_mode) == 0o700
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    alive = TemporaryFolder()  # of a process that lives
    remove_leftovers.cache_clear()
    find(tmp_path / "t1.nii")
    assert [path.name for path in room.iterdir() if path.name == left] == []
    assert len(run() - {alive.path.parent.name}) == 1
    assert alive.path.is_dir()
    alive.cleanup()
    assert [path.name for path in room.iterdir()] == ["napari-seg-notes"]


def test_files_that_can_not_be_removed_are_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = TemporaryFolder()
    (folder.path / "scan").touch()
    release, lock = folder._lock.release, folder.path.with_name("lock")

    def release_as_on_windows() -> None:
        release()
        lock.unlink(missing_ok=True)

    monkeypatch.setattr(folder._lock, "release", release_as_on_windows)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a program has the file open
        folder.cleanup()
        remove_leftovers.__wrapped__()
    assert (folder.path / "scan").is_file()
    assert lock.is_file()
    remove_leftovers.__wrapped__()
    assert list(tmp_path.iterdir()) == []


def test_members_get_names_that_windows_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("scans/T1:axial?.nii", b"x")
    monkeypatch.setattr(sys, "platform", "win32")
    (tmp_path / "out").mkdir()
    assert archive.unpack(tmp_path / "a.zip", tmp_path / "out", 9, 99) == 0
    assert (tmp_path / "out" / "scans" / "T1_axial_.nii").read_bytes() == b"x"
