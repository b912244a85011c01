"""Catalogue of published models: what each finds, its licence, and where it can be had. It needs no network.

`catalogue.json` is written by `scripts/catalogue.py` from the MONAI Model Zoo; the tasks of TotalSegmentator come
from their own table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from napari_seg.bundles.store.download import Digest
from napari_seg.bundles.store.licence import LicenceKind
from napari_seg.bundles.totalsegmentator.table import (
    VERSION,
    is_task_name,
    note_of,
    parts_needed,
    structures_of,
    tasks,
    title_of,
    weights_of,
)
from napari_seg.bundles.totalsegmentator.task import PREFIX, Task
from napari_seg.errors import nearest

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

NGC_URL = (
    "https://api.ngc.nvidia.com/v2/models/nvidia/monaihosting/{name}/versions/{version}/files/{name}_v{version}.zip"
)
"""Address of the zip of a model of the MONAI Model Zoo."""

_SYNONYMS = (
    {"tumor", "tumour", "glioma", "neoplasm", "lesion"},
    {"kidney", "renal", "kideny"},  # as one model spells it
    {"heart", "cardiac", "myocardium"},
    {"liver", "hepatic"},
    {"lung", "pulmonary"},
    {"brain", "cerebral"},
    {"bowel", "intestine", "colon"},
    {"esophagus", "oesophagus"},
    {"mr", "mri"},
    {"rgb", "photo", "photograph", "video"},
)
"""Words for the same in a search."""

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
        topics: further words by which it is found, such as the organs that it is about.
        way: how it runs, see `ways.Way`.
        needs_consent: whether code of it runs.
        note: what a user has to know before the download; "" if nothing.
        refused: what it does in place of segmentation, a key of `REASONS`; "" if it segments.
        source: where `models add` downloads it.
        archive_digest: digest of the zip with everything on NGC; None if unknown or if there is none.
        is_licensed: whether only holders of a licence of TotalSegmentator can download the weights, with it.
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
    topics: tuple[str, ...]
    way: Literal["engine", "workflow", "refused"]
    needs_consent: bool
    note: str
    refused: Refusal
    source: str
    archive_digest: Digest | None
    is_licensed: bool = False

    @property
    def archive_url(self) -> str:
        """Address of the zip with everything; "" if there is none."""
        if is_task_name(self.name):
            return ""
        return NGC_URL.format(name=quote(self.name), version=quote(self.version))

    @property
    def reason(self) -> str:
        """Why the model can't be used; "" if it can."""
        return REASONS[self.refused] if self.refused else ""


@cache
def entries() -> tuple[Entry, ...]:
    """Return all published models, in the order of their names, those that can't be used last."""
    catalogue = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    found = [_entry(one) for one in catalogue["entries"]]
    found += [_entry_of_task(task) for task in tasks().values()]
    return tuple(sorted(found, key=lambda one: (bool(one.refused), one.name.lower())))


def entry_of(name: str) -> Entry | None:
    """Return the published model of a name; None if there is none."""
    return next((one for one in entries() if one.name.lower() == name.lower()), None)


def search(words: str = "") -> list[Entry]:
    """Return the published models that all words describe: by name, structure, modality, licence or training data.

    Args:
        words: words, their synonyms, or their beginnings, in any order; no words: all models.
    """
    return [one for one in entries() if all(_has(one, word) for word in _split(words))]


def counts(words: str) -> dict[str, int]:
    """Return word -> number of published models that it describes."""
    return {word: sum(_has(one, word) for one in entries()) for word in _split(words)}


def similar_word(word: str) -> str:
    """Return the word of the catalogue that is most like one that describes no published model; "" if none is."""
    return nearest(word, dict.fromkeys(known for one in entries() for known in re.findall(r"[^\W\d]{3,}", _text(one))))


def _split(words: str) -> list[str]:
    return words.lower().replace("_", " ").split()


def _has(entry: Entry, word: str) -> bool:
    """Return whether a word, or a synonym of it, begins a word of an entry."""
    same = next((group for group in _SYNONYMS if word in group or word.removesuffix("s") in group), {word})
    return re.search(rf"\b({'|'.join(map(re.escape, same))})", _text(entry)) is not None


def _text(entry: Entry) -> str:
    parts = re.sub("(?<=[a-z])(?=[A-Z])", " ", entry.name)  # wholeBody is two words too
    data = entry.data.replace("TotalSegmentator", "")  # a model trained on its data is none of its tasks
    words = (entry.name, parts, entry.title, entry.modality, entry.licence, entry.licence_kind, data)
    return (
        " ".join((*words, "licensed" * entry.is_licensed, entry.refused, *entry.topics, *entry.finds, *entry.channels))
        .lower()
        .replace("_", " ")
    )


def _entry(one: dict[str, Any]) -> Entry:
    return Entry(
        **{key: one[key] for key in ("name", "title", "version", "modality", "size_bytes", "licence", "licence_kind")},
        **{key: one[key] for key in ("data", "data_licence", "way", "needs_consent", "note", "refused", "source")},
        topics=tuple(one["topics"]),
        finds=tuple(one["finds"]),
        channels=tuple(one["channels"]),
        archive_digest=Digest.parse(one["archive_digest"]),
    )


def _entry_of_task(task: Task) -> Entry:
    weights = [weights_of(number) for number in dict.fromkeys(part.number for part in parts_needed(task))]
    sizes = [one.size_bytes for one in weights]
    return Entry(
        name=PREFIX + task.name,
        title=title_of(task),
        version=VERSION,
        finds=tuple(segment.name for segment in structures_of(task)),
        modality=task.modality,
        channels=(),
        size_bytes=sum(size or 0 for size in sizes) if all(sizes) else None,
        licence=task.licence,
        licence_kind="open" if task.licence_kind == "open" else "non-commercial",
        data="",
        data_licence="",
        topics=("nnU-Net", *task.name.split("_")),
        way="engine",
        needs_consent=False,
        note=note_of(task),
        refused="",
        source=PREFIX + task.name,
        archive_digest=None,
        is_licensed=task.licence_kind == "licensed",
    )
