"""Label maps of any format: layers, crops, names, damage, and files that can't be written."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK
from edited import ball
from test_formats_fuzz import damaged
from test_formats_label_maps_written import labelled

from napari_seg.cli.main import main
from napari_seg.errors import InputError, OutputError
from napari_seg.evaluation.pairs import Pair, compare_pair
from napari_seg.formats.dicom.seg import read_dicom_seg
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import _read_files, label_map_doubts, read_label_map
from napari_seg.formats.nifti import write_nifti
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.volume import LabelOrigin, Segment, Segmentation, Term, Volume


@pytest.fixture
def series(tmp_path: Path, head: Volume) -> Volume:
    phantoms.write_series(head, tmp_path / "series")
    return read(tmp_path / "series")


def write_slicer(
    arrays: Sequence[np.ndarray], grid: Grid, path: Path, described: Sequence[tuple[str, int | None, int | None]]
) -> Path:
    """A .seg.nrrd as 3D Slicer writes it: layers (I, J, K), and of each segment its name, value and layer if stated."""
    pixels = np.stack([array.transpose(2, 1, 0) for array in arrays], axis=-1)
    image = SimpleITK.GetImageFromArray(pixels[..., 0] if len(arrays) == 1 else pixels, isVector=len(arrays) > 1)
    directions = grid.directions * np.array([[-1], [-1], [1]])
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin((grid.affine[:3, 3] * [-1, -1, 1]).tolist())
    for n, (name, value, layer) in enumerate(described):
        words = {"ID": f"Segment_{n}", "Name": name, "LabelValue": value, "Layer": layer, "Color": "1 0 0"}
        for key, word in words.items():
            if word is not None:
                image.SetMetaData(f"Segment{n}_{key}", str(word))
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def test_layers_that_share_no_voxel_are_one_label_map(head: Volume, tmp_path: Path) -> None:
    one, two = (np.zeros(head.grid.shape, np.uint8) for _ in range(2))
    one[2:6, 3:9, 4:8], two[8:12, 3:9, 4:8] = 1, 1
    described = [("one", 1, 0), ("two", 1, 1)]
    path = write_slicer([one, two], head.grid, tmp_path / "x.seg.nrrd", described)
    found = read_label_map(path)
    assert np.array_equal(found.array, one + 2 * two)
    assert found.grid.matches(head.grid)
    assert [(s.label, s.name) for s in found.segments] == [(1, "one"), (2, "two")]
    assert np.array_equal(read_label_map(path, only=["two"]).array, 2 * two)

    two[5, 3:9, 4:8] = 1
    write_slicer([one, two], head.grid, path, described)
    with pytest.raises(InputError, match=r"labels\.overlap: two shares 24 voxels"):
        read_label_map(path)
    assert np.array_equal(read_label_map(path, only=["one"]).array, one)
    with pytest.raises(InputError, match=r"labels\.unknown"):
        read_label_map(path, only=["three"])
    write_slicer([one, two], head.grid, path, [("one", 1, 0), ("two", 1, 2)])
    with pytest.raises(InputError, match=r"labels\.layers"):
        read_label_map(path)
    write_slicer([one, 3 * two], head.grid, path, [("one", 1, 0), ("three", 3, 1)])
    with pytest.raises(InputError, match=r"labels\.overlap"):
        read_label_map(path)
    write_slicer([one], head.grid, path, [("background", 0, 0), ("one", 1, 0)])
    with pytest.raises(InputError, match=r"labels\.type: segment 0 has the value 0"):
        read_label_map(path)
    write_slicer([one], head.grid, path, [("one", 4_000_000_000, 0)])
    with pytest.raises(InputError, match=r"labels\.type: segment 0 has the value 4000000000; expected 1 to 65535"):
        read_label_map(path)


def test_layers_of_older_versions_of_3d_slicer_belong_to_the_segments_in_their_order(tmp_path: Path) -> None:
    grid = Grid((6, 4, 3), np.diag([1.0, 1.5, 2.0, 1.0]))
    one, two, three = (np.zeros(grid.shape, np.uint8) for _ in range(3))
    one[:1], two[1:3], three[3:6] = 1, 1, 1
    described = [("liver", None, None), ("spleen", None, None), ("kidney", None, None)]
    path = write_slicer([one, two, three], grid, tmp_path / "x.seg.nrrd", described)
    found = read_label_map(path)
    counts = found.voxel_counts()
    assert {s.name: counts[s.label] for s in found.segments} == {"liver": 12, "spleen": 24, "kidney": 36}
    assert np.array_equal(found.array, one + 2 * two + 3 * three)
    assert found.notices == ()
    write_slicer([one, two], grid, path, described)
    with pytest.raises(InputError, match=r"labels\.layers: .* holds 2 layers, and its segments are not assigned"):
        read_label_map(path)
    write_slicer([one + 2 * two], grid, path, described[:2])
    with pytest.raises(InputError, match=r"labels\.layers: .* holds 1 layer, and its segments are not assigned"):
        read_label_map(path)
    write_slicer([one], grid, path, described[:1])
    assert read_label_map(path).voxel_counts() == {1: 12}


def test_values_that_no_segment_of_a_layer_has_are_reported(tmp_path: Path) -> None:
    grid = Grid((6, 4, 3), np.diag([1.0, 1.5, 2.0, 1.0]))
    one, two = (np.zeros(grid.shape, np.uint8) for _ in range(2))
    one[:1], two[1:3], two[4:6] = 1, 1, 3
    path = write_slicer([one, two], grid, tmp_path / "x.seg.nrrd", [("one", 1, 0), ("two", 1, 1)])
    found = read_label_map(path)
    assert found.voxel_counts() == {1: 12, 2: 24}
    (notice,) = found.notices
    assert str(notice).startswith("labels.undescribed: x.seg.nrrd holds 24 voxels of values that it does not describe")
    write_slicer([one, two], grid, path, [("one", 1, 0), ("two", 2, 1)])
    with pytest.raises(InputError, match=r"labels\.layers: two has no voxel in x\.seg\.nrrd, whose layer 1 has voxels"):
        read_label_map(path)


def test_segments_of_any_format_are_selected_by_name(head: Volume, tmp_path: Path) -> None:
    meant = labelled(head.grid)
    write_label_map(meant, tmp_path / "x.nii.gz")
    write_label_map(meant, tmp_path / "x.seg.nrrd")
    entries = [{"label": s.label, "name": s.name, "color": list(s.color)} for s in meant.segments]
    (tmp_path / "x.json").write_text(json.dumps({"segments": entries}), encoding="utf-8")
    for name in ("x.nii.gz", "x.seg.nrrd"):
        found = read_label_map(tmp_path / name, only=["Größe"])
        assert np.array_equal(found.array, np.where(meant.array == 5, 5, 0)), name
        assert [s.label for s in found.segments] == [5]
        with pytest.raises(InputError, match=r"labels\.unknown"):
            read_label_map(tmp_path / name, only=["Größe", "other"])


def test_cropped_segmentations_are_compared_on_the_whole_grid(head: Volume, tmp_path: Path) -> None:
    labels = np.zeros(head.grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    write_label_map(Segmentation(labels, head.grid, (Segment(1, "one", (255, 0, 0)),)), tmp_path / "whole.nii.gz")
    for name, start in (("a", (3, 4, 2)), ("b", (4, 1, 3))):
        crop = labels[start[0] : 12, start[1] : 14, start[2] : 9]
        grid = head.grid.box(start, (12, 14, 9)).reoriented("RAS")
        turned = resample(crop, head.grid.box(start, (12, 14, 9)), grid, order=0)
        write_slicer([turned], grid, tmp_path / f"{name}.seg.nrrd", [("one", 1, 0)])
    names = ("whole.nii.gz", "a.seg.nrrd", "b.seg.nrrd")
    for one in names:
        for other in names:
            result = compare_pair(Pair("x", tmp_path / one, tmp_path / other))
            assert not result.code, result.message
            assert [scores.dice for scores in result.scores.values()] == [1.0]
    write_label_map(Segmentation(labels[:12], head.grid.box((0, 0, 0), (12, 26, 14)), ()), tmp_path / "part.nii.gz")
    assert compare_pair(Pair("x", tmp_path / "part.nii.gz", tmp_path / "whole.nii.gz")).code == "geometry.mismatch"
    write_label_map(Segmentation(labels[:6], head.grid.box((0, 0, 0), (6, 26, 14)), ()), tmp_path / "part.nii.gz")
    assert compare_pair(Pair("x", tmp_path / "a.seg.nrrd", tmp_path / "part.nii.gz")).code == "geometry.other_grid"


@pytest.mark.parametrize("kind", ["seg", "labelmap", "rtstruct"])
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a" * 80, "a" * 64),
        ("C:\\models\\liver", "C:/models/liver"),
        ("two\nlines\tand\x1bmore", "two lines and more"),
        ("odd\udce9name", "odd?name"),
        ("\\" * 70 + "ü" * 70, "/" * 64),
    ],
)
def test_names_that_dicom_can_not_hold_are_changed_aloud(
    series: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str, stored: str
) -> None:
    array = np.zeros(series.grid.shape, np.uint8)
    array[4:9, 5:12, 3:6], array[10:12, 5:12, 3:6] = 1, 2
    segments = (Segment(1, name, (1, 2, 3), category=Term(name, name, name)), Segment(2, f"{name}b", (1, 2, 3)))
    meant = Segmentation(array, series.grid, segments)
    path, made_by = tmp_path / "x.dcm", LabelOrigin("AUTOMATIC", (name, name), is_model=True)
    write_label_map(meant, path, scan=series.source, dicom=kind, made_by=made_by)  # type: ignore[arg-type]
    assert "output.name_changed" in caplog.text
    dataset = pydicom.dcmread(path)
    assert dataset.ManufacturerModelName == stored
    found = read_label_map(path, series.grid, images=series.source.files)
    assert np.array_equal(found.array, array)
    assert found.segments[0].name == stored.replace("?", " ")  # a Segment holds no half of a character
    assert len({segment.name for segment in found.segments}) == 2
    assert all(len(segment.name) <= 64 for segment in found.segments)


@pytest.mark.parametrize("name", ["seg.dcm", "labelmap.dcm", "rtstruct.dcm", "one.seg.nrrd", "layers.seg.nrrd"])
def test_damaged_segmentations_are_refused(series: Volume, tmp_path: Path, name: str) -> None:
    array = np.zeros(series.grid.shape, np.uint8)
    array[4:9, 5:12, 3:6], array[10:12, 5:12, 3:6] = 1, 2
    path, random = tmp_path / name, np.random.default_rng(0)
    if name == "layers.seg.nrrd":
        layers = [(array == n).astype(np.uint8) for n in (1, 2)]
        write_slicer(layers, series.grid, path, [("one", 1, 0), ("two", 1, 1)])
    else:
        segments = tuple(Segment(n, f"thing {n}", (1, 2, 3)) for n in (1, 2))
        meant = Segmentation(array, series.grid, segments)
        write_label_map(meant, path, scan=series.source, dicom=path.stem)  # type: ignore[arg-type]
    content, count = path.read_bytes(), 0
    for _ in range(80):
        path.write_bytes(damaged(content, min(len(content), 8000), random))
        try:
            _read_files([path], series.grid, (), series.source.files, False, False)
        except InputError:
            count += 1
    assert count > 20


def test_damaged_label_maps_end_in_one_error_everywhere(
    series: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_label_map(labelled(series.grid), tmp_path / "x.seg.nrrd")
    content = (tmp_path / "x.seg.nrrd").read_bytes()
    start = content.index(b"space directions:")
    end = content.index(b"\n", start)
    for name in ("x.seg.nrrd", "z.seg.nrrd"):
        (tmp_path / name).write_bytes(content[:start] + b"space directions: " + b"x" * 5000 + content[end:])
    for words in (["convert", "x.seg.nrrd", "y.nii.gz"], ["evaluate", "x.seg.nrrd", "z.seg.nrrd"]):
        assert main([words[0], *(str(tmp_path / word) for word in words[1:])]) == 4
        captured = capsys.readouterr()
        assert "file." in captured.out + captured.err
    assert not (tmp_path / "y.nii.gz").exists()


def test_label_maps_are_read_in_the_worker(series: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that crashes must not take a window with it."""
    write_label_map(labelled(series.grid), tmp_path / "x.nii.gz")
    write_label_map(labelled(series.grid), tmp_path / "x.dcm", scan=series.source)
    for name in ("x.nii.gz", "x.dcm"):
        with monkeypatch.context() as context:
            context.setattr("napari_seg.formats.label_maps._labels", None)  # here, not there
            context.setattr("napari_seg.formats.label_maps.dicom_modality", None)
            read_label_map(tmp_path / name, series.grid, images=series.source.files)


