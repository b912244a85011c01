"""Second looks that are kept: complete or absent, found by model, scan and options."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_seg.errors import OutputError
from napari_seg.inference.disagreement import Disagreement
from napari_seg.inference.second_look import SecondLook
from napari_seg.learning.second_looks import FILE, SecondLooks

LOOK = SecondLook(Disagreement({"front": 0.25}, "3 networks"), np.array([1.5, 2], np.float32), np.ones(3, np.float32))


def test_a_look_is_found_again(tmp_path: Path) -> None:
    with SecondLooks(tmp_path, "model", {"crop": True}) as looks:
        assert looks.get("scan") is None
        looks.put("scan", LOOK, is_complete=True)
        looks.put("plain", SecondLook(None, None, LOOK.description), is_complete=False)
        assert looks.voxels("scan") == ""
        looks.put_voxels("scan", "voxels")
    with SecondLooks(tmp_path, "model", {"crop": True}) as looks:
        found, plain, voxels = looks.get("scan"), looks.get("plain"), looks.voxels("scan")
    assert found is not None
    assert voxels == "voxels"
    assert found.is_complete
    assert found.look.disagreement == LOOK.disagreement
    assert found.look.embedding is not None
    assert found.look.embedding.tolist() == [1.5, 2]
    assert plain is not None
    assert (plain.look.disagreement, plain.look.embedding, plain.is_complete) == (None, None, False)
    assert plain.look.description.tolist() == [1, 1, 1]


def test_another_model_or_other_options_have_looks_of_their_own(tmp_path: Path) -> None:
    with SecondLooks(tmp_path, "model", {"crop": True}) as looks:
        looks.put("scan", LOOK, is_complete=True)
    for model, options in (("other", {"crop": True}), ("model", {"crop": False})):
        with SecondLooks(tmp_path, model, options) as looks:
            assert looks.get("scan") is None


def test_a_file_of_another_version_is_made_again(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE looks (model TEXT)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with SecondLooks(tmp_path, "model", {}) as looks:
        looks.put("scan", LOOK, is_complete=True)
        assert looks.get("scan") is not None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("structures", "[1"),
        ("structures", "[]"),
        ("structures", '{"front": NaN}'),
        ("structures", '{"front": 7}'),
        ("structures", "[" * 10**5),
        ("embedding", b""),
        ("embedding", b"123"),
        ("embedding", np.array([np.nan], np.float32).tobytes()),
        ("embedding", "text"),
        ("description", b"123"),
    ],
)
def test_a_look_that_another_program_wrote_is_made_again(tmp_path: Path, column: str, value: object) -> None:
    with SecondLooks(tmp_path, "model", {}) as looks:
        looks.put("scan", LOOK, is_complete=True)
        looks._connection.execute(f"UPDATE looks SET {column} = ?", (value,))
        assert looks.get("scan") is None


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 200)
    with pytest.raises(OutputError) as caught:
        SecondLooks(tmp_path, "model", {})
    assert caught.value.code == "output.folder"
    assert "delete it" in caught.value.message


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_loses_the_look_in_progress_only(tmp_path: Path) -> None:
    code = f"""
import numpy as np
from pathlib import Path
from napari_seg.inference.second_look import SecondLook
from napari_seg.learning.second_looks import SecondLooks
with SecondLooks(Path({str(tmp_path)!r}), "model", {{}}) as looks:
    for number in range(10**6):
        looks.put(f"scan {{number}}", SecondLook(None, None, np.full(500, number, np.float32)), is_complete=True)
        print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = [int(next(process.stdout)) for _ in range(20)][-1]
        process.send_signal(signal.SIGKILL)
    with SecondLooks(tmp_path, "model", {}) as looks:
        for number in range(last + 1):
            found = looks.get(f"scan {number}")
            assert found is not None
            assert (found.look.description == number).all()
