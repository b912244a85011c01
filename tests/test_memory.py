"""Memory that is taken out of the process, and what it holds afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from napari_seg.memory import describe_bytes, page_out, resident_bytes


def test_little_memory_is_not_called_none() -> None:
    assert [describe_bytes(n) for n in (0, 200 << 10, 5 << 20, 3 << 29)] == ["0 MiB", "200 KiB", "5 MiB", "1.5 GiB"]


def test_memory_that_is_paged_out_keeps_its_content() -> None:
    numbers = np.arange(2**20)

    page_out([(numbers.ctypes.data, numbers.nbytes)])

    assert np.array_equal(numbers, np.arange(2**20))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pages out on request")
def test_a_mapped_file_leaves_the_resident_memory(tmp_path: Path) -> None:
    expected = np.arange(2**23)
    np.save(tmp_path / "numbers.npy", expected)
    numbers = np.load(tmp_path / "numbers.npy", mmap_mode="r")
    assert np.array_equal(numbers, expected)
    before = resident_bytes()

    page_out([(numbers.ctypes.data, numbers.nbytes)])

    assert before - resident_bytes() > 0.8 * numbers.nbytes
    assert np.array_equal(numbers, expected)
