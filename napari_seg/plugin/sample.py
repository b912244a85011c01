"""Sample data under napari's File > Open Sample."""

from __future__ import annotations

import numpy as np

from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.plugin.layer_info import frame_of
from napari_seg.plugin.layers import LayerTuple, image_layers
from napari_seg.volume import Volume


def mni152() -> list[LayerTuple]:
    """Return the MNI152 average T1 head, which is part of the nilearn package.

    Raises:
        EnvironmentFault: `environment.template`, nilearn is not installed.
    """
    from dataclasses import replace

    from napari_seg.formats.read import read
    from napari_seg.localise import mni152_path

    return _layers_of(replace(read(mni152_path()), name="MNI152 T1"))


def synthetic_ct() -> list[LayerTuple]:
    """Return a synthetic abdomen in Hounsfield units: fat, muscle, spine, ribs, liver, spleen and two kidneys."""
    grid = Grid((180, 140, 80), np.array([[-2, 0, 0, 180], [0, -2, 0, 140], [0, 0, 3, -120], [0, 0, 0, 1.0]]))
    x, y, z = _coordinates(grid)
    hu = np.full(grid.shape, -1000.0, np.float32)
    hu[_ellipsoid(x, y, 0 * z, 170, 120, 1)] = -100  # fat
    hu[_ellipsoid(x, y, 0 * z, 158, 108, 1)] = 50
    hu[_ellipsoid(x, y - 10, z - 20, 140, 85, 150)] = 20
    hu[_ellipsoid(x - 70, y + 5, z - 25, 62, 60, 70)] = 110  # liver, on the patient's right
    hu[_ellipsoid(x + 95, y + 30, z - 40, 28, 38, 45)] = 120
    for side in (-1, 1):
        hu[_ellipsoid(x - 62 * side, y + 50, z + 30 + 8 * side, 24, 22, 48)] = 180
    hu[_ellipsoid(x, y + 60, 0 * z, 24, 20, 1)] = 500
    hu[_ellipsoid(x, y + 62, 0 * z, 9, 9, 1)] = 30
    rim = _ellipsoid(x, y, 0 * z, 156, 106, 1) & ~_ellipsoid(x, y, 0 * z, 146, 97, 1)
    hu[rim & (np.sin(z / 6 + y / 25) > 0.55) & (y < 85)] = 600
    noise = np.random.default_rng(0).normal(0, 12, grid.shape).astype(np.float32)
    return _layers_of(Volume((hu + noise).astype(np.int16)[None], grid, name="Synthetic CT", modality="CT"))


def oblique_mr() -> list[LayerTuple]:
    """Return a synthetic head of thick oblique slices, which is shown along its own axes without interpolation."""
    tilt, turn = np.radians(18), np.radians(9)
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    directions = about_z @ about_x @ RAS_FROM_LPS[:3, :3]
    grid = Grid.around((4.0, -12.0, 20.0), (200, 240, 180), (1, 1, 4), directions)
    x, y, z = _coordinates(grid)
    y, z = y + 12, z - 20
    value = np.zeros(grid.shape, np.float32)
    value[_ellipsoid(x, y, z, 76, 96, 88)] = 500
    value[_ellipsoid(x, y, z, 70, 90, 82)] = 90
    value[_ellipsoid(x, y, z, 66, 86, 78)] = 330
    value[_ellipsoid(x, y, z, 52, 70, 62)] = 420
    for side in (-1, 1):
        value[_ellipsoid(x - 12 * side, y + 2, z - 8, 8, 34, 16)] = 80
    value[_ellipsoid(x, y - 100, z + 20, 9, 14, 14)] = 450  # the nose
    value[_ellipsoid(x + 40, y - 30, z - 30, 9, 9, 9)] = 620  # a bright ball on the patient's left
    noise = np.random.default_rng(1).normal(0, 14, grid.shape).astype(np.float32)
    array = np.clip(value + noise, 0, None).astype(np.int16)
    return _layers_of(Volume(array[None], grid, name="Oblique MR", modality="MR"))


def _layers_of(volume: Volume) -> list[LayerTuple]:
    """Return the layers of a volume in the frame of the current viewer."""
    from napari.viewer import current_viewer

    viewer = current_viewer()
    return image_layers(volume, None if viewer is None else frame_of(viewer.layers))


def _coordinates(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y and z of all voxels, in mm, RAS+."""
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)).astype(np.float32), -1, 0)
    return x, y, z


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """Return the mask of an ellipsoid around the origin with the half axes a, b and c, in mm."""
    inside: np.ndarray = (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1
    return inside
