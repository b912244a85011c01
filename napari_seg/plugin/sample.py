"""Sample data under napari's File > Open Sample."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from napari_seg.errors import EnvironmentFault
from napari_seg.plugin.layers import LayerTuple, image_layers

_TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def mni152() -> list[LayerTuple]:
    """The MNI152 average T1 head, which comes with the nilearn package.

    Raises:
        EnvironmentFault: `environment.no_nilearn`.
    """
    from napari_seg.formats import read

    # The file is found without importing nilearn, which takes seconds.
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise EnvironmentFault("environment.no_nilearn", "the MNI152 head comes with nilearn; pip install nilearn")
    return image_layers(read(Path(package.origin).parent / _TEMPLATE))
