"""How the windows of a model are laid and averaged: plain data, for every kind of bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace

from napari_seg.bundles.tta import TTA

SHIFTS = 4
"""Copies that "shifts" averages: shifted by 0 to 3 voxels along the diagonal, as the bundle's tta.yaml does."""


@dataclass(frozen=True)
class WindowSettings:
    """Window settings of a bundle, named as the arguments of MONAI's `sliding_window_inference`.

    With the mode "nnunet", windows lie and weigh as in nnU-Net.

    Attributes:
        roi_size: shape of a window; None or below 1 stands for the whole axis.
        overlap: fraction of a window that the next one repeats, per axis.
        batch: number of windows that the network processes together.
        mode: "constant", "gaussian" or "nnunet", whose Gaussian has its peak on a voxel and no zeros.
        sigma_scale: standard deviation of the Gaussian as a fraction of the window, per axis.
        padding_mode: how an image smaller than a window is padded, as torch names it.
        cval: value of the padding mode "constant".
        mirror_axes: axes along which the logits of a window are averaged over its mirror images; not in MONAI.
        shifts: number of copies that logits are averaged over, each shifted by one more voxel along the diagonal.
        shift: voxels by which the network sees each window shifted along the diagonal.
        reversed_axes: axes along which the network sees each window reversed.
    """

    roi_size: tuple[int | None, int | None, int | None]
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    batch: int = 1
    mode: str = "constant"
    sigma_scale: tuple[float, float, float] = (0.125, 0.125, 0.125)
    padding_mode: str = "constant"
    cval: float = 0.0
    mirror_axes: tuple[int, ...] = ()
    shifts: int = 1
    shift: int = 0
    reversed_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= fraction < 1 for fraction in self.overlap) or not {*self.mirror_axes} <= {0, 1, 2}:
            raise ValueError(
                f"found overlap {self.overlap} and mirror_axes {self.mirror_axes}; expected fractions from 0 to below "
                "1, and axes from 0 to 2"
            )

    @property
    def passes(self) -> int:
        """Passes of each window through the network."""
        return self.shifts * 2 ** len(self.mirror_axes)

    def with_tta(self, tta: TTA | None) -> WindowSettings:
        """Return these settings with test-time averaging by name; None keeps that of the bundle's inferer.

        "mirror" takes the axes that the inferer names, otherwise all three.
        """
        if tta is None:
            return self
        axes = (self.mirror_axes or (0, 1, 2)) if tta == "mirror" else ()
        return replace(self, mirror_axes=axes, shifts=SHIFTS if tta == "shifts" else 1)
