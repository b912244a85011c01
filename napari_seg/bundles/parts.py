"""The single models that a bundle consists of, whatever kind of bundle it is."""

from __future__ import annotations

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.bundles.totalsegmentator.task import TaskBundle


def nnunet_models(bundle: Bundle) -> tuple[NnunetBundle, ...]:
    """Return the models of nnU-Net that a bundle runs, those that it runs first included; none for a MONAI bundle."""
    found: list[Bundle] = []
    if isinstance(bundle, NnunetBundle):
        return (*(nnunet_models(bundle.previous) if bundle.previous is not None else ()), bundle)
    if isinstance(bundle, EnsembleBundle):
        found += bundle.members
    if isinstance(bundle, TaskBundle):
        found += [bundle.crop, *bundle.parts] if bundle.crop is not None else bundle.parts
    return tuple(dict.fromkeys(model for one in found for model in nnunet_models(one)))
