"""What an improved model keeps of the model that it was made from: its boxes, and the sources and licences of its data.

Its least confidence stays that of the old model: a few accepted cases are too few to measure another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.errors import InputError
from napari_seg.formats.atomic import atomic_write
from napari_seg.localise import template_file
from napari_seg.training.gather.classes import stated_classes

_STATED = ("license", "copyright", "data_source", "references", "image_classes")
"""Entries of the metadata on the data of a model."""

_OF_LOCALISER = ("network_segments", "segments", "min_confidence", "tta", "localiser")
"""Own entries of the metadata of a model that is run in boxes."""

_ADDED = ", and cases that the owner of this model accepted"
_FURTHER = """was trained further on
cases that the owner of this model accepted. Before you share it, state here: who holds the rights in these
cases, and the licence of these weights.
"""
_DATA_LICENCE = Path("docs", "data_license.txt")
_MAX_BYTES = 1 << 18
_NO_CLASSES = ("background", "ignore")


def inherited_metadata(bundle: Bundle) -> dict[str, Any]:
    """Return the entries of the metadata that a model made from another one takes over.

    Args:
        bundle: the old model.
    """
    if bundle.kind != "monai":  # planning has stated its origin
        return {}
    metadata = read_metadata(bundle.root)
    kept = {key: metadata[key] for key in _STATED if metadata.get(key)}
    source = str(kept.get("data_source", "not stated"))
    kept["data_source"] = source if source.endswith(_ADDED) else source + _ADDED
    if bundle.localiser is not None:  # its structures and its boxes stay
        ours = metadata["napari_seg"]
        kept["napari_seg"] = {key: ours[key] for key in _OF_LOCALISER if key in ours}
    return kept


def check_replayed_classes(bundle: Bundle, replay: Iterable[Path]) -> None:
    """Check, before a training is planned, that replayed data sets have no other classes than a model in boxes.

    Data sets that must be converted first are left to `check_classes`.

    Args:
        bundle: the old model.
        replay: the data sets.

    Raises:
        InputError: `improve.classes`.
    """
    if bundle.localiser is None:
        return
    own = {one.name.casefold() for one in bundle.network_segments}
    for path in replay:
        found = stated_classes(path)
        if not {name.casefold() for name in found} <= own:
            raise _other_classes(bundle, found)


def check_classes(bundle: Bundle, planned: Iterable[str]) -> None:
    """Check that a planned training of a model in boxes has the classes of the old one, which its boxes refer to.

    Args:
        bundle: the old model.
        planned: names of the classes.

    Raises:
        InputError: `improve.classes`.
    """
    found = [name for name in planned if name not in _NO_CLASSES]
    own = [one.name.casefold() for one in bundle.network_segments]
    if bundle.localiser is not None and [name.casefold() for name in found] != own:
        raise _other_classes(bundle, found)


def _other_classes(bundle: Bundle, found: Iterable[str]) -> InputError:
    return InputError(
        "improve.classes",
        f"the replayed data sets have the classes {', '.join(found)}; expected those of {bundle.name!r}: "
        f"{', '.join(one.name for one in bundle.network_segments)}; rename them in dataset.json, or do not replay it",
    )


def copy_documents(bundle: Bundle, out: Path) -> None:
    """Copy what states the licence of a model's data, and the template of its localiser, into a model made from it.

    Args:
        bundle: the old model.
        out: folder of the new model.

    Raises:
        OSError: a file could not be written.
        EnvironmentFault: `environment.template`, the old model lacks its template.
    """
    if stated := _data_licence(bundle.root):
        (out / _DATA_LICENCE).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(
            out / _DATA_LICENCE,
            f"{stated}\n\n{bundle.name} {bundle.version}, to which the above applies, {_FURTHER}",
        )
    if bundle.localiser is not None:
        file = template_file(bundle.localiser.template, bundle.root)
        if file.is_relative_to(root := bundle.root.resolve()):
            target = out / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _data_licence(root: Path) -> str:
    """Return what a model says about the licence of its data; "" if it says nothing."""
    path = root / _DATA_LICENCE
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").rstrip() if path.stat().st_size <= _MAX_BYTES else ""
    return ""


def read_metadata(root: Path) -> dict[str, Any]:
    """Return the metadata of a model's folder.

    Raises:
        OSError, ValueError: they can't be read.
    """
    content: dict[str, Any] = json.loads((root / METADATA).read_text(encoding="utf-8"))
    return content
