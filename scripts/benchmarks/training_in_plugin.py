"""Segment files in the plugin as a person does, without a window; a program of its own for `scripts/training_kinds.py`.

    python scripts/benchmarks/training_in_plugin.py BUNDLE RESULT.npz FILE [FILE ...]

The files are listed and opened by the model of the *Study* tab, and the bundle is added, checked and run by that of the
*Segment* tab, in its worker process, on a viewer model. The result is read from the labels layer, as saving does. The
last line of the output is a JSON object: what was done, or why nothing can be run, as the window says it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Segment the files that the command names and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("result", type=Path, help="file to write, .npz: labels (I, J, K), values and names")
    parser.add_argument("files", nargs="+", type=Path, help="scan, one file for each channel, or folder of a series")
    parser.add_argument("--volume", type=int, default=0, help="number of the volume or page of a file of several")
    parser.add_argument("--channels", type=int, default=0, help="number of volumes of the file that are channels")
    args = parser.parse_args()
    print(json.dumps(segment_files(args.bundle, args.result, args.files, args.volume, args.channels)))


def segment_files(bundle: Path, result: Path, files: list[Path], number: int, channels: int) -> dict[str, Any]:
    """Open files, segment them and write the labels; return what was done, or the "obstacle"."""
    from napari.components import ViewerModel
    from napari.layers import Labels

    from napari_seg.plugin.layers import segmentation_of
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.study.model import StudyModel

    viewer = ViewerModel()
    session = Session(viewer)
    study, model = StudyModel(session), SegmentModel(session)
    opened = []
    for path in files:
        study.list_path(path)
        session.jobs.wait(300)
        if not study.entries:
            return {"obstacle": f"the Study tab lists nothing: {_said(session)}"}
        (entry,) = study.entries
        if not entry.can_open:
            return {"obstacle": f"the Study tab: {entry.words} ({entry.verdict.code})"}
        for volume in range(channels) if channels else [number]:
            before = len(viewer.layers)
            study.open(entry, volume)
            session.jobs.wait(300)
            if len(viewer.layers) == before:
                return {"obstacle": f"opening: {_said(session)}"}
            opened.append(viewer.layers[-1])
    model.add_bundle(bundle)
    session.jobs.wait(300)
    for name, layer in zip(model.channels, opened, strict=False):
        model.choose_channel(name, layer)
    if model.obstacle:
        return {"obstacle": f"the Segment tab: {model.obstacle}"}
    model.start()
    session.jobs.wait(900)
    found = [layer for layer in viewer.layers if isinstance(layer, Labels)]
    if not found:
        return {"obstacle": f"the run: {_said(session)}"}
    settings = {"name": found[-1].name, "metadata": found[-1].metadata, "colormap": found[-1].colormap}
    segmentation = segmentation_of(found[-1].data, settings)
    np.savez_compressed(
        result,
        labels=segmentation.array,
        affine=segmentation.grid.affine,
        values=[segment.label for segment in segmentation.segments],
        names=[segment.name for segment in segmentation.segments],
    )
    return {"layers": [layer.name for layer in viewer.layers], "messages": [m.text for m in session.messages]}


def _said(session: Any) -> str:
    return "; ".join(message.text for message in session.messages) or "no message"


if __name__ == "__main__":
    main()
