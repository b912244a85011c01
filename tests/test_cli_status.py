"""Test the command that shows the state of a run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import START, add_done, add_failed, new_manifest

import napari_seg.cli.status
import napari_seg.cohort.status
from napari_seg.cli.main import main
from napari_seg.cohort.manifest import Manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    """The manifest of a run of this process with a case of each state."""
    with new_manifest(tmp_path / "out", host=socket.gethostname(), pid=os.getpid()) as manifest:
        manifest._write("UPDATE runners SET started = ?", (time.time() - 60,))
        add_done(manifest, "good", {"front": 1.0}, started=time.time() - 40)
        add_failed(manifest, "bad", message="found \x1b[2J text")
        manifest.add_case("now", {"state": "running", "stage": "segmenting", "started": time.time() - 3, "attempts": 2})
        manifest.add_case("later", {"state": "waiting"})
        manifest.add_case("other", {"state": "skipped"})
        yield manifest


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def finish(manifest: Manifest) -> None:
    manifest._write("UPDATE cases SET state = 'done', ended = ? WHERE state IN ('waiting', 'running')", (START,))
    manifest.end_runner(1)


def test_a_run_that_goes_on(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    folder = manifest.path.parent
    before = snapshot(folder)
    assert main(["status", str(folder)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("running  ")
    assert lines[1] == "cases    1 of 5 done, 1 failed, 1 skipped, 1 waiting"
    assert lines[2].startswith("rate     ")
    assert lines[3].startswith(f"runner   process {os.getpid()} on {socket.gethostname()}, napari-seg ")
    assert re.fullmatch("case     now: segmenting, [0-9.]+ s, attempt 2", lines[4])
    assert lines[5] == "failed   bad: file.not_nifti: found [2J text"
    assert snapshot(folder) == before


def test_a_case_without_a_stage_starts_or_moves(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    manifest._write("UPDATE cases SET stage = ''", ())
    manifest.add_case("last", {"state": "moving"})
    main(["status", str(manifest.path.parent)])
    text = capsys.readouterr().out
    assert "now: waits for a free worker, " in text
    assert "last: moving, " in text


def test_a_finished_run(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    finish(manifest)
    manifest._write("UPDATE cases SET state = 'done' WHERE state = 'failed'", ())
    assert main(["status", str(manifest.path.parent), "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finished ")
    assert ", ended 20" in lines[-1]
    report = manifest.path.parent / "report.html"
    report.write_text("")
    main(["status", str(manifest.path.parent)])
    assert capsys.readouterr().out.splitlines()[-1] == f"report   {report}"


def test_a_run_that_was_killed_is_no_success(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    manifest._write("UPDATE cases SET state = 'done' WHERE state = 'failed'", ())
    manifest._write("UPDATE runners SET pid = ?", (2**30,))
    assert main(["status", str(manifest.path.parent)]) == 3
    text = capsys.readouterr().out
    assert text.startswith("stopped ")
    assert "not running any more" in text
    assert "resumes the run" in text


def test_all_failed(manifest: Manifest) -> None:
    finish(manifest)
    manifest._write("UPDATE cases SET state = 'failed' WHERE state = 'done'", ())
    assert main(["status", str(manifest.path.parent)]) == 4


def test_json_is_one_object(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", str(manifest.path.parent), "--json"]) == 3
    known = json.loads(capsys.readouterr().out)
    assert (known["state"], known["total"]) == ("running", 5)


@pytest.mark.parametrize("option", ["--json", "--watch"])
def test_watching_ends_with_the_run(
    option: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            finish(manifest)

    monkeypatch.setattr(napari_seg.cli.status.time, "sleep", sleep)
    assert main(["status", str(manifest.path.parent), "--watch", option]) == 3
    assert len(slept) == 2
    lines = capsys.readouterr().out.splitlines()
    if option == "--json":
        assert [json.loads(line)["state"] for line in lines] == ["running", "running", "finished"]
    else:
        assert [line.split()[0] for line in lines] == ["finished", "cases", "rate", "runner", "failed"]


def test_nothing_is_written_next_to_a_closed_manifest(manifest: Manifest) -> None:
    finish(manifest)
    manifest.close()
    before = snapshot(manifest.path.parent)
    assert len(before) == 1
    assert main(["status", str(manifest.path.parent)]) == 3
    assert snapshot(manifest.path.parent) == before


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("status", "report"):
        assert main([command, str(tmp_path)]) == 2
        assert "cohort.no_manifest" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_is_read_while_another_process_writes(manifest: Manifest) -> None:
    with manifest.transaction():
        manifest.add_case("uncommitted", {"state": "waiting"})
        command = [sys.executable, "-m", "napari_seg", "status", str(manifest.path.parent), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(result.stdout)["total"] == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_read(manifest: Manifest, capsys: pytest.CaptureFixture) -> None:
    folder = manifest.path.parent
    manifest.close()
    folder.chmod(0o555)
    try:
        assert main(["status", str(folder), "--json"]) == 3
    finally:
        folder.chmod(0o755)
    assert json.loads(capsys.readouterr().out)["total"] == 5
