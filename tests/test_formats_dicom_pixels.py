"""Pixels that disagree with their header, or do not fit in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_enhanced, write_series
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, JPEGBaseline8Bit, RLELossless

from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats.dicom.read import read_series
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.find import find_scans
from napari_seg.formats.label_maps import read_label_map
from napari_seg.memory import limited_to
from napari_seg.volume import Segment, Segmentation, Volume


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


DEFLATED_FRAMES, MPEG2, HTJ2K = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201"


@pytest.mark.parametrize("syntax", [DEFLATED_FRAMES, MPEG2, HTJ2K])
def test_a_compression_without_a_decoder_is_no_damage(tmp_path: Path, head: Volume, syntax: str) -> None:
    if syntax == HTJ2K and get_decoder(UID(HTJ2K)).is_available:
        pytest.skip("pylibjpeg is installed")

    def packed(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.PixelData = encapsulate([bytes(100)] * int(dataset.get("NumberOfFrames") or 1))
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True

    write_series(head, tmp_path / "plain")
    volume = find_scans(tmp_path / "plain")[0].read()
    for path in (tmp_path / "plain").iterdir():
        dataset = pydicom.dcmread(path)
        packed(dataset)
        (tmp_path / "packed").mkdir(exist_ok=True)
        save_as(dataset, tmp_path / "packed" / path.name)
    assert refusal(tmp_path / "packed").code == "series.transfer_syntax"
    labels = Segmentation((volume.array[0] > 500).astype(np.uint8), volume.grid, (Segment(1, "one", (255, 0, 0)),))
    write_dicom_seg(labels, volume.source, tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    packed(dataset)
    save_as(dataset, tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=r"series\.transfer_syntax"):
        read_label_map(tmp_path / "seg.dcm")


def save_as(dataset: Dataset, path: Path) -> None:
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, force_encoding=True)


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


def test_pixels_count_towards_the_memory_that_may_be_used(tmp_path: Path, head: Volume) -> None:
    paths = write_series(head, tmp_path)
    with limited_to(20_000), pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        read_series(paths)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_upper_bits_are_read(tmp_path: Path, head: Volume, signed: bool) -> None:
    def to_upper_bits(k: int, dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 15, int(signed)
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.int16) << 4).tobytes()

    values = head.array % 2000 - 1000 * signed
    volume = Volume(values.astype(np.int16), head.grid)
    write_series(volume, tmp_path, edit=to_upper_bits)
    (scan,) = find_scans(tmp_path)
    found = scan.read()
    assert np.array_equal(found.array, values)
    assert found.notices == ()


def bits(stored: int, high: int) -> Callable[[int, Dataset], None]:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = stored, high

    return edit


def compressed(k: int, dataset: Dataset) -> None:
    bits(12, 15)(k, dataset)
    dataset.compress(RLELossless)


def big_endian(k: int, dataset: Dataset) -> None:
    bits(12, 15)(k, dataset)
    dataset.PixelData = np.frombuffer(dataset.PixelData, np.int16).byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


@pytest.mark.parametrize("edit", [bits(16, 11), bits(12, 15), bits(12, 16), bits(12, 7), compressed, big_endian])
@pytest.mark.parametrize("lowest", [0, -300])
def test_a_high_bit_that_the_pixels_contradict_is_ignored(
    tmp_path: Path, head: Volume, edit: Callable[[int, Dataset], None], lowest: int
) -> None:
    values = (head.array % 2000 + lowest).astype(np.int16)
    values[..., [0, values.shape[-1] // 2]] = -16  # padded slices, whose lowest bits are zero
    write_series(Volume(values, head.grid), tmp_path, edit=edit)
    (scan,) = find_scans(tmp_path)
    assert np.array_equal(scan.read().array, values)


def test_upper_bits_of_run_lengths_are_read(tmp_path: Path, head: Volume) -> None:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.int16) << 4).tobytes()
        compressed(k, dataset)

    values = (head.array % 2000).astype(np.int16)
    write_series(Volume(values, head.grid), tmp_path, edit=edit)
    (scan,) = find_scans(tmp_path)
    assert np.array_equal(scan.read().array, values)


def in_no_bits(k: int, dataset: Dataset) -> None:
    bits(12, 15)(k, dataset)
    dataset.PixelData = (np.frombuffer(dataset.PixelData, np.int16) * 11).tobytes()


def in_other_bits_than_the_rest(k: int, dataset: Dataset) -> None:
    bits(12, 15)(k, dataset)
    if k == 3:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.int16) << 4).tobytes()


@pytest.mark.parametrize("edit", [in_no_bits, in_other_bits_than_the_rest])
def test_values_in_other_bits_than_claimed_are_refused(
    tmp_path: Path, head: Volume, edit: Callable[[int, Dataset], None]
) -> None:
    write_series(head, tmp_path, edit=edit)
    assert refusal(tmp_path).code == "file.bad_header"
