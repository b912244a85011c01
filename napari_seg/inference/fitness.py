"""Fitness of a scan for a bundle: what the bundle's card and its preprocessing say against the scan, before a run.

A scan is refused only if the result would be meaningless: another modality, other channels. All else is a notice.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle
from napari_seg.bundles.nnunet.postprocessing import read_postprocessing
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.errors import BundleError, InputError, Notice
from napari_seg.formats.channels import in_order
from napari_seg.formats.image2d import in_colours
from napari_seg.geometry import Grid
from napari_seg.inference.nnunet.arrangement import arranged_grid, network_spacing
from napari_seg.inference.options import SegmentOptions
from napari_seg.structure_names import find_names
from napari_seg.volume import Volume, modality_code

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.bundles.windows import WindowSettings

MAX_COARSER = 3.0
"""Ratio of the scan's voxel size to the network's above which a notice is given: thick slices are mostly invented."""

MIN_WINDOW_FRACTION = 0.25
"""Fraction of a window's volume that a scan must fill; below it the network sees mostly padding."""

AIR_HU = -900
"""Hounsfield units that only air and lung reach; no MR image has such values."""

FAT_HU = -200
"""Hounsfield units below those of fat: every CT with air around or inside the body has voxels below it."""

MIN_LEVELS = 50
"""Whole numbers between the extremes of a scan below which a notice is given if a model is shown whole numbers."""

MIN_AIR_FRACTION = 0.01
"""Fraction of voxels with the values of air that tells a CT; single outliers do not."""


def fitted(volume: Volume, bundle: Bundle) -> Volume:
    """Return a scan with the channels of a bundle: named ones in its order, a 2D image in grey or RGB as it expects.

    Raises:
        InputError: `channels.*`, the names of the channels are not those of the bundle.
    """
    return in_order(in_colours(volume, bundle.in_channels), bundle.channel_names)


def fitted_options(options: SegmentOptions, bundle: Bundle) -> SegmentOptions:
    """Return options with the required structures as a bundle spells them.

    A structure of a network that is run on parts of a scan, such as on both sides, stands for that of each part.

    Raises:
        BundleError: `bundle.structures`, it has no structure of one of these names; `bundle.no_postprocessing`, it has
            no such steps of nnU-Net; `bundle.nnunet`, they can't be used.
    """
    if options.postprocess:
        read_postprocessing(bundle)
    try:
        located = _located_names(bundle)
        known = [*(segment.name for segment in bundle.segments), *located]
        names = find_names(options.structures, known, f"{bundle.name!r}", in_any_order=True)
    except InputError as error:
        text = f"{error.message}; 'napari-seg models show {shlex.quote(bundle.reference)}' lists them"
        commas = "; names are separated by spaces, not commas" * any("," in name for name in options.structures)
        raise BundleError("bundle.structures", text + commas) from error
    names = [each for name in names for each in (name, *located.get(name, ()))]
    return replace(options, structures=tuple(dict.fromkeys(names)))


def _located_names(bundle: Bundle) -> dict[str, list[str]]:
    """Return name of a network's structure -> its names in a scan in which the bundle's regions are located."""
    if bundle.localiser is None:
        return {}
    names = {segment.label: segment.name for segment in bundle.segments}
    return {
        segment.name: [names[r.labels[segment.label]] for r in bundle.localiser.regions if segment.label in r.labels]
        for segment in bundle.network_segments
    }


def check_fit(volume: Volume, bundle: Bundle) -> None:
    """Raise if a bundle was made for other scans than this one.

    Raises:
        BundleError: `bundle.channels`, `bundle.dimensions` or `bundle.modality`, it was.
    """
    channels = volume.array.shape[0]
    if channels != bundle.in_channels:
        names = f" ({', '.join(bundle.channel_names)})" if bundle.in_channels > 1 else ""
        raise BundleError(
            "bundle.channels",
            f"the scan has {channels} channel(s); bundle {bundle.name!r} expects {bundle.in_channels}{names}",
        )
    if bundle.spatial_dims == 2 and volume.grid.shape[2] != 1:
        raise BundleError(
            "bundle.dimensions",
            f"the scan has {volume.grid.shape[2]} slices; bundle {bundle.name!r} segments 2D images; choose another "
            "bundle, or an image of one slice",
        )
    if volume.grid.shape[2] == 1 and not _takes_one_slice(volume, bundle):
        segmented = "volumes slice by slice" if bundle.takes_one_slice else "volumes"
        raise BundleError(
            "bundle.dimensions",
            f"the scan has one slice; bundle {bundle.name!r} segments {segmented}; choose the whole volume, or a "
            "bundle for 2D images",
        )
    check_modality(volume.modality, bundle)


