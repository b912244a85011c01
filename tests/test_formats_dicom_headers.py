"""What is kept of a DICOM header, what it must not give away, and headers that lie or make no sense."""

from __future__ import annotations

import gc
import io
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import CANARIES, write_enhanced, write_series
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats import find, find_scans
from napari_seg.formats.dicom import headers
from napari_seg.formats.dicom.headers import read_header
from napari_seg.formats.dicom.kinds import plane_of
from napari_seg.formats.dicom.private_words import label_of, public_name
from napari_seg.formats.dicom.read import read_series
from napari_seg.formats.dicom.series import find_series
from napari_seg.memory import limited_to
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


def test_pixels_count_towards_the_memory_that_may_be_used(tmp_path: Path, head: Volume) -> None:
    paths = write_series(head, tmp_path)
    with limited_to(20_000), pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        read_series(paths)


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


# pixels that do not agree with the header


def halve(keyword: str) -> Callable[[int, Dataset], None]:
    def edit(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, getattr(dataset, keyword) // 2)

    return edit


def to_eight_bits(k: int, dataset: Dataset) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7


def refusal(folder: Path) -> InputError:
    (scan,) = find_scans(folder)
    with pytest.raises(InputError) as caught:
        scan.read()
    return caught.value


@pytest.mark.parametrize("edit", [halve("Rows"), halve("Columns"), to_eight_bits])
def test_pixels_that_are_longer_than_claimed_are_refused(
    tmp_path: Path, head: Volume, edit: Callable[[int, Dataset], None]
) -> None:
    write_series(head, tmp_path, edit=edit)
    error = refusal(tmp_path)
    assert error.code == "file.bad_header"
    assert "holds 1040 bytes of pixels" in error.message
    assert "in all 520 bytes" in error.message


def test_more_frames_than_claimed_are_refused(tmp_path: Path, head: Volume) -> None:
    write_enhanced(head, tmp_path / "mf")
    dataset = pydicom.dcmread(tmp_path / "mf")
    dataset.NumberOfFrames = 7
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:7]
    dataset.save_as(tmp_path / "mf")
    assert refusal(tmp_path).code == "file.bad_header"


def test_compressed_pixels_of_more_rows_than_claimed_are_refused(tmp_path: Path, head: Volume) -> None:
    def squeeze(k: int, dataset: Dataset) -> None:
        dataset.compress(RLELossless)
        dataset.Rows //= 2

    write_series(head, tmp_path, slices=[3, 4, 5, 6], edit=squeeze)
    assert refusal(tmp_path).code == "file.truncated"


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_jpeg_of_another_size_than_claimed_is_refused(tmp_path: Path, head: Volume, keyword: str) -> None:
    def squeeze(k: int, dataset: Dataset) -> None:
        stream = io.BytesIO()
        Image.fromarray(np.zeros((26, 20), np.uint8)).save(stream, "JPEG")
        to_eight_bits(k, dataset)
        dataset.PixelRepresentation = 0
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        setattr(dataset, keyword, getattr(dataset, keyword) // 2)

    write_series(head, tmp_path, slices=[3, 4, 5, 6], edit=squeeze)
    error = refusal(tmp_path)
    assert error.code == "file.bad_header"
    assert "26 rows of 20 compressed pixels" in error.message


def test_padding_behind_pixels_is_noticed(tmp_path: Path, head: Volume) -> None:
    def pad(k: int, dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData + b"\0" * 40

    write_series(head, tmp_path, edit=pad)
    (scan,) = find_scans(tmp_path)
    volume = scan.read()
    assert [notice.code for notice in volume.notices] == ["file.longer"]
    assert np.array_equal(volume.array, head.array)


def test_an_element_of_pixels_that_is_too_short_is_refused(tmp_path: Path, head: Volume) -> None:
    def shorten(k: int, dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[:-200]
        dataset.DataSetTrailingPadding = b"\0" * 400  # so that the file itself is long enough

    write_series(head, tmp_path, edit=shorten)
    assert refusal(tmp_path).code == "file.bad_header"


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


# privacy


TAGS = {"PatientName": "Canary^Tweety", "PatientID": "CAN4711", "ReferringPhysicianName": "Birdhouse^Anna"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("IM-0001", "IM-0001"),
        ("IM-0001.dcm", "IM-0001.dcm"),
        ("CANARY_TWEETY.0001.dcm", "0001.dcm"),
        ("tweety canary T1 7.IMA", "T1_7.IMA"),
        ("can4711-3", "3"),
        ("AnnaBirdhouse_12.dcm", "12.dcm"),
        ("Canary.dcm", "instance 12"),
    ],
)
def test_the_label_of_a_file_has_no_private_words(name: str, label: str) -> None:
    assert label_of(Path(name), TAGS | {"InstanceNumber": 12}) == label


@pytest.mark.parametrize(
    "keyword",
    [
        "ReferringPhysicianName",
        "RequestingPhysician",
        "PhysiciansOfRecord",
        "NameOfPhysiciansReadingStudy",
        "ReviewerName",
    ],
)
def test_words_of_all_persons_are_private(tmp_path: Path, head: Volume, keyword: str) -> None:
    def name(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, "Sparrow^Jack")

    write_series(head, tmp_path, description="T1w for Dr Sparrow", edit=name)
    (scan,) = find_scans(tmp_path)
    assert scan.name == "MR_T1w_for_Dr_003"
    assert public_name("Jack Sparrow 2020", read_header(scan.files[0]).tags) == "2020"


def spoil_nothing(paths: list[Path]) -> None:
    pass


def cut_header(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:300])


def cut_pixels(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:-100])


def drop(paths: list[Path]) -> None:
    paths[5].unlink()


def empty(paths: list[Path]) -> None:
    paths[5].write_bytes(b"")


def edit_one(keyword: str, value: Any) -> Callable[[list[Path]], None]:
    def edit(paths: list[Path]) -> None:
        dataset = pydicom.dcmread(paths[5])
        setattr(dataset, keyword, value)
        dataset.save_as(paths[5])

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing,
        cut_header,
        cut_pixels,
        drop,
        empty,
        edit_one("Modality", "SR"),
        edit_one("PixelSpacing", [0, 1]),
        edit_one("PhotometricInterpretation", "RGB"),
        edit_one("ImageType", ["DERIVED"]),
        edit_one("ImagePositionPatient", [0, 0, 0]),
        edit_one("Rows", 13),
        edit_one("RescaleSlope", 0),
        edit_one("ModalityLUTSequence", [Dataset()]),
    ],
)
def test_no_message_quotes_a_file_name_that_is_a_patients(
    tmp_path: Path, head: Volume, spoil: Callable[[list[Path]], None], caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_series(head, tmp_path, file_name="Canary^Tweety_CAN4711_{:04d}.dcm")
    spoil(paths)
    found = find(tmp_path)
    texts = [one.message for one in found.skipped]
    for scan in found.scans:
        texts.append(scan.name)
        try:
            volume = scan.read()
            texts += [volume.name, *map(str, volume.notices)]
        except InputError as error:
            texts.append(str(error))
    text = " ".join([*texts, caplog.text]).lower()
    assert not any(canary.lower() in text for canary in CANARIES), text


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0.94, -0.34], "axial"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        (None, ""),
    ],
)
def test_the_plane_of_slices_follows_from_their_directions(cosines: list[float] | None, plane: str) -> None:
    assert plane_of(cosines) == plane
