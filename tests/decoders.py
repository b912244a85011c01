"""Stand-ins for decoders, in a module that another process imports quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.geometry import Grid
from napari_seg.volume import Source, Volume

GRID = Grid((2, 3, 4), np.diag([1.0, 2, 3, 1]))


def numbers(files: Sequence[Path]) -> Volume:
    print("what a decoder prints")
    os.write(1, b"and what it writes")
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2).transpose(2, 1, 0)[None]
    return Volume(array, GRID, "name", "CT", Source("nifti", tuple(files[::-1])), (Notice("some.code", "some text"),))


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