def _takes_one_slice(volume: Volume, bundle: Bundle) -> bool:
    """Return whether a bundle segments a scan of one slice."""
    if isinstance(bundle, EnsembleBundle):
        return all(_takes_one_slice(volume, member) for member in bundle.members)
    if bundle.spatial_dims == 2:
        return True
    if isinstance(bundle, NnunetBundle) and bundle.configuration.is_2d:
        return arranged_grid(volume, bundle.configuration).shape[0] == 1  # the slices of other plans lie across it
    if bundle.kind == "monai" and volume.source.format != "image2d":
        return False  # its transforms may turn a volume, and its slices may lie across another axis
    return bundle.takes_one_slice is not False  # where nothing shows it, the network decides


def check_modality(modality: str, bundle: Bundle) -> None:
    """Raise if a bundle was made for scans of another modality.

    Args:
        modality: modality that the scan states, in DICOM's words; "" if it states none.
        bundle: the bundle.

    Raises:
        BundleError: `bundle.modality`.
    """
    found, expected = (modality_code(name) for name in (modality, bundle.modality))
    if found and expected and found != expected:
        raise BundleError(
            "bundle.modality",
            f"the scan is {modality}; model {bundle.name!r} was trained on {bundle.modality}; choose a model for "
            f"{found}: 'napari-seg models list' lists those on this machine, 'napari-seg models search {found}' those "
            "that can be installed",
        )


def modality_doubts(suggested: str, bundle: Bundle) -> tuple[Notice, ...]:
    """Return a notice if a file that states no modality seems to be of another one than a bundle was made for.

    Args:
        suggested: modality that the name of the file or the JSON file next to it suggests; "" without one.
        bundle: the bundle.
    """
    found, expected = (modality_code(name) for name in (suggested, bundle.modality))
    if not found or not expected or found == expected:
        return ()
    text = f"its file name, or the JSON file next to it, says {found}; model {bundle.name!r} was trained on {expected}"
    return (Notice("fitness.modality", f"{text}; check the scan, or choose a model for {found}"),)


def doubts(volume: Volume, bundle: Bundle, model: Model, windows: WindowSettings | None) -> tuple[Notice, ...]:
    """Return notices on a scan that fits a bundle, but differs from what its network was trained on.

    Args:
        volume: the scan, which passed `check_fit`.
        bundle: the bundle.
        model: its model.
        windows: how windows are laid over the whole scan; None if its inferer does not slide windows, or if regions are
            located first.
    """
    if volume.source.format == "image2d":  # neither lengths nor calibrated values
        return ()
    axes, spacing_mm = _network_axes(volume, model)
    found = [*_intensity_doubts(volume, bundle), *_spacing_doubts(volume, axes, spacing_mm)]
    if windows is not None:
        window_mm = [max(n or 0, 0) * mm for n, mm in zip(windows.roi_size, spacing_mm, strict=True)]
        found += _size_doubts(volume, axes, window_mm)
    return tuple(found)


def task_doubts(volume: Volume, bundle: Bundle, spacing_mm: tuple[float, float, float] | None) -> tuple[Notice, ...]:
    """Return notices on a scan that fits a task of several models, which are shown parts of it in another voxel size.

    Args:
        volume: the scan, which passed `check_fit`.
        bundle: the task.
        spacing_mm: voxel size that the models are shown, along x, y and z; None: that of the scan.
    """
    found = _intensity_doubts(volume, bundle)
    return tuple(found if spacing_mm is None else [*found, *_spacing_doubts(volume, "RAS", spacing_mm)])


def whole_number_doubts(volume: Volume, bundle: Bundle) -> tuple[Notice, ...]:
    """Return a notice if truncation to whole numbers, as TotalSegmentator does it, leaves few of a scan's values.

    Args:
        volume: the scan.
        bundle: the task whose models are shown the truncated values.

    Raises:
        BundleError: `bundle.intensities`, it leaves at most two of them, as of a scan from 0 to 1.
    """
    if volume.array.dtype.kind != "f":
        return ()
    sample = volume.array[0][::2, ::2, ::2]
    sample = sample[np.isfinite(sample)]
    whole = np.trunc(sample)
    if not sample.size or np.array_equal(sample, whole):
        return ()
    low, high = (float(value) for value in np.percentile(sample, (0.1, 99.9)))
    levels = int(np.ptp(np.trunc((low, high)))) + 1
    if levels >= MIN_LEVELS:
        return ()
    text = f"nearly all values reach from {low:.4g} to {high:.4g}; task {bundle.name!r} truncates them to whole numbers"
    advice = "multiply the intensities, for example by 1000, or use the scan before it was normalised"
    if levels <= 2:
        raise BundleError("bundle.intensities", f"{text}, so that its models would see nothing; {advice}")
    return (Notice("fitness.intensities", f"{text}, of which {levels} are left; {advice}"),)


