"""Segment with a bundle's own workflow, for bundles that the engine can't express (`bundles/workflow.py`)."""

from __future__ import annotations

from dataclasses import replace

from napari_seg.bundles.content import consent_hash
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.bundles.workflow import run_workflow
from napari_seg.errors import BundleError, Notice
from napari_seg.inference.fitness import check_fit
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.plausibility import find_implausible
from napari_seg.inference.settings import resolve_device
from napari_seg.progress import Progress
from napari_seg.volume import Segmentation, Volume


def segment_as_written(volume: Volume, bundle: Bundle, options: SegmentOptions, progress: Progress) -> Segmentation:
    """Return the structures that a bundle's own workflow finds in a scan; no islands are removed from them.

    Args:
        volume: the scan.
        bundle: a bundle whose way is "workflow".
        options: options of the run; only the device applies.
        progress: called with the stages "loading" and "segmenting".

    Raises:
        BundleError: the bundle is untrusted or made for other scans; `bundle.tta`, averaging is required; as for
            `run_workflow`.
        EnvironmentFault: as for `resolve_device` and `run_workflow`.
        Cancelled: `progress` raised it.
    """
    if options.tta not in (None, "none"):
        raise BundleError(
            "bundle.tta",
            f"bundle {bundle.root.name!r} is run by MONAI exactly as it is written, so its windows can't be averaged; "
            "choose --tta none",
        )
    check_fit(volume, bundle)
    device = resolve_device(options.device, options.precision)
    digest = "" if bundle.trusted else consent_hash(bundle)  # before the check, so that a later change is noticed
    check_runnable(bundle)
    result = run_workflow(volume, bundle, device, progress, digest)
    notices = [*result.notices, *find_implausible(result, bundle.min_confidence)]
    if options.confidence_maps:
        text = f"bundle {bundle.root.name!r} is run by MONAI as it is written, which gives labels without a confidence"
        notices.append(Notice("result.no_confidence", text))
    return replace(result, notices=tuple(notices))
