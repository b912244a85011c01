from __future__ import annotations

import gzip
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
import SimpleITK
from phantoms import rotation

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.nifti import count_slices, count_volumes, read_nifti, write_nifti, write_volume
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Volume


def code_of(path) -> str:
    with pytest.raises(InputError) as caught:
        read_nifti(path)
    assert path.name in caught.value.message or caught.value.code.startswith("geometry.")
    return caught.value.code


def save(array, path, affine=None, **header):
    """A NIfTI file by nibabel, with header fields set by name and the sform alone."""
    image = nibabel.nifti1.Nifti1Image(array, None)
    image.set_sform(np.diag([1, 2, 3, 1]) if affine is None else affine, code=1)
    nibabel.loadsave.save(image, path)
    if header:
        patch(path, **header)
    return path


def patch(path, **fields):
    """Sets header fields behind the writer's back."""
    content = bytearray(path.read_bytes())
    header = nibabel.nifti1.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(bytes(content))


# what is read


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_array_type_and_place_are_those_of_the_file(tmp_path, head, ending):
    volume = read_nifti(phantoms.write_nifti(head, tmp_path / f"T1w{ending}"))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, head.array)
    assert np.allclose(volume.grid.affine, head.grid.affine, atol=1e-4)
    assert (volume.name, volume.source.files, volume.notices) == ("T1w", (tmp_path / f"T1w{ending}",), ())


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("kind", [nibabel.nifti1.Nifti1Image, nibabel.nifti2.Nifti2Image])
@pytest.mark.parametrize("endianness", "<>")
def test_every_type_version_and_byte_order_keeps_its_numbers(tmp_path, dtype, kind, endianness):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(dtype)
    image = kind(array, np.diag([1, 2, 3, 1]), header)
    image.to_filename(tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array[0], array)


def test_scaled_integers_become_float32(tmp_path):
    path = save(np.arange(24, dtype=np.int16).reshape(2, 3, 4), tmp_path / "a.nii", scl_slope=0.5, scl_inter=-3)
    volume = read_nifti(path)
    assert volume.array.dtype == np.float32
    assert volume.array[0, 1, 2, 3] == 23 * 0.5 - 3


@pytest.mark.parametrize("slope", [0, np.nan])
def test_slope_0_means_no_scaling(tmp_path, slope):
    path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", scl_slope=slope, scl_inter=7)
    assert read_nifti(path).array.dtype == np.int16
    assert read_nifti(path).array.max() == 1


