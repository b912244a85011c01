"""A second look at a scan: how far the members of a model disagree on it, and its embedding.

It decides which scan a person should correct next. A normal run does none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.ways import way_of
from napari_seg.errors import BundleError
from napari_seg.inference.disagreement import Disagreement, disagreement_of
from napari_seg.inference.embedding import describe_intensities, embedding_of
from napari_seg.inference.fitness import check_fit, fitted, fitted_options
from napari_seg.inference.members import label_maps, members_of
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import located, one_of, segment_scan
from napari_seg.memory import default_budget
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Volume


@dataclass(frozen=True, eq=False)
class SecondLook:
    """What a second look at a scan finds.

    Attributes:
        disagreement: of the model's members; None if it was not required.
        embedding: (F,) float32, features of the network; None if it has no feature map of a lower resolution.
        description: (D,) float32, a coarse description of intensities and sizes, which every scan has.
    """

    disagreement: Disagreement | None
    embedding: NDArray[np.float32] | None
    description: NDArray[np.float32]


def second_look(
    volume: Volume,
    bundle: Bundle | str | None = None,
    options: SegmentOptions | None = None,
    *,
    with_disagreement: bool = True,
    progress: Progress | None = None,
) -> SecondLook:
    """Return how far the members of a model disagree on a scan, and the scan's embedding.

    The members are the networks of an ensemble. A model of one network sees the windows reversed, if it was trained so,
    or shifted. Each member takes as long as a segmentation without averaging.

    Args:
        volume: the scan.
        bundle: the bundle, its folder or its name; None: the shipped one.
        options: how the scan is segmented; averaging, maps and postprocessing are left out.
        with_disagreement: False: return the embedding only.
        progress: takes the progress, as `segment` reports it.

    Raises:
        BundleError: `bundle.no_members`, the model has no members to compare; and as for `segment`.
        NapariSegError: as for `segment`.
    """
    bundle = read_bundle(bundle)
    volume = fitted(volume, bundle)
    report = progress or ignore_progress
    budget = None if options is None else options.memory_bytes
    options = replace(
        options or SegmentOptions(),
        tta="none",
        confidence_maps=False,
        postprocess=False,
        memory_bytes=default_budget() if budget is None else budget,
    )
    options = fitted_options(options, bundle)
    names = {one.label: one.name for one in bundle.segments if not options.structures or one.name in options.structures}
    check_fit(volume, bundle)
    if isinstance(bundle, EnsembleBundle):
        return _look_of_models(volume, bundle, options, names, with_disagreement, report)
    if isinstance(bundle, TaskBundle) or way_of(bundle).kind == "workflow":
        if with_disagreement:
            raise _no_members(bundle)
        return SecondLook(None, None, describe_intensities(volume))
    settings, regions, _, report = located(volume, bundle, options, report)
    members = members_of(settings) if with_disagreement else None
    if with_disagreement and members is None:
        raise _no_members(bundle)
    found = None
    if members is not None:
        found = disagreement_of(list(label_maps(volume, regions, members, report)), names, members.description)
    embedding = None if settings.windows is None else embedding_of(volume, regions, settings)
    return SecondLook(found, embedding, describe_intensities(volume))


def _look_of_models(
    volume: Volume,
    bundle: EnsembleBundle,
    options: SegmentOptions,
    names: dict[int, str],
    with_disagreement: bool,
    report: Progress,
) -> SecondLook:
    """Return the second look of an ensemble of models, whose first one gives the embedding."""
    found = None
    if with_disagreement:
        count = len(bundle.members)
        maps = [
            segment_scan(volume, member, options, one_of(report, number, count)).array
            for number, member in enumerate(bundle.members)
        ]
        found = disagreement_of(maps, names, f"{count} models")
    settings, regions, _, _ = located(volume, bundle.members[0], options, ignore_progress)
    embedding = None if settings.windows is None else embedding_of(volume, regions, settings)
    return SecondLook(found, embedding, describe_intensities(volume))


def _no_members(bundle: Bundle) -> BundleError:
    return BundleError(
        "bundle.no_members",
        f"{bundle.name!r} is run as it is, so its predictions can't be varied; expected an ensemble, or a network that "
        "slides windows over volumes; rank by the confidence of the run instead, without the scans",
    )
