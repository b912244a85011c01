"""Decoders that crash, hang or take all memory cost one scan."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
import SimpleITK
from bundles import write_threshold_bundle
from decoders import crash, hang, numbers, refuse, swell

import napari_seg.worker
from napari_seg.cli.main import main
from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats import in_worker
from napari_seg.formats.find import find_scans
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.itk import to_itk
from napari_seg.formats.kinds import LABEL_FORMATS, FormatName
from napari_seg.formats.verdict import verdict_of
from napari_seg.volume import Volume


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("x")
    return paths


def test_what_is_read_apart_is_what_is_read_files(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files[0].parent)
    relative = [Path(path.name) for path in files]
    here, there = numbers(relative), read_in_worker(numbers, relative)
    assert np.array_equal(there.array, here.array)
    assert there.array.strides[1:] == here.array.strides[1:]
    fields = ("grid", "name", "modality", "source", "notices")
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
        read_in_worker(read, files, seconds=3 if read is hang else None)
    assert caught.value.code == code
    assert np.array_equal(read_in_worker(numbers, files).array, numbers(files).array)


def test_the_other_process_ends_with_this_one(files: list[Path]) -> None:
    code = f"""
from pathlib import Path
from decoders import numbers
from napari_seg.formats import in_worker
in_worker.read_in_worker(numbers, [Path({str(files[0])!r})])
print(in_worker._READERS._popen.pid)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[-1]), 0)


def test_a_stop_half_way_does_not_mix_up_answers(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(napari_seg.worker, "_receive", stop)
        with pytest.raises(KeyboardInterrupt):
            read_in_worker(numbers, files)
    assert np.array_equal(read_in_worker(numbers, files).array, numbers(files).array)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds processes to a limit on address space")
@pytest.mark.parametrize("hard", [True, False])
def test_a_limit_on_address_space_is_not_taken_for_damage(tmp_path: Path, head: Volume, hard: bool) -> None:
    SimpleITK.WriteImage(to_itk(head.array[0], head.grid), str(tmp_path / "a.nrrd"), useCompression=True)
    SimpleITK.WriteImage(to_itk(head.array[0], head.grid), str(tmp_path / "b.mha"), useCompression=True)
    phantoms.write_nifti(head, tmp_path / "c.nii.gz")
    phantoms.write_series(head, tmp_path / "d", slices=range(4))
    code = f"""
import resource
limit = 8 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit if {hard} else resource.getrlimit(resource.RLIMIT_AS)[1]))
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import LABEL_FORMATS, FormatName
for scan in find_scans({str(tmp_path)!r}):
    scan.read()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


def test_what_does_not_fit_the_budget_is_refused_before_it_is_read(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, affine = (500, 500, 400), np.eye(4)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(10):
            file.write(bytes(2 * 500 * 500 * 40))
    words = "type: short\ndimension: 3\nsizes: 500 500 400\nendian: little\nencoding: bzip2\n\n"
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\n" + words.encode() + bz2.compress(bytes(2000)))
    for scan in find_scans(tmp_path):
        monkeypatch.setattr(in_worker, "resident_bytes", lambda: 100 << 20)
        with pytest.raises(EnvironmentFault, match=r"environment\.memory: .* takes 381 MiB .* 156 MiB may be used"):
            scan.read(memory_bytes=256 << 20)
        with pytest.raises(EnvironmentFault, match=r"takes 100 MiB .* 50 MiB may be used .* at least 256 MiB"):
            scan.read(memory_bytes=50 << 20)
    scan = find_scans(tmp_path)[0]
    assert scan.read(memory_bytes=600 << 20).grid.shape == shape
    assert verdict_of(scan, {"memory_bytes": 256 << 20}).code == "environment.memory"


@pytest.mark.usefixtures("inline_cohorts")
def test_the_budget_of_a_run_holds_for_its_reading(tmp_path: Path, head: Volume, capsys: pytest.CaptureFixture) -> None:
    phantoms.write_nifti(head, tmp_path / "a.nii")
    bundle = write_threshold_bundle(tmp_path / "bundle")
    words = ["predict", tmp_path / "a.nii", "-o", tmp_path / "out", "--bundle", bundle, "--trust-bundle", "--json"]
    assert main([*map(str, words), "--memory", "1MiB"]) == 4
    (result,) = json.loads(capsys.readouterr().out)
    assert result["code"] == "environment.memory"
    assert "before it reads a.nii, and 1 MiB may be used in all (--memory" in result["message"]
    assert re.search(r"; give at least [\d.]+ [MG]iB$", result["message"])


@pytest.mark.usefixtures("inline_cohorts")
@pytest.mark.parametrize(("also", "code"), [("nrrd", "environment.memory"), ("seg", "")])
def test_other_formats_that_do_not_fit_are_refused_before_the_network_runs(
    tmp_path: Path,
    head: Volume,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    also: FormatName,
    code: str,
) -> None:
    phantoms.write_nifti(head, tmp_path / "a.nii")
    bundle = write_threshold_bundle(tmp_path / "bundle")
    monkeypatch.setitem(LABEL_FORMATS, also, replace(LABEL_FORMATS[also], bytes_per_voxel=1 << 40))
    words = ["predict", tmp_path / "a.nii", "-o", tmp_path / "out", "--bundle", bundle, "--trust-bundle", "--json"]
    main([*map(str, words), "--also", also])
    (result,) = json.loads(capsys.readouterr().out)
    assert result["code"] == code  # NIfTI gets no DICOM