def test_trailing_dimensions_of_1_are_dropped(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert np.array_equal(read_nifti(save(array[..., None, None], tmp_path / "a.nii")).array[0], array)


def test_lengths_in_metres_and_micrometres_become_mm(tmp_path):
    for unit, factor in ((1, 1000), (2, 1), (3, 0.001)):
        path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", xyzt_units=unit)
        assert read_nifti(path).grid.spacing_mm == pytest.approx((1 * factor, 2 * factor, 3 * factor))


def test_no_orientation_is_noticed(tmp_path):
    path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", sform_code=0, qform_code=0)
    assert [n.code for n in read_nifti(path).notices] == ["geometry.no_orientation"]


def test_a_plain_file_with_a_gz_name_is_what_it_is(tmp_path):
    save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz").grid.shape == (2, 3, 4)


# which form counts


def test_forms_that_disagree_are_refused(tmp_path, head):
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    patch(path, qoffset_x=float(nibabel.loadsave.load(path).header["qoffset_x"]) + 0.8)
    assert code_of(path) == "geometry.form_conflict"  # the smallest voxel size is 1.25 mm


def test_forms_that_agree_to_half_a_voxel_are_read_by_the_sform(tmp_path, head):
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    patch(path, qoffset_x=float(nibabel.loadsave.load(path).header["qoffset_x"]) + 0.5)
    assert np.allclose(read_nifti(path).grid.affine, head.grid.affine, atol=1e-4)


@pytest.mark.parametrize("kept", ["sform_code", "qform_code"])
def test_a_form_with_code_0_does_not_count(tmp_path, head, kept):
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    spoiled = (
        {"qoffset_x": 999.0, "qform_code": 0} if kept == "sform_code" else {"srow_x": [1, 0, 0, 999], "sform_code": 0}
    )
    patch(path, **spoiled)
    assert np.allclose(read_nifti(path).grid.affine, head.grid.affine, atol=1e-4)


def test_a_sheared_sform_is_refused(tmp_path):
    path = save(
        np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert code_of(path) == "geometry.shear"


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("first", [0, 7, -0.5, np.nan])
def test_an_unusable_pixdim_0_beside_a_good_sform_is_read(tmp_path, head, axis, first):
    volume = head if axis is None else replace(head, grid=head.grid.mirrored(axis))
    path = phantoms.write_nifti(volume, tmp_path / "a.nii")
    assert nibabel.loadsave.load(path).header["qform_code"] > 0
    patch(path, pixdim=[first, *nibabel.loadsave.load(path).header["pixdim"][1:]])
    assert read_nifti(path).grid.matches(volume.grid)
    patch(path, qoffset_x=999.0)
    assert code_of(path) == "geometry.form_conflict"


def test_voxel_sizes_below_0_beside_a_good_sform_are_read(tmp_path, head):
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    header = nibabel.loadsave.load(path).header
    patch(path, pixdim=header["pixdim"] * [1, -1, 1, -1, 1, 1, 1, 1])
    found = read_nifti(path)
    assert found.grid.matches(head.grid)
    assert found.notices == ()
    patch(path, sform_code=0)
    assert code_of(path) == "file.bad_header"


@pytest.mark.parametrize(
    "fault",
    [
        {"quatern_b": 1.5},
        {"qoffset_x": np.nan},
        {"quatern_b": np.nan},
        {"pixdim": [1, 0, 0, 0, 1, 1, 1, 1]},
    ],
)
def test_a_qform_that_is_no_orientation_does_not_count_beside_an_sform(tmp_path, head, fault):
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    patch(path, **fault)
    volume = read_nifti(path)
    assert np.allclose(volume.grid.affine, head.grid.affine, atol=1e-4)
    assert volume.notices[0].code == "geometry.qform_unusable"
    patch(path, sform_code=0)
    assert code_of(path) in ("file.bad_header", "geometry.affine")


def test_a_missing_qfac_counts_without_an_sform_too(tmp_path):
    pixdim = [0, 1, 2, 3, 1, 1, 1, 1]
    path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", sform_code=0, qform_code=1, pixdim=pixdim)
    assert np.allclose(read_nifti(path).grid.affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize(("excess", "beside_sform"), [(4e-7, False), (4e-7, True), (1e-4, True)])
def test_a_quaternion_that_rounding_made_too_long_is_read(tmp_path, excess, beside_sform):
    b, c = np.array([0.6, 0.8]) * (1 + excess)
    turn = nibabel.quaternions.quat2mat([0, 0.6, 0.8, 0])
    fields = {"quatern_b": b, "quatern_c": c, "quatern_d": 0, "qform_code": 1, "pixdim": [1] * 8}
    path = save(np.ones((9, 9, 9), np.int16), tmp_path / "a.nii", nibabel.affines.from_matvec(turn), **fields)
    if not beside_sform:
        patch(path, sform_code=0)
    assert np.allclose(read_nifti(path).grid.affine[:3, :3], turn, atol=1e-3)


def test_a_quaternion_that_is_too_long_alone_is_refused(tmp_path):
    fields = {"quatern_b": 1.001, "qform_code": 1, "sform_code": 0}
    assert code_of(save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", **fields)) == "file.bad_header"


def test_voxel_sizes_that_contradict_the_sform_are_noticed(tmp_path):
    path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", pixdim=[1, 1, 2, 2.5, 1, 1, 1, 1])
    (notice,) = read_nifti(path).notices
    assert notice.code == "geometry.pixdim_conflict"
    assert "6 mm3" in notice.message
    assert "5 mm3" in notice.message
    for pixdim in ([1, 1, 2, 3.01, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1, 1, 1]):
        assert read_nifti(save(np.ones((2, 3, 4), np.int16), path, pixdim=pixdim)).notices == ()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_longer_than_its_header_says_is_noticed(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    zipped = gzip.compress if ending == ".nii.gz" else bytes
    fields = {"dim": [3, 2, 3, 3, 1, 1, 1, 1], "pixdim": [1, 1, 2, 3, 1, 1, 1, 1]}
    whole = save(np.ones((2, 3, 4), np.int16), tmp_path / "b.nii", **fields).read_bytes()
    path.write_bytes(zipped(whole))
    (notice,) = read_nifti(path).notices
    assert (notice.code, "12 bytes more" in notice.message) == ("file.longer", True)


def test_a_zipped_file_that_lacks_its_last_volumes_is_refused(tmp_path):
    whole = save(np.ones((2, 3, 4, 5), np.int16), tmp_path / "b.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:-50]))
    with pytest.raises(InputError, match=r"file\.truncated"):
        read_nifti(tmp_path / "a.nii.gz", volume=1)


# what is refused


@pytest.mark.parametrize(
    ("shape", "code"),
    [((4, 5), "data.2d"), ((4, 5, 1), "data.2d"), ((2, 3, 4, 2), "data.4d"), ((2, 3, 4, 1, 2), "data.5d")],
)
def test_other_dimensions_are_refused(tmp_path, shape, code):
    assert code_of(save(np.ones(shape, np.int16), tmp_path / "a.nii")) == code


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colour_and_complex_are_refused(tmp_path, dtype):
    assert code_of(save(np.zeros((2, 3, 4), dtype), tmp_path / "a.nii")) == "data.not_scalar"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, value):
    array = np.ones((2, 3, 4), np.float32)
    array[1, 2, 3] = value
    assert code_of(save(array, tmp_path / "a.nii")) == "data.nonfinite"


def test_broken_gzip_streams_are_refused(tmp_path, head):
    whole = phantoms.write_nifti(head, tmp_path / "whole.nii.gz").read_bytes()
    broken = tmp_path / "broken.nii.gz"
    for cut in (1, 8, 9, len(whole) // 2, len(whole) - 40, len(whole) - 5):
        broken.write_bytes(whole[:-cut])
        assert code_of(broken) == "file.truncated", cut
    for from_the_end in (8, 4):  # the CRC, then the length
        changed = bytearray(whole)
        changed[-from_the_end] ^= 1
        broken.write_bytes(changed)
        assert code_of(broken) == "file.bad_checksum"
    short = gzip.compress(gzip.decompress(whole)[:-10])  # sound gzip of a short file
    broken.write_bytes(short)
    assert code_of(broken) == "file.truncated"


def test_files_that_are_no_nifti_are_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    for content, code in (
        (b"", "file.empty"),
        (b"a text that somebody renamed" * 50, "file.not_nifti"),
        (gzip.compress(b"a text that somebody zipped" * 50), "file.not_nifti"),
        (struct.pack("<i", 348) + bytes(344), "file.not_nifti"),  # Analyze: no magic
        (struct.pack("<i", 348) + bytes(100), "file.truncated"),
    ):
        path.write_bytes(content)
        assert code_of(path) == code
    path.write_bytes(b"a text that somebody renamed" * 50)
    with pytest.raises(InputError, match="copy or export it again, or rename it"):
        read_nifti(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path, ending):
    plain = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    path = tmp_path / f"b{ending}"
    path.write_bytes(plain.read_bytes() if ending == ".nii" else gzip.compress(plain.read_bytes()))
    assert code_of(path) == "file.bad_header"


def test_a_gzip_bomb_takes_no_memory(tmp_path):
    plain = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii")
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()) + gzip.compress(bytes(2**27)))
    tracemalloc.start()
    assert code_of(path) == "file.bad_header"
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, 2, -3, 4, 1, 1, 1, 1]},
        {"dim": [9, 2, 3, 4, 1, 1, 1, 1]},
        {"vox_offset": np.nan},
        {"vox_offset": -5},
        {"datatype": 4, "bitpix": 8},
        {"datatype": 999},
        {"xyzt_units": 5},
        {"scl_slope": 2, "scl_inter": np.nan},
        {"qform_code": 1, "quatern_b": 3.0, "sform_code": 0},
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, fields):
    assert code_of(save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii", **fields)) == "file.bad_header"


def test_a_stream_without_end_is_refused(tmp_path):
    path = save(np.ones((2, 3, 4), np.int16), tmp_path / "a.nii")
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(1 << 24)))
    assert code_of(tmp_path / "bomb.nii.gz") == "file.bad_header"


