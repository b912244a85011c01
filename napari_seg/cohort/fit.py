"""Check that a model fits the scans of a run, before any other work: as far as their files tell without being read."""

from __future__ import annotations

from collections.abc import Sequence

from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import command_of_monai
from napari_seg.cohort.case import Case
from napari_seg.errors import BundleError
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.image2d import COLOURS
from napari_seg.formats.scan import Scan


def check_fit(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a model that fits none of the scans.

    Args:
        bundle: the model.
        cases: cases that it segments.

    Raises:
        BundleError: `bundle.channels`, it expects another number of channels; `bundle.dimensions`, it segments 2D
            images, and all scans are volumes.
    """
    _check_channels(bundle, cases)
    _check_dimensions(bundle, cases)


def _check_channels(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a bundle whose number of channels none of the scans has, before any other work.

    Raises:
        BundleError: `bundle.channels`.
    """
    if cases and not any(bundle.in_channels in _possible_channels(case.scan, bundle.in_channels) for case in cases):
        raise BundleError(
            "bundle.channels",
            f"bundle {bundle.root.name!r} expects the {bundle.in_channels} channels {', '.join(bundle.channel_names)}; "
            "found scans with another number; name the image of each with --channel NAME=FILE"
            f"{_or_by_monai(bundle)}",
        )


def _check_dimensions(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a bundle for 2D images if all scans are volumes, before any other work.

    Raises:
        BundleError: `bundle.dimensions`.
    """
    if bundle.spatial_dims == 2 and cases and all(_is_volume(case.scan) for case in cases):
        raise BundleError(
            "bundle.dimensions",
            f"bundle {bundle.root.name!r} segments 2D images, and all scans are volumes; choose a bundle for volumes "
            f"or for their slices{_or_by_monai(bundle)}",
        )


def _or_by_monai(bundle: Bundle) -> str:
    """Return the advice to run a bundle in MONAI; "" for a model that MONAI does not run."""
    return f", or run the bundle with MONAI: {command_of_monai(bundle)}" if bundle.kind == "monai" else ""


def _is_volume(scan: Scan | ChannelSet) -> bool:
    """Return whether a scan has several slices, as far as its files tell without being read."""
    if isinstance(scan, ChannelSet):
        return False
    if scan.format == "nifti":
        from napari_seg.formats.nifti import count_slices

        return count_slices(scan.files[0]) > 1
    return scan.format == "dicom" and len(scan.files) > 1


def _possible_channels(scan: Scan | ChannelSet, wanted: int) -> tuple[int, ...]:
    """Return the numbers of channels that a scan may have, as far as its files tell without being read."""
    if isinstance(scan, ChannelSet):
        return (1, len(scan.channels)) if scan.problem is None else (wanted,)  # reading it raises the problem
    if scan.format == "image2d":
        return 1, COLOURS
    if scan.format == "nifti":
        from napari_seg.formats.nifti import count_volumes

        return 1, count_volumes(scan.files[0])
    return (1,)
