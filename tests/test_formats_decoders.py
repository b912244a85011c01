"""Decoders that crash, hang or take all memory cost one scan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import napari_seg.apart
from napari_seg.errors import InputError, Notice
from napari_seg.formats.decoders import read_apart
from napari_seg.geometry import Grid
from napari_seg.volume import Volume

GRID = Grid((2, 3, 4), np.diag([1.0, 2, 3, 1]))


def numbers(files: Sequence[Path]) -> Volume:
    print("what a decoder prints")
    os.write(1, b"and what it writes")
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2).transpose(2, 1, 0)[None]
    return Volume(array, GRID, "name", "CT", tuple(files[::-1]), (Notice("some.code", "some text"),))


def crash(files: Sequence[Path]) -> Volume:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hang(files: Sequence[Path]) -> Volume:
    time.sleep(60)
    raise AssertionError


def swell(files: Sequence[Path]) -> Volume:
    return Volume(np.zeros((1, 2**40, 1, 1), np.uint8), GRID)


def refuse(files: Sequence[Path]) -> Volume:
    raise InputError("some.code", "some text")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("x")
    return paths


def test_what_is_read_apart_is_what_is_read_here(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files[0].parent)
    relative = [Path(path.name) for path in files]
    here, there = numbers(relative), read_apart(numbers, relative)
    assert np.array_equal(there.array, here.array)
    assert there.array.strides[1:] == here.array.strides[1:]
    fields = ("grid", "name", "modality", "files", "notices")
    assert [getattr(there, field) for field in fields] == [getattr(here, field) for field in fields]


@pytest.mark.parametrize(
    ("read", "code"),
    [
        (crash, "file.crashes_reader"),
        (hang, "file.too_slow"),
        (swell, "file.too_large"),
        (refuse, "some.code"),
    ],
)
def test_a_decoder_that_fails_costs_one_scan(
    files: list[Path], read: Callable[[Sequence[Path]], Volume], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_apart(read, files, seconds=3 if read is hang else None)
    assert caught.value.code == code
    assert np.array_equal(read_apart(numbers, files).array, numbers(files).array)


def test_the_other_process_ends_with_this_one(files: list[Path]) -> None:
    code = f"""
from pathlib import Path
from test_formats_decoders import numbers
from napari_seg.formats import decoders
decoders.read_apart(numbers, [Path({str(files[0])!r})])
print(decoders._DECODERS._popen.pid)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[-1]), 0)


def test_a_stop_half_way_does_not_mix_up_answers(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(napari_seg.apart, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            read_apart(numbers, files)
    assert np.array_equal(read_apart(numbers, files).array, numbers(files).array)