@pytest.mark.parametrize("name", ["x.nii.gz", "x.seg.nrrd", "x.dcm", "x.csv", "x.json", "x.stl"])
def test_a_failed_replacement_keeps_the_old_file(
    series: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture
) -> None:
    meant = labelled(series.grid)
    write_label_map(meant, tmp_path / "labels.nii.gz")
    folder = tmp_path / "out"
    folder.mkdir()
    write_label_map(meant, folder / name, scan=series.source)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr("napari_seg.formats.atomic.os.replace", fail)
    words = ["convert", str(tmp_path / "labels.nii.gz"), str(folder / name), "--scan", str(tmp_path / "series")]
    words += ["--origin", "manual"]
    assert main([*words, "--overwrite"]) == 5
    assert "output.not_written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["x.nii.gz", "x.seg.nrrd", "x.dcm", "x.csv", "x.stl"])
def test_a_folder_that_can_not_be_written_to_is_named(
    series: Volume, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    write_label_map(labelled(series.grid), tmp_path / "labels.nii.gz")
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / name
    words = ["convert", str(tmp_path / "labels.nii.gz"), str(target), "--scan", str(tmp_path / "series")]
    words += ["--origin", "manual"]
    assert main(words) == 1
    assert f"output.no_folder: {tmp_path / 'file'} is a file;" in capsys.readouterr().err


def test_surfaces_are_written_all_or_none(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_seg.formats import surface

    meant = labelled(head.grid)
    before = {path: path.read_bytes() for path in write_label_map(meant, tmp_path / "x.stl")}
    write, count = surface._write_stl, iter(range(9))

    def fail_at_the_last(path: Path, *arguments: np.ndarray) -> None:
        if next(count):
            raise OSError(errno.ENOSPC, "no room")
        write(path, *arguments)

    monkeypatch.setattr(surface, "_write_stl", fail_at_the_last)
    other = replace(meant, array=np.roll(meant.array, 1, axis=0))
    with pytest.raises(OutputError, match=r"output\.disk_full"):
        write_label_map(other, tmp_path / "x.stl")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pixels_that_do_not_agree_with_the_header_are_reported(series: Volume, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    meant = labelled(series.grid)
    write_dicom_seg(meant, series.source, path)
    dataset = pydicom.dcmread(path)
    size = len(dataset.PixelData)
    dataset.PixelData += bytes(size // 8 // 2 * 2)
    dataset.save_as(path)
    found = read_dicom_seg(path)
    assert [notice.code for notice in found.notices] == ["file.longer"]
    dataset.PixelData += bytes(size // 2 * 2)
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"file\.bad_header"):
        read_dicom_seg(path)


def test_doubts_about_a_label_map_are_passed_on(head: Volume, tmp_path: Path) -> None:
    image = nibabel.nifti1.Nifti1Image(np.zeros(head.grid.shape, np.uint8), np.diag([1, 2, 3, 1]))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.loadsave.save(image, tmp_path / "x.nii.gz")
    assert [notice.code for notice in read_label_map(tmp_path / "x.nii.gz").notices] == ["geometry.no_orientation"]


def test_the_label_map_of_a_2d_image_has_one_slice(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    segments = tuple(Segment(n, f"segment {n}", (1, 2, 3)) for n in range(1, 12))
    write_nifti(Segmentation(labels, Grid((3, 4, 1), np.eye(4)), segments), tmp_path / "a_seg.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a_seg.nii.gz").array, labels)


def test_a_label_map_among_scans_is_doubted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A scan with as few values, or with as much background, is not."""
    mask = ball((8, 11, 6), 8.0)
    blocks = np.kron(np.arange(118).reshape(2, 59, 1), np.ones((8, 8, 8)))
    noise = np.random.default_rng(0)
    quantised = noise.integers(0, 8, mask.shape)
    for array, is_label_map in (
        (mask.astype(np.uint8), True),
        (mask * np.float32(1), True),
        (blocks.astype(np.uint8), True),
        (blocks * np.float32(0.5), False),
        (blocks.astype(np.int16) - 1000, False),
        (quantised.astype(np.uint8), False),
        ((mask * (quantised + 1)).astype(np.uint8), False),
        (np.zeros_like(mask, np.uint8), False),
    ):
        volume = Volume(array[None], Grid(array.shape, np.eye(4)))
        assert [notice.code for notice in label_map_doubts(volume)] == ["fitness.label_map"] * is_label_map
        path = phantoms.write_nifti(volume, tmp_path / "neutral.nii.gz")
        assert main(["inspect", str(path)]) == 0
        assert capsys.readouterr().out.startswith("warn" if is_label_map else "process")
    two = Volume(np.stack([quantised, mask]).astype(np.uint8), Grid(mask.shape, np.eye(4)))
    assert not label_map_doubts(two), "a mask may be the channel of a model"
