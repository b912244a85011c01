"""NRRD, MetaImage, and volumes whose header and voxels are two files."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
import SimpleITK

from napari_seg.errors import InputError
from napari_seg.formats import Scan, find_scans, read
from napari_seg.formats.itk import read_itk, to_itk
from napari_seg.volume import Volume


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "A.NRRD"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_images_come_back(head: Volume, tmp_path: Path, name: str, dtype: type) -> None:
    array = head.array[0].astype(dtype)
    SimpleITK.WriteImage(to_itk(array, head.grid), str(tmp_path / name.lower()), useCompression=name != "a.mha")
    if name.isupper():
        (tmp_path / name.lower()).rename(tmp_path / name)
    (scan,) = find_scans(tmp_path)
    assert scan == Scan(Path(name).stem, "itk", (tmp_path / name,))
    volume = scan.read()
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array[0], array)
    assert volume.grid.matches(head.grid)
    assert volume.notices == ()


def test_what_a_header_leaves_open_is_said(head: Volume, tmp_path: Path) -> None:
    array = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nspacings: 1 2 3\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + array.tobytes())
    volume = read(tmp_path / "a.nrrd")
    assert [notice.code for notice in volume.notices] == ["geometry.no_orientation"]
    assert np.array_equal(volume.array[0], array.T)
    assert volume.grid.spacing_mm == (1, 2, 3)


HEADER = (
    "NRRD0004\ntype: {type}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nspace directions: {dirs}\n\
endian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n{more}\n"
)
USUAL = {"type": "short", "sizes": "4 3 2", "dirs": "(1,0,0) (0,1,0) (0,0,1)", "encoding": "raw", "more": ""}


@pytest.mark.parametrize(
    ("change", "content", "code"),
    [
        ({}, b"\0" * 40, "file.bad_header"),
        ({"sizes": "40000 40000 4000"}, b"\0" * 48, "file.bad_header"),
        ({"encoding": "gzip"}, gzip.compress(bytes(range(48)))[:-20], "file.truncated"),
        ({"encoding": "gzip"}, gzip.compress(bytes(range(48)))[:-4], "file.truncated"),
        ({"encoding": "gzip"}, gzip.compress(bytes(range(48)))[:-5] + b"\0\0\0\0\0", "file.bad_checksum"),
        ({"more": "data file: ../other.raw\n"}, b"", "file.outside"),
        ({"more": "data file: /etc/passwd\n"}, b"", "file.outside"),
        ({"more": "data file: gone.raw\n"}, b"", "file.bad_header"),
        ({"dirs": "(1,0,0) (0.5,1,0) (0,0,1)"}, b"\0" * 48, "geometry.shear"),
        ({"type": "float"}, np.full(24, np.nan, "<f4").tobytes(), "data.nonfinite"),
        ({"sizes": "12 2 1"}, b"\0" * 48, "data.2d"),
        ({"type": "nonsense"}, b"\0" * 48, "file.bad_header"),
    ],
)
def test_a_faulty_image_is_refused(tmp_path: Path, change: dict, content: bytes, code: str) -> None:
    (tmp_path / "a.nrrd").write_bytes(HEADER.format(**USUAL | change).encode() + content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.nrrd")
    assert caught.value.code == code


def test_more_than_one_number_a_voxel_and_more_than_one_volume(tmp_path: Path) -> None:
    vectors = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 2), np.float32), isVector=True)
    SimpleITK.WriteImage(vectors, str(tmp_path / "a.mha"))
    several = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16))] * 2)
    SimpleITK.WriteImage(several, str(tmp_path / "b.mha"))
    one = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16))])
    SimpleITK.WriteImage(one, str(tmp_path / "c.mha"))
    codes = []
    for scan in find_scans(tmp_path)[:2]:
        with pytest.raises(InputError) as caught:
            scan.read()
        codes.append(caught.value.code)
    assert codes == ["data.not_scalar", "data.4d"]
    assert read_itk([tmp_path / "c.mha"]).array.shape == (1, 5, 4, 3)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("named", [".hdr", ".img"])
def test_a_pair_is_one_scan(head: Volume, tmp_path: Path, zipped: bool, named: str) -> None:
    image = nibabel.Nifti1Pair(head.array[0], head.grid.affine)
    image.set_sform(head.grid.affine, 1)
    nibabel.save(image, tmp_path / f"a.img{'.gz' * zipped}")
    (scan,) = find_scans(tmp_path)
    assert (scan.name, len(scan.files)) == ("a", 2)
    assert ".hdr" in scan.files[0].name
    volume = read(tmp_path / f"a{named}{'.gz' * (tmp_path / f'a{named}.gz').exists()}")
    assert np.array_equal(volume.array, head.array)
    assert volume.grid.matches(head.grid)
    assert set(volume.files) == set(scan.files)
    (tmp_path / scan.files[0].name).unlink()
    with pytest.raises(InputError, match=r"file\.pair_missing: .* a\.hdr is missing"):
        find_scans(tmp_path)[0].read()


def test_analyze_is_read_with_a_doubt(head: Volume, tmp_path: Path) -> None:
    image = nibabel.AnalyzeImage(head.array[0], None)
    image.header.set_zooms((1, 2, 3))
    nibabel.save(image, tmp_path / "a.img")
    volume = read(tmp_path)
    assert np.array_equal(volume.array, head.array)
    assert volume.grid.spacing_mm == (1, 2, 3)
    assert [notice.code for notice in volume.notices] == ["geometry.no_orientation"]
    assert "Analyze" in volume.notices[0].message


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_one_of_several_volumes_is_chosen(head: Volume, tmp_path: Path, ending: str) -> None:
    several = np.stack([head.array[0] + n for n in range(6)], axis=-1).reshape(*head.grid.shape, 2, 3)
    nibabel.save(nibabel.Nifti1Image(several, head.grid.affine), tmp_path / f"a{ending}")
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"data\.5d: .*--volume, 0 to 5"):
        scan.read()
    for n, (first, second) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]):
        assert np.array_equal(scan.read(n).array[0], several[..., first, second])
    for n in (-1, 6):
        with pytest.raises(InputError, match=r"data\.no_such_volume"):
            scan.read(n)


def test_one_of_several_stacks_of_a_series_is_chosen(head: Volume, tmp_path: Path) -> None:
    for n in range(2):
        phantoms.write_series(
            Volume(head.array + n, head.grid),
            tmp_path,
            file_name=f"{n}-{{}}",
            edit=lambda k, dataset, n=n: dataset.update(
                {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "InstanceNumber": 100 * n + k}
            ),
        )
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"series\.4d: .*--volume, 0 to 1"):
        scan.read()
    for n in range(2):
        assert np.array_equal(scan.read(n).array, head.array + n)
    with pytest.raises(InputError, match=r"data\.no_such_volume"):
        scan.read(2)
    shutil.rmtree(tmp_path)


def test_pixels_elsewhere_are_not_read_however_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(b"private " * 3)
    (tmp_path / "in").mkdir()
    fields = "dimension: 3\ntype: uchar\nsizes: 2 3 4\nencoding: raw\n"
    long = "# comment\n" * 8000
    (tmp_path / "in" / "a.nhdr").write_text(f"NRRD0004\n{fields}{long}data file: {tmp_path / 'secret.raw'}\n")
    fields = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    (tmp_path / "in" / "b.mhd").write_text(f"{fields}\n\nElementDataFile = {tmp_path / 'secret.raw'}\n")
    for scan in find_scans(tmp_path / "in"):
        with pytest.raises(InputError, match=r"file\.(bad_header|outside)"):
            scan.read()
