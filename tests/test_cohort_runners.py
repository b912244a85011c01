"""Runners: what they take over from others, and an output folder that goes away under them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from napari_seg.cohort import runners
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outputs import HIDDEN
from napari_seg.cohort.runners import BEAT, Runner, RunnerWatch, unfinished_folder
from napari_seg.errors import CohortError, OutputError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def manifest(output: Path) -> Iterator[Manifest]:
    with Manifest.open(output) as manifest:
        yield manifest


def test_an_output_folder_that_is_gone_is_named_and_not_created_again(output: Path, manifest: Manifest) -> None:
    away = output.with_name("away")
    with Runner(output, manifest) as runner:
        runner.check_output()
        runner.staging(1, 1)
        output.rename(away)
        for use in (runner.check_output, lambda: runner.staging(2, 1)):
            with pytest.raises(OutputError, match="is gone") as caught:
                use()
            assert caught.value.code == "output.folder"
        assert not output.exists()
        output.mkdir()  # another drive in its place
        with pytest.raises(OutputError, match="no longer the folder"):
            runner.staging(2, 1)
        assert not list(output.iterdir())
    assert not list(output.iterdir())


def test_a_runner_of_another_machine_is_watched_and_no_clock_matters(
    output: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runners, "machine", lambda: "another")
        runner = Runner(output, manifest).__enter__()
    (row,) = manifest.runners()
    monkeypatch.setattr(runners, "DEAD_SECONDS", 0.2)
    beat, watch = runner.folder / BEAT, RunnerWatch(output)
    beat.write_text("7")
    os.utime(beat, (0, 0))
    assert watch.is_alive(row) is None
    beat.write_text("8")
    os.utime(beat, (time.time() + 9999,) * 2)
    assert watch.is_alive(row)
    assert watch.is_alive(row)
    time.sleep(0.3)
    assert watch.is_alive(row) is False
    runner.__exit__(None, None, None)


def test_the_next_run_removes_unfinished_files_of_killed_programs_and_keeps_those_of_others(
    output: Path, manifest: Manifest
) -> None:
    left = output / HIDDEN / "0badcafe"
    left.mkdir(parents=True)
    (left / ".1234").write_text("half a page")
    with unfinished_folder(output) as unfinished:
        (unfinished / ".5678").write_text("half a page")
        with Runner(output, manifest):
            pass
        assert {path.name for path in (output / HIDDEN).iterdir()} == {unfinished.name}
        assert (unfinished / ".5678").is_file()
    assert not (output / HIDDEN).exists()


def test_a_leftover_that_can_not_be_removed_yet_keeps_no_other_one(
    output: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def rmtree(path: Path, *args: object, **options: object) -> None:
        if Path(path).name != "0badcafe":  # a dying worker writes into it
            real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for name in ("0badcafe", *(f"{number:08x}" for number in range(20))):
        (output / HIDDEN / name).mkdir(parents=True)
    with Runner(output, manifest):
        pass
    assert [path.name for path in (output / HIDDEN).iterdir()] == ["0badcafe"]


def linked(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system allows no links")


def test_a_link_in_the_place_of_the_hidden_folder_is_refused(output: Path, manifest: Manifest) -> None:
    thesis = output.with_name("0badcafe") / "thesis"
    thesis.mkdir(parents=True)
    linked(output / HIDDEN, Path(".."))
    for use in (Runner(output, manifest), unfinished_folder(output)):
        with pytest.raises(OutputError, match="is no folder, or a link") as caught, use:
            pass
        assert caught.value.code == "output.folder"
    assert {path.name for path in output.parent.iterdir()} == {"out", "0badcafe"}
    assert thesis.is_dir()


def test_nothing_is_removed_that_no_run_has_left(output: Path, manifest: Manifest) -> None:
    elsewhere, hidden = output.with_name("elsewhere"), output / HIDDEN
    for folder in (elsewhere, hidden / "0badcafe", hidden / "1badcafe" / "1.1", hidden / "notes"):
        folder.mkdir(parents=True)
    for file in (elsewhere / "notes.txt", hidden / "0badcafe" / "notes.txt", hidden / "0badcafe.txt"):
        file.write_text("mine")
    linked(hidden / "2badcafe", elsewhere)
    linked(hidden / "1badcafe" / "lock", elsewhere / "notes.txt")
    with Runner(output, manifest):
        pass
    assert {path.name for path in hidden.iterdir()} == {"0badcafe", "0badcafe.txt", "notes", "2badcafe"}
    assert [path.read_text() for path in output.parent.rglob("*.txt")] == ["mine"] * 3


@pytest.mark.parametrize("place", [f"{HIDDEN}/0badcafe", f"{HIDDEN}/0badcafe/1.1"])
def test_links_in_the_folder_of_somebody_else_are_not_followed(place: str, output: Path, manifest: Manifest) -> None:
    home = output.with_name("home")
    for folder in ("", "0badcafe/1.1", "1.1"):
        (home / folder).mkdir(parents=True, exist_ok=True)
        (home / folder / "victim").write_text("mine")
    (output / place).parent.mkdir(parents=True, exist_ok=True)
    linked(output / place, home)
    runner = manifest.add_runner("here", 1, "0badcafe", False, runners.machine())
    manifest.add_case("a", {"state": "running", "runner": runner, "attempts": 1})
    with pytest.raises(CohortError, match=r"cohort\.manifest"), Runner(output, manifest):
        pass
    assert sum(path.name == "victim" for path in home.rglob("*")) == 3


@pytest.mark.parametrize("named", ["..", "../../home"])
def test_the_hidden_folder_of_a_runner_lies_in_the_output_folder(named: str, output: Path, manifest: Manifest) -> None:
    home = output.with_name("home")
    (home / "1.1").mkdir(parents=True)
    runner = manifest.add_runner("here", 1, named, False, runners.machine())
    manifest.add_case("a", {"state": "running", "runner": runner, "attempts": 1})
    with pytest.raises(CohortError, match=r"cohort\.manifest"), Runner(output, manifest):
        pass
    assert (home / "1.1").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="drives are listed elsewhere there")
@pytest.mark.parametrize("kind", ["nfs4", "smbfs", "afpfs", "webdav"])
def test_the_drive_of_a_folder_decides_whether_machines_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shared = tmp_path.resolve() / "two words"
    named = [("/", "apfs"), (os.fsdecode(b"/media/B\xfcro"), "vfat"), (str(shared), kind)]
    drives = [SimpleNamespace(mountpoint=name, fstype=type) for name, type in named]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: drives)
    assert not runners.is_network_drive(tmp_path)
    assert runners.is_network_drive(shared / "out")
