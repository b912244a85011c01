"""Read what the dataset.json of a data set declares about the values of its references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from napari_seg.errors import InputError
from napari_seg.evaluation.labels import Classes, split_ignored
from napari_seg.formats.endings import nifti_ending
from napari_seg.volume import name_of_segment


@dataclass(frozen=True)
class Declared:
    """Declarations about the label values of a data set, as training reads them.

    Attributes:
        ignored: values of voxels that are not annotated.
        classes: name -> values; empty if nothing is declared.
        labelled: name of a label map -> the values that are annotated in it; others have all of them.
    """

    ignored: tuple[int, ...] = ()
    classes: Classes = field(default_factory=dict)
    labelled: dict[str, frozenset[int]] = field(default_factory=dict)


def declared(references: Path) -> Declared:
    """Return what dataset.json declares; nothing if there is none, or one of another format.

    Args:
        references: a label map, or a folder of label maps; dataset.json lies in that folder or in its parent.

    Raises:
        InputError: `dataset.bad_json`, "labelled" has another form or an unknown name.
    """
    folder = references if references.is_dir() else references.parent
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            description = json.loads(path.read_text(encoding="utf-8-sig"))
            values = _values(description["labels"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        ignored = values.pop("ignore", ())
        values = {name: of_class for name, of_class in values.items() if set(of_class) != {0}}
        classes = {name: frozenset(of_class) for name, of_class in values.items()}
        return Declared(ignored, classes, dict(_labelled(description, values, path)))
    return Declared()


def as_planned(stated: Declared, planned: Classes) -> Declared:
    """Return what a data set declares, with the names of a training in place of its own.

    Args:
        stated: declarations of the data set.
        planned: meaning of its values in the training.
    """
    classes, ignored = split_ignored(planned)
    return replace(stated, ignored=tuple(dict.fromkeys((*stated.ignored, *ignored))), classes=classes)


def _values(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> values; the Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1} or {"liver": [1, 2]}."""
    found: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        if isinstance(value, str):
            name = name_of_segment(value)
            found[name] = (*found.get(name, ()), int(key))
        else:
            found[name_of_segment(key)] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    return found


def _labelled(
    description: Mapping[str, Any], values: Mapping[str, tuple[int, ...]], path: Path
) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield name of a label map -> annotated values; "labelled" lists names or values.

    Raises:
        InputError: `dataset.bad_json`.
    """
    table = description.get("labelled", {})
    listed = [*table.items()] if isinstance(table, dict) else [("all cases", str(table))]
    listing = description.get("training")
    for entry in listing if isinstance(listing, list) else ():
        if isinstance(entry, dict) and "labelled" in entry:
            name = PurePosixPath(str(entry.get("label", "")).replace("\\", "/")).name
            listed.append(
                (name.removesuffix(nifti_ending(Path(name)) or PurePosixPath(name).suffix), entry["labelled"])
            )
    for name, words in listed:
        is_list = isinstance(words, list) and all(type(word) in (str, int) for word in words)
        if not is_list or any(isinstance(word, str) and word not in values for word in words):
            raise InputError(
                "dataset.bad_json",
                f"{path} says labelled {str(words)[:80]} of {name!r}; expected a list of names or values among "
                f"{', '.join(values) or 'those of its label map'}",
            )
        found = [values[word] if isinstance(word, str) else (word,) for word in words]
        yield name, frozenset(value for of_word in found for value in of_word)
