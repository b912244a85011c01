"""Sample data under napari's File > Open Sample."""

from __future__ import annotations

from napari_seg.plugin.layers import LayerTuple, image_layers


def mni152() -> list[LayerTuple]:
    """The MNI152 average T1 head, which comes with the nilearn package.

    Raises:
        EnvironmentFault: `environment.template`, nilearn is not installed.
    """
    from napari_seg.formats import read
    from napari_seg.localise import mni152_path

    return image_layers(read(mni152_path()))
