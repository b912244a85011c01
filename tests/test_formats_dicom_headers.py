"""Headers: memory and time that they take, and odd values."""

from __future__ import annotations

import gc
import io
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_enhanced, write_series
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from napari_seg.errors import InputError
from napari_seg.formats.dicom import headers
from napari_seg.formats.dicom.headers import read_header
from napari_seg.formats.dicom.read import read_series
from napari_seg.formats.dicom.series import find_series
from napari_seg.formats.find import find
from napari_seg.volume import Volume

# memory and time


def test_a_header_takes_little_memory_whatever_its_size(tmp_path: Path, head: Volume) -> None:
    (path,) = write_series(head, tmp_path, slices=[0])
    paths = []
    for n in range(60):
        paths.append(tmp_path / f"IM-{n:05d}")
        paths[-1].write_bytes(path.read_bytes())
    path.unlink()
    find_series(paths[:1])
    headers._read_header.cache_clear()
    tracemalloc.start()
    find_series(paths)
    of_each = tracemalloc.get_traced_memory()[0] / len(paths)  # all of them still cached
    headers._read_header.cache_clear()
    found = find_series(paths)
    headers._read_header.cache_clear()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] / len(paths)
    tracemalloc.stop()
    assert len(found[0][0].files) == 60
    assert of_each < 5000
    assert kept < 300


def test_an_enhanced_header_takes_as_little(tmp_path: Path, head: Volume) -> None:
    write_enhanced(head, tmp_path / "mf", order=list(range(14)) * 20)
    read_header(tmp_path / "mf")
    headers._read_header.cache_clear()
    tracemalloc.start()
    header = read_header(tmp_path / "mf")
    assert tracemalloc.get_traced_memory()[0] < 20_000
    tracemalloc.stop()
    assert header.tags["PerFrameFunctionalGroupsSequence"] is True


_META = b"\2\0\0\0UL\4\0\x0c\0\0\0\2\0\x01\0OB\0\0\0\0\0\0"


@pytest.mark.parametrize("start", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + _META])
def test_zeros_are_refused_at_once(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "x.dcm").write_bytes(start + b"\0" * 20_000_000)
    find_series([])  # what is loaded first takes its time
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"file\.not_dicom"):
        read_header(tmp_path / "x.dcm")
    assert time.perf_counter() - began < 1  # 1.7 s a MB


def test_a_header_without_end_is_refused_at_once(tmp_path: Path) -> None:
    element = b"\x08\x00\x08\x00CS\0\0"
    (tmp_path / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + element * 1_000_000)
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"file\.not_dicom"):
        read_header(tmp_path / "x.dcm")
    assert time.perf_counter() - began < 2


# odd values: one failed entry, never the end of a run


ODD = ["", "abc", "1e400", "nan", "-1", "9" * 40, "1\\2\\3", "\\\\", "0", "\0"]


@pytest.mark.parametrize(
    "keyword",
    [
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "InstanceNumber",
        "SeriesNumber",
        "NumberOfFrames",
        "RescaleSlope",
        "EchoTime",
        "AcquisitionTime",
        "ImageType",
        "PatientName",
    ],
)
def test_odd_values_cost_their_series_at_most(tmp_path: Path, head: Volume, keyword: str) -> None:
    tag = Tag(keyword)
    paths = write_series(head, tmp_path / "odd", slices=[3, 4])
    write_series(head, tmp_path / "sound", slices=[3, 4])
    originals = [path.read_bytes() for path in paths]
    for odd in ODD:
        for path, original in zip(paths, originals, strict=True):
            dataset = pydicom.dcmread(io.BytesIO(original))
            value = odd.encode() + b" " * (len(odd) % 2)
            dataset._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
            dataset.save_as(path)  # raw values are written as they are
        *others, sound = find(tmp_path).scans
        for scan in others:
            with suppress(InputError):
                read_series(scan.files)
        assert np.array_equal(read_series(sound.files).array, head.array[..., 3:5])


def test_a_cache_that_another_thread_clears_costs_no_header(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cleared(dict):
        def __setitem__(self, key: object, value: object) -> None:
            """Keep nothing, as if the cache were cleared at once."""

    monkeypatch.setattr(headers, "_values", Cleared())
    for file in write_series(head, tmp_path)[:2]:
        assert read_header(file).tags["Modality"] == "MR"
