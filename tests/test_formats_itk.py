"""NRRD, MetaImage, and volumes whose header and voxels are two files."""

from __future__ import annotations

import bz2
import gzip
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import phantoms
import pytest
import SimpleITK

from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats.find import find, find_scans
from napari_seg.formats.itk import _pixel_file, read_image, read_itk, to_itk, with_pixel_files
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.formats.scan import Scan
from napari_seg.volume import Segment, Segmentation, Volume


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


@pytest.mark.parametrize("platform", dict.fromkeys([sys.platform, "win32"]))
def test_itk_gets_no_name_that_windows_reads_otherwise(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    folder, names = tmp_path / "Müller", list[str]()
    folder.mkdir()

    def noting(call: Callable, position: int) -> Callable:
        def noted(*args: Any, **options: Any) -> Any:
            names.append(args[position])
            return call(*args, **options)

        return noted

    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(SimpleITK, "WriteImage", noting(SimpleITK.WriteImage, 1))
    monkeypatch.setattr(SimpleITK.ImageFileReader, "SetFileName", noting(SimpleITK.ImageFileReader.SetFileName, 1))
    before = Path.cwd()
    labels = Segmentation((head.array[0] > 0).astype(np.uint8), head.grid, (Segment(1, "head", (1, 2, 3)),))
    write_label_map(labels, folder / "a.seg.nrrd")
    assert np.array_equal(read_label_map(folder / "a.seg.nrrd").array, labels.array)
    assert Path.cwd() == before
    assert len(names) == 2  # once written and once verified; a worker reads it again
    assert all(name.isascii() for name in names) is (platform == "win32")


def test_what_a_header_leaves_open_is_said(head: Volume, tmp_path: Path) -> None:
    array = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nspacings: 1 2 3\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + array.tobytes())
    volume = read(tmp_path / "a.nrrd")
    assert [notice.code for notice in volume.notices] == ["geometry.no_orientation"]
    assert np.array_equal(volume.array[0], array.T)
    assert volume.grid.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_a_space_that_is_not_the_patients_is_reported(tmp_path: Path, space: str) -> None:
    for name, stated in (("a.nrrd", space), ("b.nrrd", "RAS"), ("c.nrrd", "Left-Posterior-Superior")):
        header = HEADER.format(**USUAL).replace("left-posterior-superior", stated)
        (tmp_path / name).write_bytes(header.encode() + bytes(48))
    codes = [[notice.code for notice in read(tmp_path / name).notices] for name in ("a.nrrd", "b.nrrd", "c.nrrd")]
    assert codes == [["geometry.no_orientation"], [], []]


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
        ({"more": 'space units: "cm" "cm" "cm"\n'}, b"\0" * 48, "geometry.units"),
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


