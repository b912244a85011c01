"""What commands print where somebody reads along, nobody reads any more, or something ends them."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from bundles import write_threshold_bundle

import napari_seg.evaluation.overlay
from napari_seg.cli.main import _parser, main
from napari_seg.volume import Segment, Segmentation, Volume

pytestmark = pytest.mark.usefixtures("inline_cohorts")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that segments two scans by a threshold and one that is none."""

    def threshold(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        return Segmentation(
            (volume.array[0] > 100).astype(np.uint8), volume.grid, (Segment(1, "a", (255, 0, 0)),), {1: 0.9}
        )

    monkeypatch.setattr("napari_seg.inference.segment.segment", threshold)
    monkeypatch.setattr(napari_seg.evaluation.overlay, "draw_overlay", lambda v, s, path, title: path.write_bytes(b"x"))
    bundle, scans, out = write_threshold_bundle(tmp_path / "bundle"), tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in ("a", "c"):
        phantoms.write_nifti(phantoms.head(), scans / f"{name}.nii.gz")
    (scans / "b.nii.gz").write_text("no scan")
    return ["predict", str(scans), "-o", str(out), "--bundle", str(bundle), "--trust-bundle"]


class _Watched(io.StringIO):
    """Remembers which results lay on the disk when something was printed."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out
        self.seen: list[list[str]] = []

    def write(self, text: str) -> int:
        if text.strip():
            self.seen.append(sorted(path.name for path in self.out.glob("?_*.json")))
        return super().write(text)


def test_json_lines_come_as_scans_end(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = _Watched(tmp_path / "out")
    monkeypatch.setattr(sys, "stdout", printed)
    assert main([words[0], str(tmp_path / "gone"), *words[1:], "--json-lines"]) == 3
    entries = [json.loads(line) for line in printed.getvalue().splitlines()]
    told = [(entry["name"], entry["status"], entry["code"]) for entry in entries]
    assert told == [
        ("gone", "failed", "input.missing"),
        ("a", "done", ""),
        ("b", "failed", "file.not_nifti"),
        ("c", "done", ""),
    ]
    a, c = "a_seg.json", "c_seg.json"
    assert printed.seen == [[], [a], [a], [a, c]]


def test_a_run_that_ends_early_prints_what_it_did(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = napari_seg.segment
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None:
            continue

        def stopped(volume: Volume, *args: Any, number: int = number, **options: Any) -> Segmentation:
            if volume.name == "a":  # b is on its way then
                signal.raise_signal(number)
            return real(volume, *args, **options)

        before = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        started_with = signal.signal(number, before)  # what a job in the background ignores stays ignored
        monkeypatch.setattr("napari_seg.inference.segment.segment", stopped)
        for option in ("--json", "--json-lines"):
            assert main([*words, option, "--redo-all"]) == 130
            text = capsys.readouterr().out
            entries = json.loads(text) if option == "--json" else [json.loads(line) for line in text.splitlines()]
            assert [entry["code"] for entry in entries] == ["", "file.not_nifti", "run.cancelled"]
        assert signal.signal(number, started_with) is before
        assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [
        (["inspect", "gone", "--json"], "input.missing", 2),
        (["evaluate", "gone", "gone", "--json"], "input.missing", 2),
        (["predict", "gone", "-o", "out", "--bundle", "gone", "--json"], "bundle.unknown", 1),
        (["predict", ".", "-o", "out", "--json"], "input.none", 2),
        (["predict", "gone", "-o", "out", "--json"], "input.missing", 2),
        (["predict", "x.nii", "-o", "x.nii", "--json"], "output.folder", 5),
        (["evaluate", "x.nii", "y.nii", "-o", "x.nii", "--json"], "output.folder", 5),
    ],
)
def test_a_failure_is_json_too(
    command: list[str],
    code: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "x.nii" in command:
        for name in ("x.nii", "y.nii"):
            (tmp_path / name).write_text("no scan")
    assert main(command) == status
    told = json.loads(capsys.readouterr().out)
    assert (told[-1] if isinstance(told, list) else told)["code"] == code


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["predict", "a", "-o", "b", "--tiemout", "30min"], "; did you mean --timeout?"),
        (["models", "add", "--cleer", "a"], ""),
        (["status", "a", "b"], ""),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_option(
    words: list[str], hint: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"napari-seg {words[0]}: found ")
    assert first.endswith(f"which is no argument of this command{hint}")
    assert second == f"'napari-seg {words[0]} --help' describes the arguments"


def test_inputs_that_do_not_exist_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2
    message = f"input.missing: {tmp_path / 'nowhere'} does not exist"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_demo_without_a_folder_to_write_into_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "-o", str(tmp_path / "file")]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("napari-seg: output.folder: can't write to ")


def test_a_report_that_cannot_be_written_is_the_only_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("napari_seg.evaluation.report.atomic_write", fail)
    labels = str(phantoms.write_nifti(phantoms.head(), tmp_path / "a.nii.gz", np.uint16))
    copy = str(shutil.copy(labels, tmp_path / "copy.nii.gz"))
    assert main(["evaluate", labels, copy, "-o", str(tmp_path / "out"), "--no-pictures", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["code"] == "output.not_written"


@pytest.mark.parametrize("option", ["--json", "--json-lines", None])
def test_a_reader_that_is_gone_ends_a_command_quietly(
    words: list[str], option: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch, open(writing, "w") as stream:
        patch.setattr(sys, "stdout", stream)
        assert main([*words, *([option] if option else [])]) == 141
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("command", [["bundles"], ["bundles", "--json"], ["inspect", "."]])
def test_an_output_without_room_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    with monkeypatch.context() as patch, open("/dev/full", "w") as stream:
        patch.setattr(sys, "stdout", stream)
        assert main(command) == 5
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "napari-seg: output.not_written: the output could not be written: No space left on device"


def test_nothing_is_said_of_a_closed_pipe_when_the_process_ends() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "napari_seg", "bundles"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_name_that_a_terminal_has_no_letters_for_is_printed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scans" / "a.nii.gz").rename(tmp_path / "scans" / "\u5c71.nii.gz")
    printed = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
        assert main(words) == 3
        assert b"\\u5c71_seg.nii.gz" in printed.getvalue()


def test_a_file_name_can_fake_no_line_of_a_table(head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    phantoms.write_nifti(head, tmp_path / "a\nprocess   b.nii.gz")
    assert main(["inspect", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_option_that_takes_several_values_may_be_repeated() -> None:
    parser, _ = _parser()
    words = ["train", "data", "-o", "out", "--set", "a=1", "b=2", "--set", "c=3"]
    assert parser.parse_args(words).set == [("a", "1"), ("b", "2"), ("c", "3")]
    parsers, repeatable = [parser], 0
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.option_strings and action.nargs in ("+", "*"):
                assert isinstance(action, argparse._ExtendAction), action.option_strings
                assert not action.default, action.option_strings  # it would be extended
                repeatable += 1
    assert repeatable > 15
