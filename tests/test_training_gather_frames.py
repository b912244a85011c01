"""Frames of films, pages and volumes over time become cases."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from gathering import GRID, block, gathered, load, names, refused, write
from PIL import Image


def test_films_become_frames_of_one_patient(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "labels").mkdir()
    frames = [Image.fromarray(np.full((6, 8), 40 * n, np.uint8)) for n in range(4)]
    masks = [Image.fromarray(np.full((6, 8), n % 2, np.uint8)) for n in range(4)]
    for folder, pages in (("images", frames), ("labels", masks)):
        pages[0].save(tmp_path / "a" / folder / "film.tif", save_all=True, append_images=pages[1:])
    found, description = gathered(tmp_path / "a")
    assert found is not None
    assert [one["image"] for one in description["training"]] == [f"./imagesTr/film_frame0{n}.png" for n in (2, 4)]
    assert {one["patient"] for one in description["training"]} == {"patient 1"}
    assert np.asarray(Image.open(found.folder / description["training"][1]["image"])).max() == 120

    masks[0].save(tmp_path / "a" / "labels" / "film.tif", save_all=True, append_images=masks[1:3])
    assert "partner.frames  film  the label map has 3 frames, the image 4" in refused(tmp_path / "a", "data.faults")


def test_films_of_one_patient_belong_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pages = [Image.fromarray(np.full((6, 8), n, np.uint8)) for n in (1, 2)]
    for name in ("sub-1_run-1", "sub-1_run-2", "sub-2_run-1"):
        for ending in ("", "_seg"):
            pages[0].save(tmp_path / "a" / f"{name}{ending}.tif", save_all=True, append_images=pages[1:])
    _, description = gathered(tmp_path / "a")
    assert [one["patient"] for one in description["training"]] == [f"patient {n}" for n in (1, 1, 1, 1, 2, 2)]


def test_pages_are_slices_if_it_is_said(tmp_path: Path) -> None:
    description = "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\nspacing=2.0\nloop=false\n"
    for folder, info in (("images", {270: description, 282: 4.0, 283: 2.0}), ("labels", {})):
        (tmp_path / "a" / folder).mkdir(parents=True)
        pages = [Image.fromarray(np.full((6, 8), n, np.uint8)) for n in range(3)]
        pages[1].putpixel((7, 0), 5)
        pages[0].save(tmp_path / "a" / folder / "x.tif", save_all=True, append_images=pages[1:], tiffinfo=info)
    assert len(gathered(tmp_path / "a")[1]["training"]) == 2  # films, as before
    found, description_of = gathered(tmp_path / "a", layout="stacks")
    volume, array = load(found, description_of["training"][0])
    assert np.allclose(nibabel.affines.voxel_sizes(volume.affine), (0.00025, 0.0005, 0.002))
    assert np.array_equal(volume.dataobj, array)
    assert array.shape == (8, 6, 3)
    assert (array[7, 0, 1], array[0, 0, 2]) == (5, 2)
    assert found is not None
    assert [notice.code for notice in found.notices] == ["geometry.no_orientation"]


def test_volumes_over_time_become_frames(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "a" / folder).mkdir(parents=True)
    moving = [np.full(GRID.shape, n, np.int16) for n in range(3)]
    drawn = [np.full(GRID.shape, n, np.uint8) for n in range(3)]
    for folder, arrays in (("images", moving), ("labels", drawn)):
        content = np.stack(arrays, axis=-1)
        nibabel.save(nibabel.Nifti1Image(content, GRID.affine), tmp_path / "a" / folder / "heart.nii.gz")
    found, description = gathered(tmp_path / "a")
    assert names(description) == ["heart_frame02", "heart_frame03"]
    volume, array = load(found, description["training"][1])
    assert (np.asarray(volume.dataobj).max(), array.max()) == (2, 2)


def test_volumes_of_masks_are_no_film_unless_it_is_said(tmp_path: Path) -> None:
    def write_4d(root: Path, word: str = "", unit: str | None = None) -> Path:
        for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
            (root / folder).mkdir(parents=True)
            array = np.stack([block(n) for n in range(4)], axis=-1).astype(dtype)
            content = nibabel.Nifti1Image(array, GRID.affine)
            if unit:
                content.header.set_xyzt_units("mm", unit)
            nibabel.save(content, root / folder / f"brats{word}.nii.gz")
        return root

    message = refused(write_4d(tmp_path / "a"), "data.faults")
    assert "  labels.volumes  brats  the label map has 4 volumes of 0 and 1" in message
    assert len(gathered(write_4d(tmp_path / "b", unit="sec"))[1]["training"]) == 4
    assert len(gathered(write_4d(tmp_path / "c", "_cine"))[1]["training"]) == 4


def test_channels_of_films_are_told(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "labels/x.nii.gz")
    for name in ("images/x_0000", "images/x_0001", "labels/x"):
        (root / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.full((*GRID.shape, 5), 2, np.uint8), GRID.affine), root / f"{name}.nii.gz")
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    message = refused(root, "data.faults")
    assert (
        "partner.frames  x  it has 2 images with 5 and 5 frames, and 1 label maps with 5; expected one of both"
        in message
    )