@pytest.mark.parametrize("named", ["//host/share/x.raw", "../share/x.raw", "..", "."])
def test_a_name_that_leads_out_of_the_folder_is_not_followed(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, resolving a share connects to its host."""
    (tmp_path / "a").mkdir()
    resolved, resolve = list[Path](), Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    with pytest.raises(InputError, match=r"refers to pixels outside"):
        _pixel_file(tmp_path / "a" / "a.mhd", named)
    assert resolved == [tmp_path / "a"]


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


NUMBERS = np.arange(24, dtype="<i2").reshape(2, 3, 4).T * 100
"""(4, 3, 2); its bytes lie in a file in Fortran order."""

META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {msb}\nCompressedData = {zipped}\n"
    "{more}TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 2 3\nDimSize = 4 3 2\n"
    "ElementType = MET_SHORT\nElementDataFile = {file}\n"
)
PLAIN = {"msb": "False", "zipped": "False", "more": "", "file": "LOCAL"}


def stored(array: np.ndarray = NUMBERS) -> bytes:
    return array.tobytes(order="F")


@pytest.mark.parametrize("more", ["", "CompressedDataSize = 7\n", "CompressedDataSize = 100000\n"])
def test_a_compressed_metaimage_says_itself_where_its_stream_ends(tmp_path: Path, more: str) -> None:
    path = tmp_path / "a.mha"
    header = META.format(**PLAIN | {"zipped": "True", "more": more}).encode()
    path.write_bytes(header + zlib.compress(stored()))
    assert np.array_equal(read(path).array[0], NUMBERS)
    for content, code in (
        (zlib.compress(stored()[:-2]), "file.truncated"),
        (zlib.compress(stored())[:-6], "file.truncated"),
        (zlib.compress(stored())[:-1] + b"\0", "file.bad_checksum"),
        (b"", "file.bad_header"),
    ):
        path.write_bytes(header + content)
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("raw", bytes),
        ("hex", lambda content: content.hex().encode()),
        ("text", lambda content: " ".join(map(str, np.frombuffer(content, "<i2"))).encode()),
    ],
)
def test_a_short_stream_of_nrrd_is_refused_and_a_long_one_is_said(
    tmp_path: Path, encoding: str, pack: Callable
) -> None:
    path, header = tmp_path / "a.nrrd", HEADER.format(**USUAL | {"encoding": encoding}).encode()
    path.write_bytes(header + pack(stored()))
    volume = read(path)
    assert np.array_equal(volume.array[0], NUMBERS)
    assert volume.notices == ()
    path.write_bytes(header + pack(stored()[:-4]))
    with pytest.raises(InputError, match=r"file\.(truncated|bad_header)"):
        read(path)
    path.write_bytes(header + pack(stored() + b"more"))
    volume = read(path)
    assert np.array_equal(volume.array[0], NUMBERS)
    assert [notice.code for notice in volume.notices] == ["file.longer"]


@pytest.mark.parametrize("byte_order", "<>")
def test_numbers_of_both_byte_orders_are_read(tmp_path: Path, byte_order: str) -> None:
    content = stored(NUMBERS.astype(f"{byte_order}i2"))
    big = byte_order == ">"
    header = HEADER.replace("endian: little", f"endian: {'big' if big else 'little'}").format(**USUAL)
    (tmp_path / "a.nrrd").write_bytes(header.encode() + content)
    (tmp_path / "b.mha").write_bytes(META.format(**PLAIN | {"msb": str(big)}).encode() + content)
    for scan in find_scans(tmp_path):
        assert np.array_equal(scan.read().array[0], NUMBERS)


NAMED = [
    ("orig.raw", ["orig.raw"]),
    ("./orig.raw", ["orig.raw"]),
    ("scan [1].raw", ["scan [1].raw"]),
    ("50%d.raw", ["50%d.raw"]),
    ("CASE.RAW", ["case.raw"]),
    ("sub/orig.raw", ["sub/orig.raw"]),
    ("sub\\orig.raw", ["sub/orig.raw"]),
    ("a%02d.raw 1 2 1", ["a01.raw", "a02.raw"]),
    ("a%d.raw 9 7 -2", ["a9.raw", "a7.raw"]),
    ("LIST\nx y.raw\nb.raw", ["x y.raw", "b.raw"]),
    ("LIST 2\nx y.raw\nb.raw", ["x y.raw", "b.raw"]),
]


@pytest.mark.parametrize("ending", [".mhd", ".MHD", ".nhdr"])
@pytest.mark.parametrize(("named", "files"), NAMED)
def test_a_header_names_its_pixel_files_in_any_legal_way(
    tmp_path: Path, ending: str, named: str, files: list[str]
) -> None:
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        each = len(stored()) // len(files)
        (tmp_path / name).write_bytes(stored()[number * each : (number + 1) * each])
    header = META.format(**PLAIN | {"file": named})
    if ending == ".nhdr":
        header = HEADER.format(**USUAL | {"more": f"data file: {named}"})
    path = tmp_path / f"other{ending}"
    path.write_text(header)
    assert np.array_equal(read(path).array[0], NUMBERS)
    (tmp_path / files[-1]).unlink()
    with pytest.raises(InputError, match=r"file\.bad_header: .*(missing)"):
        read(path)


def test_pixel_files_follow_their_header_also_if_they_are_missing(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "sub").mkdir(parents=True)
    (scans / "sub" / "b.raw").write_bytes(b"")
    path, plain = scans / "a.mhd", scans / "b.nii"
    for named in ("LIST\nsub/b.raw\nsub/c.raw", "LIST\nsub\\b.raw\nsub/c.raw"):
        path.write_text(META.format(**PLAIN | {"file": named}))
        assert with_pixel_files([plain, path]) == (plain, path, scans / "sub" / "b.raw", scans / "sub" / "c.raw")
    for named in ("LOCAL", "../out.raw", "a\0b.raw"):
        path.write_text(META.format(**PLAIN | {"file": named}))
        assert with_pixel_files([path]) == (path,)


@pytest.mark.parametrize("named", ["{0}/out.raw", "../out.raw", "sub/../../out.raw", "C:\\out.raw", "link/out.raw"])
def test_pixels_outside_of_the_folder_are_refused(tmp_path: Path, named: str) -> None:
    (tmp_path / "out.raw").write_bytes(stored())
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (folder / "a.mhd").write_text(META.format(**PLAIN | {"file": named.format(tmp_path)}))
    (folder / "b.nhdr").write_text(HEADER.format(**USUAL | {"more": f"data file: {named.format(tmp_path)}"}))
    for name in ("a.mhd", "b.nhdr"):
        with pytest.raises(InputError, match=r"file\.outside"):
            read(folder / name)


def test_bytes_before_the_pixels_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"head\n" + stored())
    (tmp_path / "z.raw.gz").write_bytes(gzip.compress(b"12345" + stored()))
    for number, (name, more, file) in enumerate(
        [
            (".mhd", "HeaderSize = 5\n", "a.raw"),
            (".mhd", "HeaderSize = -1\n", "a.raw"),
            (".nhdr", "byte skip: 5\n", "a.raw"),
            (".nhdr", "byte skip: -1\n", "a.raw"),
            (".nhdr", "line skip: 1\n", "a.raw"),
            (".nhdr", "byte skip: 5\n", "z.raw.gz"),
        ]
    ):
        path = tmp_path / f"{number}{name}"
        kind = "gzip" if file.endswith(".gz") else "raw"
        text = HEADER.format(**USUAL | {"more": f"{more}data file: {file}", "encoding": kind})
        path.write_text(text if name == ".nhdr" else META.format(**PLAIN | {"more": more, "file": file}))
        volume = read(path)
        assert np.array_equal(volume.array[0], NUMBERS)
        assert volume.notices == ()


def test_words_that_are_no_utf8_cost_nothing(tmp_path: Path) -> None:
    words = 'clé:=père\n# Müller\nspace units: "mm" "mm" ""\n'.encode("latin-1")
    (tmp_path / "a.nrrd").write_bytes(HEADER.format(**USUAL).encode()[:-1] + words + b"\n" + stored())
    words = "Comment = Müller\nClé = père\n".encode("latin-1")
    (tmp_path / "b.mha").write_bytes(META.format(**PLAIN).encode().replace(b"NDims", words + b"NDims", 1) + stored())
    for scan in find_scans(tmp_path):
        assert np.array_equal(scan.read().array[0], NUMBERS)


@pytest.mark.parametrize("axis", [0, 3])
def test_layers_are_read_along_any_axis(tmp_path: Path, axis: int) -> None:
    layers = np.stack([NUMBERS, NUMBERS + 1], axis=axis)
    sizes, dirs, kinds = ["4", "3", "2"], ["(1,0,0)", "(0,1,0)", "(0,0,1)"], ["domain"] * 3
    for words, word in ((sizes, "2"), (dirs, "none"), (kinds, "list")):
        words.insert(axis, word)
    more = f"kinds: {' '.join(kinds)}\n"
    header = HEADER.replace("dimension: 3", "dimension: 4").format(
        **USUAL | {"sizes": " ".join(sizes), "dirs": " ".join(dirs), "more": more}
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + stored(layers))
    assert np.array_equal(read_image(tmp_path / "a.nrrd").array, np.stack([NUMBERS, NUMBERS + 1]))


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_pixels_that_are_called_img_are_no_scan_of_their_own(tmp_path: Path, ending: str) -> None:
    (tmp_path / "pixels.img").write_bytes(np.arange(24, dtype="<i2").tobytes())
    header = META.format(**PLAIN | {"file": "pixels.img"})
    if ending == ".nhdr":
        header = HEADER.format(**USUAL | {"more": "data file: pixels.img"})
    (tmp_path / f"a{ending}").write_text(header)
    found = find(tmp_path)
    assert [scan.name for scan in found.scans] == ["a"]
    assert [(one.files[0].name, one.code) for one in found.skipped] == [("pixels.img", "skip.not_an_image")]


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
    assert set(volume.source.files) == set(scan.files)
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


def test_words_in_latin_1_are_read(head: Volume, tmp_path: Path) -> None:
    path = tmp_path / "x.seg.nrrd"
    labels = np.ones(head.grid.shape, np.uint8)
    write_label_map(Segmentation(labels, head.grid, (Segment(1, "Größe", (1, 2, 3)),)), path)
    content = path.read_bytes()
    old = content.replace("Größe".encode(), "Größe".encode("latin-1"))
    path.write_bytes(old.replace(b"Segment0_NameAutoGenerated", "Segment0_Größe".encode("latin-1")))
    assert read_label_map(path).segments[0].name == "Größe"


def test_a_full_folder_for_temporary_files_is_not_taken_for_damage(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    SimpleITK.WriteImage(to_itk(head.array[0], head.grid), str(tmp_path / "a.nrrd"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(EnvironmentFault, match=r"environment\.temporary"):
        read_itk([tmp_path / "a.nrrd"])
