"""Headers with random damage: each file is read or refused, soon, and within a limit of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import phantoms
import pytest
import SimpleITK

from napari_seg.errors import InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.itk import to_itk
from napari_seg.volume import Volume

SECONDS = 10.0
MEMORY_BYTES = 2**31
"""Above what the process holds at its start."""

EXTREMES = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
)


def damaged(content: bytes, head: int, random: np.random.Generator) -> bytes:
    """Bytes with one to four faults among the first `head`: changed, overwritten by extremes, missing, doubled, cut."""
    found = bytearray(content)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(min(head, len(found)) or 1))
        kind = random.integers(6)
        if kind <= 1 and found:
            found[min(at, len(found) - 1)] = random.integers(256)
        elif kind == 2:
            found[at : at + 4] = EXTREMES[random.integers(len(EXTREMES))]
        elif kind == 3:
            del found[at : at + int(random.integers(1, 9))]
        elif kind == 4:
            found[at:at] = found[at : at + int(random.integers(1, 9))]
        elif random.random() < 0.2:
            del found[at:]
    return bytes(found)


def read_damaged(originals: list[tuple[Path, int]], folder: Path, count: int, seed: int) -> None:
    """Reads files made of originals; what escapes other than an `InputError` ends it."""
    contents = [(path.read_bytes(), path.name, head) for path, head in originals]
    random = np.random.default_rng(seed)
    for n in range(count):
        content, name, head = contents[n % len(contents)]
        path = folder / name
        path.write_bytes(damaged(content, head, random))
        start = time.monotonic()
        try:
            for scan in find_scans(path):
                scan.read()
        except InputError:
            pass
        except BaseException as error:
            path.rename(path.with_name(f"escaped_{n}_{name}"))
            raise AssertionError(f"seed {seed}, file {n} ({name}): {type(error).__name__}: {error}") from error
        assert time.monotonic() - start < SECONDS, f"seed {seed}, file {n} ({name})"


@pytest.fixture
def originals(tmp_path: Path, head: Volume) -> list[tuple[Path, int]]:
    """Files of each kind, and how many of their bytes are damaged."""
    folder = tmp_path / "originals"
    folder.mkdir()
    phantoms.write_nifti(head, folder / "a.nii")
    phantoms.write_nifti(head, folder / "b.nii.gz")
    phantoms.write_series(head, folder, file_name="c.dcm", slices=[0])
    phantoms.write_enhanced(head, folder / "d.dcm")
    for name in ("e.nrrd", "f.mha"):
        SimpleITK.WriteImage(to_itk(head.array[0], head.grid), str(folder / name), useCompression=True)
    heads = {"a.nii": 352, "b.nii.gz": 200, "c.dcm": 1400, "d.dcm": 6000, "e.nrrd": 450, "f.mha": 400}
    return [(folder / name, head) for name, head in heads.items()]


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_damage_escapes(originals: list[tuple[Path, int]], tmp_path: Path, count: int) -> None:
    code = f"""
import resource
from pathlib import Path
from test_formats_fuzz import MEMORY_BYTES, read_damaged
import nibabel, pydicom, scipy.ndimage
from pydicom.pixels import get_decoder
held = int(open("/proc/self/statm").read().split()[0]) * 4096 if Path("/proc/self/statm").exists() else 2**33
resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
originals = [(Path(path), head) for path, head in {[(str(path), head) for path, head in originals]!r}]
read_damaged(originals, Path({str(tmp_path)!r}), {count}, seed=1)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
