"""Scans are found by their content: in copies, in archives, with several channels, with a tilted gantry."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from PIL import Image as Picture

from napari_seg.errors import Cancelled, InputError
from napari_seg.formats.find import find
from napari_seg.formats.read import read
from napari_seg.plugin.session_file.content import SavedGrid
from napari_seg.plugin.session_file.scans import find_scans, mark_of, read_found, read_scan, saved_scan, voxels_digest
from napari_seg.volume import Volume

SALT, OTHER = "ab" * 16, "cd" * 16


def found(saved: Any, folder: Path) -> tuple[Path, ...]:
    (one,) = find_scans(folder, [saved], SALT)
    return one.candidates[0]


def test_marks_depend_on_both_ends_and_on_the_salt(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = bytearray(300_000)
    path.write_bytes(data)
    mark = mark_of(path, SALT)
    assert mark == mark_of(path, SALT)
    assert mark != mark_of(path, OTHER)
    for at in (0, 65_535, 299_999, 300_000 - 65_536):
        changed = data.copy()
        changed[at] = 1
        path.write_bytes(changed)
        assert mark_of(path, SALT) != mark
    for size in (0, 1, 65_536, 65_537, 100_000):
        path.write_bytes(bytes(size))
        assert mark_of(path, SALT).size == size


def test_digests_of_voxels_depend_on_values_type_and_order() -> None:
    array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    digest = voxels_digest(array, SALT)
    assert voxels_digest(np.asfortranarray(array), SALT) == digest
    assert voxels_digest(array.astype(">i2"), SALT) == digest
    others = (array + 1, array.astype(np.int32), array.reshape(1, 2, 4, 3), array[:, ::-1])
    assert digest not in [voxels_digest(other, SALT) for other in others]
    assert voxels_digest(array, OTHER) != digest


def test_a_copy_in_one_folder_is_preferred_to_parts_in_several(head: Volume, tmp_path: Path) -> None:
    files = phantoms.write_series(head, tmp_path / "b")
    saved = saved_scan(read(tmp_path / "b"), SALT)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    (tmp_path / "a").mkdir()
    shutil.copy(files[3], tmp_path / "a" / "one")
    assert {file.parent.name for file in found(saved, tmp_path)} == {"b"}
    for file in files[4:]:
        file.unlink()
    assert {file.parent.name for file in found(saved, tmp_path)} == {"c"}
    shutil.rmtree(tmp_path / "c")
    (one,) = find_scans(tmp_path, [saved], SALT)
    assert one.candidates == ()
    assert one.may_have_changed


def test_scans_with_equal_headers_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        folder.mkdir()
        size = "DimSize = 8 6 4\nElementType = MET_SHORT\n"
        (folder / "ct.mhd").write_text(f"ObjectType = Image\nNDims = 3\n{size}ElementDataFile = ct.raw\n")
        (folder / "ct.raw").write_bytes(np.full((4, 6, 8), value, np.int16).tobytes())
    saved = saved_scan(read(tmp_path / "b" / "ct.mhd"), SALT)
    assert found(saved, tmp_path) == (tmp_path / "b" / "ct.mhd", tmp_path / "b" / "ct.raw")
    volume, notices = read_scan(saved, found(saved, tmp_path), SALT)
    assert (volume.array.max(), notices) == (2, ())


def test_scans_that_are_alike_at_both_ends_are_told_apart(tmp_path: Path) -> None:
    """Skull-stripped scans of one study, which have equal headers, and zeros at both ends."""
    grid = phantoms.oblique_grid((64, 64, 40))
    volumes = []
    for number in range(3):
        array = np.zeros((1, *grid.shape), np.int16)
        array[..., 20:30] = number + 1
        (tmp_path / f"sub-{number}").mkdir()
        volumes.append(read(phantoms.write_nifti(Volume(array, grid), tmp_path / f"sub-{number}" / "T1.nii")))
    assert len({mark_of(volume.source.files[0], SALT) for volume in volumes}) == 1
    shutil.copy(tmp_path / "sub-2" / "T1.nii", tmp_path / "sub-2" / "copy.nii")
    for volume in volumes:
        saved = saved_scan(volume, SALT)
        (one,) = find_scans(tmp_path, [saved], SALT)
        back, notices = read_found(saved, one, SALT)
        assert back.source.files[0].parent == volume.source.files[0].parent
        assert notices == ()
    shutil.rmtree(tmp_path / "sub-1")
    (one,) = find_scans(tmp_path, [saved_scan(volumes[0], SALT)], SALT)
    with pytest.raises(InputError, match="3 scans look like") as caught:
        read_found(saved_scan(volumes[0], SALT).model_copy(update={"voxels": "0" * 32}), one, SALT)
    assert caught.value.code == "session.scan_changed"


def test_files_that_were_distributed_are_found(head: Volume, tmp_path: Path) -> None:
    files = phantoms.write_series(head, tmp_path / "all")
    before = read(tmp_path / "all")
    saved = saved_scan(before, SALT)
    for number, file in enumerate(files):
        folder = tmp_path / f"part {number % 3}"
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    volume, notices = read_scan(saved, found(saved, tmp_path), SALT)
    np.testing.assert_array_equal(volume.array, before.array)
    assert notices == ()


def test_scans_in_archives_are_found(head: Volume, tmp_path: Path) -> None:
    files = phantoms.write_series(head, tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"inside/{file.name}")
    shutil.rmtree(tmp_path / "series")
    before = read(tmp_path / "scan.zip")
    saved = saved_scan(before, SALT)
    assert saved.archive is not None
    (tmp_path / "moved").mkdir()
    (tmp_path / "scan.zip").rename(tmp_path / "moved" / "other.zip")
    volume, _ = read_scan(saved, found(saved, tmp_path), SALT)
    np.testing.assert_array_equal(volume.array, before.array)


def test_colours_and_pages_of_2d_images(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Picture.fromarray(colours).save(tmp_path / "a.png")
    (scan,) = find(tmp_path / "a.png").scans
    before = scan.read(one_slice=True)
    saved = saved_scan(before, SALT)
    assert saved.channels == 3
    volume, notices = read_scan(saved, found(saved, tmp_path), SALT)
    np.testing.assert_array_equal(volume.array, before.array)
    assert notices == ()


def test_a_straightened_scan_is_straightened_again(head: Volume, tmp_path: Path) -> None:
    def tilted(k: int, dataset: Any) -> None:
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + 0.5 * k, z]

    phantoms.write_series(head, tmp_path / "series", edit=tilted)
    (scan,) = find(tmp_path / "series").scans
    with pytest.raises(InputError, match="tilt"):
        scan.read()
    before = scan.read(resample_tilt=True)
    saved = saved_scan(before, SALT)
    assert saved.is_tilted
    volume, notices = read_scan(saved, found(saved, tmp_path), SALT)
    np.testing.assert_array_equal(volume.array, before.array)
    assert notices == ()


def test_another_grid_is_refused(head: Volume, tmp_path: Path) -> None:
    path = phantoms.write_nifti(head, tmp_path / "head.nii")
    saved = saved_scan(read(path), SALT)
    moved = SavedGrid.of(phantoms.oblique_grid(spacing_mm=(1.5, 1.25, 2.6)))
    with pytest.raises(InputError) as caught:
        read_scan(saved.model_copy(update={"grid": moved}), (path,), SALT)
    assert caught.value.code == "session.scan_changed"


def test_a_search_can_be_stopped(head: Volume, tmp_path: Path) -> None:
    saved = saved_scan(read(phantoms.write_nifti(head, tmp_path / "head.nii")), SALT)

    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        find_scans(tmp_path, [saved], SALT, stop)
    with pytest.raises(InputError) as caught:
        find_scans(tmp_path / "none", [saved], SALT)
    assert caught.value.code == "file.unreadable"


def test_only_files_of_the_right_size_are_read(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_seg.plugin.session_file import scans

    path = phantoms.write_nifti(head, tmp_path / "head.nii")
    saved = saved_scan(read(path), SALT)
    for number in range(50):
        (tmp_path / f"{number}.dcm").write_bytes(bytes(number))
    opened: list[Path] = []
    monkeypatch.setattr(scans, "mark_of", lambda file, salt: opened.append(file) or mark_of(file, salt))
    assert found(saved, tmp_path) == (path,)
    assert opened == [path]
