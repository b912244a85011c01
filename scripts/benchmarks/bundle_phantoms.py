"""Synthetic scans for foreign bundles: bodies with bright balls on small, oblique, anisotropic grids, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AIR_HU, FAT_HU, BODY_HU = -1000, -90, 40


def write_ct(folder: Path, shape: Sequence[int], spacing_mm: Sequence[float], phases: int = 1) -> list[Path]:
    """Write a CT in HU; each phase enhances the balls differently on the same grid.

    Args:
        folder: gets phase_0.nii.gz, phase_1.nii.gz, ...
        shape: voxels along each axis.
        spacing_mm: distance of the voxels along each axis.
        phases: number of files.
    """
    paths = []
    for phase in range(phases):
        inside, depth, level = _body(shape, seed=phase)
        values = np.where(inside, np.where(depth < 0.08, FAT_HU, BODY_HU), AIR_HU) + np.where(inside, level * 180, 0)
        values = values + _noise(shape, seed=10 + phase) * np.where(inside, 8, 3)
        paths.append(_write(folder / f"phase_{phase}.nii.gz", np.round(values).astype(np.int16), spacing_mm))
    return paths


def write_mr(folder: Path, shape: Sequence[int], spacing_mm: Sequence[float], names: Sequence[str]) -> list[Path]:
    """Write MR images of several contrasts on one grid, background 0; named as `names`."""
    paths = []
    for channel, name in enumerate(names):
        inside, depth, level = _body(shape, seed=channel)
        values = np.where(inside, 300 + 80 * depth + 500 * level + 15 * _noise(shape, seed=channel), 0)
        paths.append(_write(folder / f"{name}.nii.gz", np.clip(values, 0, 2000).astype(np.int16), spacing_mm))
    return paths


def write_image2d(folder: Path, shape: Sequence[int]) -> list[Path]:
    """Write an RGB image (PNG) of so many columns and rows."""
    from PIL import Image

    channels = []
    for channel in range(3):
        inside, depth, level = _body((*shape, 1), seed=channel)
        values = np.where(inside, 90 + 30 * depth + 120 * level, 20) + 4 * _noise((*shape, 1), seed=channel)
        channels.append(np.clip(values[..., 0], 0, 255).astype(np.uint8).T)
    path = folder / "image.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(channels, axis=-1)).save(path)
    return [path]


def write_zeros(path: Path, like: Path) -> Path:
    """Write an empty label map on the grid of an image, for bundles that read one beside the image."""
    import nibabel

    image = nibabel.load(like)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    return path


def _body(shape: Sequence[int], seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Return the body, the depth below its surface (0 to 1), and the brightness of its balls (0 to 1).

    The balls lie in the same places for all seeds, which differ in their brightness.
    """
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    flat = 0.4 if shape[2] > 1 else 0
    radius = np.sqrt((x / 0.9) ** 2 + ((y - 0.05) / 0.8) ** 2 + flat * z**2)
    places, brightness = np.random.default_rng(7), np.random.default_rng(100 + seed)
    level = np.zeros(shape)
    for _ in range(14):
        at, size, bright = places.uniform(-0.6, 0.6, 3), places.uniform(0.18, 0.4), brightness.uniform(0.3, 1)
        distance = ((x - at[0]) ** 2 + (y - at[1]) ** 2 + (flat > 0) * (z - at[2]) ** 2) / size**2
        level = np.maximum(level, bright * np.clip(1 - distance, 0, 1) ** 0.5)
    return radius < 1, np.clip(1 - radius, 0, 1), level


def _noise(shape: Sequence[int], seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(1000 + seed).standard_normal(tuple(shape))


def _write(path: Path, array: NDArray, spacing_mm: Sequence[float]) -> Path:
    """Write NIfTI with index axes towards L, P and S, turned by 10 and 6 degrees."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    a, b = np.radians([10, 6])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.0, -1.0, 1.0]) * np.asarray(spacing_mm)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(array.shape) - 1) / 2 + [11, -17, 23]
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path
