"""Saves a labels layer on the grid of its scan."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.plugin.layers import segmentation_of
from napari_seg.plugin.placement import METADATA_KEY


def write_labels(path: str, data: NDArray, meta: dict[str, Any]) -> list[str]:
    """The path of the file that holds the labels, on the file's own grid and with its exact affine.

    Args:
        path: ends in .nii, .nii.gz or .seg.nrrd.
        data: the layer's array.
        meta: the layer's settings.

    Raises:
        OutputError: the layer belongs to no scan, or the file could not be written.
    """
    from napari.viewer import current_viewer

    from napari_seg.formats.label_maps import write_label_map
    from napari_seg.plugin.foreign import adopt_labels, labels_from

    viewer = current_viewer()
    if METADATA_KEY not in meta.get("metadata", {}):
        labels = labels_from(data, meta)
        with suppress(InputError):  # the labels have no geometry: what is raised below says so
            adopt_labels(labels, () if viewer is None else viewer.layers)
        meta = {**meta, "metadata": labels.metadata}
    return [str(written) for written in write_label_map(segmentation_of(data, meta), Path(path))]