def _intensity_doubts(volume: Volume, bundle: Bundle) -> list[Notice]:
    """Return a notice if the values can't be those of the bundle's modality."""
    expected = modality_code(bundle.modality)
    low, high = float(volume.array[0].min()), float(volume.array[0].max())
    if expected == "CT" and low > FAT_HU:
        text = f"the values reach from {low:.4g} to {high:.4g}; bundle {bundle.name!r} expects a CT in Hounsfield units"
        return [Notice("fitness.intensities", f"{text} with air, {FAT_HU} and below; export it without windowing")]
    if expected == "MR" and not volume.modality and low <= AIR_HU:
        sample = volume.array[0][::2, ::2, ::2]
        if np.count_nonzero(sample <= AIR_HU) >= MIN_AIR_FRACTION * sample.size:
            text = f"the values reach {low:.4g}, like air in a CT; bundle {bundle.name!r} was trained on MR"
            return [Notice("fitness.modality", f"{text}; check that the scan is an MR image")]
    return []


def _spacing_doubts(volume: Volume, axes: str, spacing_mm: Sequence[float]) -> list[Notice]:
    """Return a notice if the scan is much coarser than the network's image along any axis."""
    found, expected = _by_patient_axis(volume.grid), dict(zip(axes, spacing_mm, strict=True))
    if all(found[axis] <= MAX_COARSER * expected[axis] for axis in axes):
        return []
    text = f"the voxels have {_mm(found)} mm, those of the network {_mm(expected)} mm"
    return [Notice("fitness.spacing", f"{text} (right x front x top); small structures may be missed")]


def _size_doubts(volume: Volume, axes: str, window_mm: Sequence[float]) -> list[Notice]:
    """Return a notice if the network sees mostly padding around the scan."""
    found, window = _by_patient_axis(volume.grid, volume.grid.size_mm), dict(zip(axes, window_mm, strict=True))
    fraction = prod(min(found[axis] / window[axis], 1) if window[axis] else 1 for axis in axes)
    if fraction >= MIN_WINDOW_FRACTION:
        return []
    text = f"the scan covers {_mm(found)} mm, and the network sees {_mm(window)} mm at once (right x front x top)"
    return [Notice("fitness.field_of_view", f"{text}, so it sees mostly padding; segment a larger part of the body")]


def _network_axes(volume: Volume, model: Model) -> tuple[str, tuple[float, ...]]:
    """Return the axes of the network's image, such as "RAS" for right, front and top, and its voxel size along them.

    Without transforms of orientation or spacing they are those of the scan. Opposite directions count as the same.
    """
    if isinstance(model.preprocessing, Configuration):
        grid = arranged_grid(volume, model.preprocessing)
        return _without_sign(grid.orientation), network_spacing(model.preprocessing, grid.spacing_mm)
    from monai.transforms import Orientationd, Spacingd

    axes, spacing_mm = _without_sign(volume.grid.orientation), None
    for transform in model.preprocessing.transforms:
        if isinstance(transform, Orientationd):
            axes = _without_sign(str(transform.ornt_transform.axcodes or "RAS"))
        if isinstance(transform, Spacingd):
            values = np.ravel(transform.spacing_transform.pixdim)
            spacing_mm = [float(values[n] if n < len(values) else values[-1]) for n in range(3)]
            break
    own = _by_patient_axis(volume.grid)
    return axes, tuple(
        mm if mm > 0 else own[axis] for axis, mm in zip(axes, spacing_mm or (0.0, 0.0, 0.0), strict=True)
    )


def _without_sign(orientation: str) -> str:
    return orientation.upper().replace("L", "R").replace("P", "A").replace("I", "S")


def _by_patient_axis(grid: Grid, lengths: Sequence[float] = ()) -> dict[str, float]:
    """Return lengths along the index axes of a grid, its voxel sizes by default, by "R", "A" and "S"."""
    return dict(zip(_without_sign(grid.orientation), lengths or grid.spacing_mm, strict=True))


def _mm(by_axis: Mapping[str, float]) -> str:
    return " x ".join(f"{by_axis[axis]:.3g}" for axis in "RAS")
