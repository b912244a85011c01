"""napari's writer: saves a labels layer on the grid of its scan."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import moved_error, segmentation_of


def write_labels(path: str = "", data: NDArray | None = None, meta: dict[str, Any] | None = None) -> list[str]:
    """Write labels on the grid of their scan, as *Save as* does; return the path of the file.

    napari also lists this function in its command palette and calls it there without arguments. It then opens a dialog
    for the selected labels.

    Args:
        path: file to write; ends in .nii, .nii.gz or .seg.nrrd.
        data: array of the layer.
        meta: settings of the layer.

    Raises:
        OutputError: the layer belongs to no scan, the file is one of a scan, or it could not be written.
    """
    if data is None or meta is None:
        from napari_seg.plugin.commands import export_nifti

        export_nifti()
        return []
    from napari.viewer import current_viewer

    from napari_seg.formats.kinds import format_of
    from napari_seg.plugin.foreign_layers import adopt_labels, is_moved, labels_from
    from napari_seg.plugin.labels_state import state_of
    from napari_seg.plugin.structures.export import check_is_no_scan, write_file

    viewer = current_viewer()
    layers = [] if viewer is None else list(viewer.layers)
    layer = next((one for one in layers if one.data is data), None)
    edits = 0 if layer is None else state_of(layer).edits
    labels = labels_from(data, meta)
    if LayerInfo.of(labels) is None:
        with suppress(InputError):  # the labels have no geometry: `segmentation_of` raises
            adopt_labels(labels, layers)
    if is_moved(labels):
        raise moved_error(labels.name)
    check_is_no_scan(Path(path), [*layers, labels])
    segmentation = segmentation_of(data, {**meta, "metadata": labels.metadata})
    info = LayerInfo.require(labels)
    written = write_file(format_of(Path(path)), segmentation, Path(path), scan=info.scan, made_by=info.algorithm)
    if layer is not None:
        state_of(layer).mark_saved(edits)
    return [str(file) for file in written]
