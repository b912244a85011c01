"""Catalogue of published models: what each finds, its licence, and where it can be had. It needs no network.

`catalogue.json` is written by `scripts/catalogue.py` from the MONAI Model Zoo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from napari_seg.bundles.store.download import Digest
from napari_seg.bundles.store.licence import LicenceKind

REASONS = {
    "classification": "it classifies whole images and marks no structures",
    "detection": "it finds boxes and marks no voxels",
    "generation": "it makes synthetic images and marks no structures",
    "instances": "it separates single cells (instances), which is not supported",
    "landmarks": "it finds points and marks no voxels",
    "prompts": "it needs clicks or other prompts, which are not supported",
    "registration": "it aligns two images and marks no structures",
}
"""Why a published model can't be used, by the word in the catalogue."""

Refusal = Literal["", "classification", "detection", "generation", "instances", "landmarks", "prompts", "registration"]


@dataclass(frozen=True)
class Entry:
    """A published model.

    Attributes:
        name: its name, which `models add` takes.
        title: its title.
        version: version that the catalogue describes.
        finds: names of the structures.
        modality: DICOM's code of the images, or "RGB" for photographs; "" if unknown.
        channels: names of the images that one case consists of; () for a single one.
        size_bytes: size of the download; None if unknown.
        licence: name of its licence; "" if unknown.
        licence_kind: class of its licence.
        data: source of the training data; "" if unknown.
        data_licence: licences of the training data; "" if unknown.
        refused: what it does in place of segmentation, a key of `REASONS`; "" if it segments.
        source: where `models add` downloads it.
        archive_digest: digest of the zip with everything on NGC; None if unknown.
    """

    name: str
    title: str
    version: str
    finds: tuple[str, ...]
    modality: str
    channels: tuple[str, ...]
    size_bytes: int | None
    licence: str
    licence_kind: LicenceKind
    data: str
    data_licence: str
    refused: Refusal
    source: str
    archive_digest: Digest | None

    @property
    def reason(self) -> str:
        """Why the model can't be used; "" if it can."""
        return REASONS[self.refused] if self.refused else ""


@cache
def entries() -> tuple[Entry, ...]:
    """Return all published models, in the order of their names, those that can't be used last."""
    catalogue = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    found = [_entry(one) for one in catalogue["entries"]]
    return tuple(sorted(found, key=lambda one: (bool(one.refused), one.name.lower())))


def entry_of(name: str) -> Entry | None:
    """Return the published model of a name; None if there is none."""
    return next((one for one in entries() if one.name.lower() == name.lower()), None)


def search(words: str = "") -> list[Entry]:
    """Return the published models that all words describe: by name, structure, modality, licence or training data.

    Args:
        words: words, or their beginnings, in any order; no words: all models.
    """
    wanted = words.lower().replace("_", " ").split()
    return [one for one in entries() if all(word in _text(one) for word in wanted)]


def _text(entry: Entry) -> str:
    words = (entry.name, entry.title, entry.modality, entry.licence, entry.licence_kind, entry.data, entry.refused)
    return " ".join((*words, *entry.finds, *entry.channels)).lower().replace("_", " ")


def _entry(one: dict[str, Any]) -> Entry:
    return Entry(
        **{key: one[key] for key in ("name", "title", "version", "modality", "size_bytes", "licence", "licence_kind")},
        **{key: one[key] for key in ("data", "data_licence", "refused", "source")},
        finds=tuple(one["finds"]),
        channels=tuple(one["channels"]),
        archive_digest=Digest.parse(one["archive_digest"]),
    )