# what is written


def labels(grid: Grid, dtype=np.uint8) -> Segmentation:
    array = (np.arange(np.prod(grid.shape)).reshape(grid.shape) % 5).astype(dtype)
    return Segmentation(array, grid, tuple(Segment(n, f"part {n}", (n, n, n)) for n in range(1, 5)))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_label_map_comes_back_as_it_was(tmp_path, name, dtype):
    segmentation = labels(phantoms.oblique_grid(), dtype)
    write_nifti(segmentation, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    back = read_nifti(tmp_path / name)
    assert back.array.dtype == dtype
    assert np.array_equal(back.array[0], segmentation.array)
    assert np.allclose(back.grid.affine, segmentation.grid.affine, rtol=0, atol=1e-4)
    header = nibabel.loadsave.load(tmp_path / name).header
    assert (header["sform_code"], header["qform_code"], header.get_xyzt_units()[0]) == (1, 1, "mm")
    assert np.allclose(header.get_qform(), segmentation.grid.affine, rtol=0, atol=1e-4)


def test_a_mirrored_or_single_slice_grid_can_be_written(tmp_path):
    for grid in (phantoms.oblique_grid().mirrored(0), phantoms.oblique_grid((5, 6, 1))):
        write_nifti(labels(grid), tmp_path / "a.nii.gz")
        assert np.allclose(nibabel.loadsave.load(tmp_path / "a.nii.gz").affine, grid.affine, atol=1e-4)


def test_a_grid_that_no_quaternion_holds_is_written_with_the_sform_alone(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 1.9e-3  # just allowed; half a voxel at the far end of this grid
    grid = Grid((4, 512, 3), affine)
    write_nifti(labels(grid), tmp_path / "a.nii.gz")
    assert nibabel.loadsave.load(tmp_path / "a.nii.gz").header["qform_code"] == 0
    assert np.allclose(read_nifti(tmp_path / "a.nii.gz").grid.affine, affine, atol=1e-6)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    segmentation = labels(phantoms.oblique_grid())
    for path in (tmp_path / "missing" / "a.nii.gz", tmp_path / "a.txt"):
        with pytest.raises(OutputError) as caught:
            write_nifti(segmentation, path)
        assert caught.value.code == "output.not_written"
    written = nibabel.loadsave.save

    def lose_the_end(image, path):
        written(image, path)
        path.write_bytes(path.read_bytes()[:-20])

    monkeypatch.setattr(nibabel.loadsave, "save", lose_the_end)
    with pytest.raises(OutputError):
        write_nifti(segmentation, tmp_path / "a.nii.gz")

    def change_a_voxel(image, path):
        array = np.array(image.dataobj)
        array[1, 2, 3] += 1
        written(nibabel.nifti1.Nifti1Image(array, image.affine), path)

    monkeypatch.setattr(nibabel.loadsave, "save", change_a_voxel)
    with pytest.raises(OutputError) as caught:
        write_nifti(segmentation, tmp_path / "a.nii.gz")
    assert caught.value.code == "output.not_equal"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_volume_is_written_and_read_again(tmp_path: Path, dtype: type, channels: int) -> None:
    array = np.arange(channels * 120).reshape(channels, 4, 5, 6).astype(dtype)
    affine = rotation(12, 0, 7) @ np.diag([0.7, 1.1, 2.5])
    grid = Grid((4, 5, 6), np.vstack([np.column_stack([affine, [3.0, -8, 12]]), [0, 0, 0, 1]]))
    write_volume(Volume(array, grid), tmp_path / "a.nii.gz")
    for channel in range(channels):
        found = read_nifti(tmp_path / "a.nii.gz", channel)
        assert found.array.dtype == dtype
        assert np.array_equal(found.array[0], array[channel])
        assert found.grid.matches(grid, 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_volume_of_a_type_unknown_to_nifti_is_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 4, 5, 6), np.float16), Grid((4, 5, 6), np.eye(4)))
    with pytest.raises(OutputError, match=r"output\.not_written"):
        write_volume(volume, tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_a_single_slice_is_read_on_request(tmp_path: Path, name: str) -> None:
    array = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    if name == "a.mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(tmp_path / name))
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
    (scan,) = find_scans(tmp_path)
    assert np.array_equal(scan.read(one_slice=True).array[0], array)
    with pytest.raises(InputError) as caught:
        scan.read()
    assert caught.value.code == "data.2d"


def test_slices_and_volumes_are_counted_from_the_header(tmp_path: Path) -> None:
    counts = {}
    for name, shape in {"plane": (4, 5), "slice": (4, 5, 1), "volume": (4, 5, 6), "series": (4, 5, 6, 3)}.items():
        path = tmp_path / f"{name}.nii.gz"
        nibabel.loadsave.save(nibabel.nifti1.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)
        counts[name] = count_slices(path), count_volumes(path)
    assert counts == {"plane": (1, 1), "slice": (1, 1), "volume": (6, 1), "series": (6, 3)}
    path.write_bytes(b"no header")
    assert (count_slices(path), count_volumes(path)) == (1, 1)
