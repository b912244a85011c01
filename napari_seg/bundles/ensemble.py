"""Check that an ensemble of MONAI bundles gives what its bundles declare; nothing of a bundle runs here.

The probabilities of the members are averaged on the scan's grid, where the greatest one wins, or the last region above
one half. A member that makes its labels in another way, or an entry that an average does not apply, is refused, because
its labels would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from napari_seg.bundles.output import LabelStep, Output
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError

_SAME = ("in_channels", "channel_names", "out_channels", "background", "network_segments")
"""Attributes that are equal in all members, so that their channels can be averaged one by one."""

_OF_ONE_MODEL = ("coarse", "localiser", "thresholds")
"""Entries of the metadata that count only where one model is run."""


def check_averaged(bundle: Bundle, members: Sequence[Bundle], has_largest: bool) -> None:
    """Check that an average of members gives what they and their bundle declare.

    Args:
        bundle: bundle that names the members.
        members: the members.
        has_largest: whether the bundle declares `largest`, which replaces the members' choice of largest islands.

    Raises:
        BundleError: `bundle.members`, it does not.
    """
    unused = [key for key in (*_OF_ONE_MODEL, "previous", "tta") if getattr(bundle, key)] + ["match"] * bundle.is_exact
    unused += ["in_one_piece"] * any(one.in_one_piece for one in (*bundle.segments, *bundle.network_segments))
    if unused:
        raise BundleError(
            "bundle.members",
            f"bundle {bundle.root.name!r} declares members and {', '.join(unused)}, which an average of members does "
            "not apply; remove it there; tta and match belong to the members, and largest replaces in_one_piece",
        )
    for member in members:
        if fault := _fault(bundle, member, members[0], has_largest):
            raise BundleError(
                "bundle.members",
                f"bundle {bundle.root.name!r} can't average its member {member.root.name!r}, which {fault}; expected "
                "members like those of 'napari-seg train --compare', whose labels are decided on the scan's grid; "
                "choose one member alone, by its folder",
            )


def output_of_average(first: Bundle) -> Output:
    """Return how the averages of members become labels; all have the meaning of the first one."""
    channels = tuple(replace(one, threshold=0.5) for one in first.output.channels)
    return Output(decision=first.output.decision, channels=channels)


def _fault(bundle: Bundle, member: Bundle, first: Bundle, has_largest: bool) -> str:
    """Return why a member can't be averaged with the first one; "" if it can."""
    if declared := [key for key in _OF_ONE_MODEL if getattr(member, key)]:
        return f"declares {', '.join(declared)}"
    if member.spatial_dims == 2:
        return "segments 2D images"
    if member.output.decision != "argmax" and not _are_regions_by_half(member):
        return "decides its labels by thresholds other than one half"
    if member.output.decided_on != "scan":
        return "decides its labels on the grid of its network"
    if steps := [step.name for step in member.output.steps if not (has_largest and _keeps_largest(step))]:
        return f"changes its labels by {', '.join(steps)}"
    if output_of_average(member) != output_of_average(first):
        return "gives other labels to its channels"
    if different := [key for key in _SAME if getattr(member, key) != getattr(bundle, key)]:
        return f"has other {', '.join(different)}"
    return ""


def _are_regions_by_half(member: Bundle) -> bool:
    """Return whether each channel is a region that is present where its probability is above one half."""
    output = member.output
    half = 0.0 if output.activation == "none" else 0.5
    is_whole = output.has_order and len(output.channels) == member.out_channels
    return is_whole and all(channel.threshold == half for channel in output.channels)


def _keeps_largest(step: LabelStep) -> bool:
    """Return whether a step does what `largest` does: it keeps the largest island of each of some labels."""
    return step.name == "KeepLargestConnectedComponent" and dict(step.arguments).keys() == {"applied_labels"}
