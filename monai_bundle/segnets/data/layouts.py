"""Find the cases of a data set in any of the field's usual layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segnets.data.bids import bids_cases, bids_labels
from segnets.data.declarations import MAX_VALUE, do_overlap, label_value, labelled_values, region_labels
from segnets.data.lists import TABLES, Entry, Listed, is_list_of_cases, listed_cases, read_table
from segnets.data.pairing import (
    IMAGES_2D,
    VOLUMES,
    Case,
    are_2d_images,
    count_unread,
    group_channels,
    has_channel_number,
    image_files,
    is_2d_image,
    list_endings,
    pair,
    places_of,
    stem,
    without_channel,
)
from segnets.data.patients import ONE_FOLDER, Origin, lie_in_one_folder, matches_any, patients_of
from segnets.data.voc import voc_cases, voc_names
from segnets.errors import TrainingError

_EXPECTED = """expected one of these layouts:
  decathlon  dataset.json that lists its training cases
  nnunet     imagesTr/<case>_0000.nii.gz (a file a channel) and labelsTr/<case>.nii.gz
  bids       sub-*/[ses-*/]anat/*_T1w.nii.gz and *_dseg, *_label-*_seg or *_mask.nii.gz, under derivatives/ or there
  voc        JPEGImages/ and SegmentationClass/
  list       a CSV table with the columns image and label, or a JSON data list with "training"
  folders    images/ and labels/ of .nii, .nii.gz, .png, .jpg, .bmp or .tif; or give --images_dir and --labels_dir"""
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "img")
_LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "mask", "segmentations")
_FILES_OF_A_CASE = (("label", "label maps"), ("image", "images"))
_MAX_LIST_BYTES = 1 << 26
_SHOWN = 200
"""Number of characters of a value in a message."""
_MAX_NAME = 200
_BAD_NAME = re.compile(
    r"\s*[$@%]|_(target|disabled|requires|mode|desc|args)_$|.*[\x00-\x1f\x7f-\x9f\ud800-\udfff]|\s*$", re.DOTALL
)


@dataclass(frozen=True)
class Dataset:
    """List the cases of a data set, with the names of its labels and channels.

    Attributes:
        layout: "decathlon", "nnunet", "bids", "voc", "list" or "folders".
        cases: `{"name", "image", "label"}` each, in the order of the list (decathlon, list) or of their names; "image"
            is a path, or a list of paths if every channel has its own file.
        unpaired: images without a label map and label maps without an image; entries of `cases` that lack the other.
            Those of a list also have "list", its name, and "missing", the paths in it that do not exist.
        labels: name -> values in the label files, without background; empty if the data set names none.
        channels: names of the image's channels; empty if the data set names none.
        is_2d: whether the images are 2D images (PNG, JPEG, ...) and not volumes.
        ignored: values of voxels that are not annotated (PASCAL VOC's 255 around objects, nnU-Net's "ignore"); they are
            neither trained nor scored.
        regions: name of a region -> its label in results, see `segnets.data.declarations.region_labels`; empty if no
            two names in `labels` share a value.
        labelled: name of a case -> the values that are annotated in it; a case without an entry has all of them.
        replayed: names of cases of an earlier training, which `EpochSampler` mixes in at a share.
        unread: ending -> number of files in a format that is not read.
        root: folder of the data set.
        patients: name of a case -> its patient.
        parts: name of a case -> "training", "validation" or "test", if the data set states them for all cases.
        folds: name of a case -> its fold of a cross-validation, from 0, if the data set states it.
        unclear: what a list states about patients and parts in a way that can't be used; a new training is refused.
        unused: what the data set states and is not used, which a plan says.
        is_unmatched: whether the pattern of the patients matches no case; a new training is refused.
        soft: whether the label maps hold fractions from 0 to 1, one structure after the other along their fourth axis;
            then the value of a structure is its number in the file, from 1.
    """

    layout: str
    cases: tuple[Case, ...]
    unpaired: tuple[Case, ...] = ()
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    is_2d: bool = False
    ignored: tuple[int, ...] = ()
    regions: dict[str, int] = field(default_factory=dict)
    labelled: dict[str, tuple[int, ...]] = field(default_factory=dict)
    replayed: tuple[str, ...] = ()
    unread: dict[str, int] = field(default_factory=dict)
    root: Path = Path()
    patients: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    folds: dict[str, int] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    is_unmatched: bool = False
    soft: bool = False

    @property
    def places(self) -> list[tuple[str, ...]]:
        """Paths of the images and the label map of each case below the data set, see `pairing.places_of`."""
        return places_of(self.cases, self.root if self.root.is_dir() else self.root.parent)


def find_dataset(
    dataset_dir: str | Path,
    layout: str = "auto",
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    channels: Sequence[str] | None = None,
    patient: str | None = None,
    convertible: bool = False,
    anywhere: bool = False,
    soft: bool = False,
) -> Dataset:
    """Find the cases, labels, channels and patients of a data set; opens no scan.

    A file `labels.json` in the folder, {"1": name} or {name: 1}, names the label values in any layout.

    Args:
        dataset_dir: folder of the data set, or a list of its cases: a CSV or TSV table, or a JSON data list.
        layout: "decathlon", "nnunet", "bids", "voc", "list" or "folders"; "auto" detects it from the folder's content.
        images_dir: folder of the images in the layout "folders", relative to `dataset_dir` or absolute; if None, the
            first folder with a usual name.
        labels_dir: the same for the label maps; in the layout "bids", the derivative that holds the `_dseg` files.
        channels: suffixes of the files that form an image in the layout "bids", e.g. ["T1w", "FLAIR"], on one grid; if
            None, the most frequent suffix alone. In a table, the titles of its columns.
        patient: regular expression; its match in a case's name identifies the patient, or that in the path of its image
            below the data set, if it contains a / or the cases are numbered. None: see `segnets.data.patients`.
        convertible: also find cases that training can't read before their files are converted: volumes with the endings
            `segnets.data.pairing.CONVERTIBLE`, and in BIDS several label maps of a scan, as a list.
        anywhere: accept files outside of the folder in a list that lies in it, which may come from someone else. If
            `dataset_dir` is the list itself, they are always accepted.
        soft: the label maps hold fractions, see `Dataset.soft`.

    Raises:
        TrainingError: "dataset.missing", "dataset.unknown" (no layout fits), "dataset.ambiguous" (several layouts fit,
            or several files fit one scan), "dataset.no_cases", "dataset.bad_json", "dataset.bad_table",
            "dataset.bad_name", "dataset.outside", "dataset.patient" (no regular expression).
    """
    root = Path(dataset_dir)
    is_file = root.is_file() and root.name.lower().endswith((*TABLES, ".json"))
    if not (root.is_dir() or is_file):
        raise TrainingError(
            "dataset.missing", f"{root} is no folder; give the folder of the data set, or a list of its cases"
        )
    if layout == "auto" and images_dir and labels_dir:
        layout = "folders"
    description = {} if layout in ("bids", "voc") else _json(root)
    if layout == "auto":
        layout = "list" if is_file else _detect_layout(root, description, convertible, soft)
    listed: Listed | None = None
    if layout == "decathlon":
        dataset, listed = _decathlon(root, description, anywhere)
    elif layout == "nnunet":
        dataset = _nnunet(root, description, convertible)
    elif layout == "bids":
        found = bids_cases(root, labels_dir, channels, convertible, soft)
        dataset = Dataset("bids", found.cases, found.unpaired, found.labels, found.channels, unread=found.unread)
    elif layout == "voc":
        dataset = _voc(root)
    elif layout == "list":
        path = root if is_file else _only_list(root)
        description = _json(path)
        dataset, listed = _list(path, description, channels, anywhere or is_file)
    elif layout == "folders":
        dataset = _folders(root, images_dir, labels_dir, description, convertible)
    else:
        raise TrainingError("dataset.unknown", f"there is no layout {layout!r}; {_EXPECTED}")
    if (names := (root.parent if is_file else root) / "labels.json").is_file() and names != root:
        labels, ignored = _named_values(_labels_json(names), names)
        dataset = replace(dataset, labels=labels, ignored=tuple(dict.fromkeys((*dataset.ignored, *ignored))))
    if not dataset.cases:
        found = f"no image has a label map ({len(dataset.unpaired)} files are unpaired)"
        advice = "give an image and its label map the same name"
        if layout in ("list", "decathlon"):
            gone = [f"{sum(key not in case for case in dataset.unpaired)} {what}" for key, what in _FILES_OF_A_CASE]
            found = f"none of the {len(dataset.unpaired)} listed cases has an image and a label map that exist"
            advice = (
                f"expected the files that {'dataset.json' if layout == 'decathlon' else 'the list'} lists, of which "
                f"{' and '.join(gone)} do not exist; restore them, or correct their paths, which are absolute or "
                "relative to the list"
            )
        if dataset.unread:
            found += f"; not read were {list_endings(dataset.unread)}"
            advice = f"training reads {', '.join(VOLUMES + IMAGES_2D)}; convert the others"
        raise TrainingError("dataset.no_cases", f"{root} ({dataset.layout}): {found}; {advice}")
    for name in (*dataset.labels, *dataset.channels):
        if _BAD_NAME.match(name) or len(name) > _MAX_NAME:
            # MONAI runs a string that begins with $ as Python wherever it stands in a config
            raise TrainingError(
                "dataset.bad_name",
                f"{root} names a label or channel {_start(name)}; expected 1 to {_MAX_NAME} characters, no $, @ or % "
                "at the beginning, no control characters, and no key of MONAI's configs such as _target_; rename it",
            )
    dataset = replace(dataset, root=root, soft=soft)
    stated = listed.patients if listed else {}
    is_named = not (listed and listed.is_numbered)
    origins = [
        Origin(place[0], case["name"] if is_named else "", stated.get(case["name"], ""))
        for case, place in zip(dataset.cases, dataset.places, strict=True)
    ]
    patients = patients_of(origins, patient, only_named=is_named)
    unused = listed.unused if listed else ()
    if patient is None and lie_in_one_folder(origins, (root.parent if is_file else root).absolute().name):
        unused = (*unused, ONE_FOLDER)
    order = description.get("regions_class_order")
    names = {case["name"] for case in (*dataset.cases, *dataset.unpaired)}
    return replace(
        dataset,
        patients={case["name"]: who for case, who in zip(dataset.cases, patients, strict=True)},
        parts=listed.parts if listed else dataset.parts,
        folds=listed.folds if listed else {},
        regions=region_labels(dataset.labels, order) if do_overlap(dataset.labels) else {},
        labelled=labelled_values(description, names, dataset.labels, listed.labelled if listed else None),
        replayed=listed.replayed if listed else (),
        unclear=listed.unclear if listed else (),
        is_unmatched=patient is not None and not matches_any(origins, patient),
        unused=unused,
    )


def stated_labels(folder: Path) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return name -> values, and the values to ignore, as labels.json or else dataset.json in a folder says.

    Raises:
        TrainingError: "dataset.bad_json".
    """
    if (names := folder / "labels.json").is_file():
        return _named_values(_labels_json(names), names)
    return _named_values(_json(folder), folder / "dataset.json")


def images(dataset_dir: str | Path, num_channels: int = 1) -> list[Case]:
    """Return the images of a folder, for inference: `{"name", "image"}` each, sorted by name.

    Args:
        dataset_dir: folder of the images, or of an `imagesTs/` or another usual folder that holds them.
        num_channels: with more than one, files `<case>_0000`, `<case>_0001`, ... are the channels of one image. 2D
            images are grouped only if each case has exactly `num_channels` files; three 2D images of a single case
            are frames, not channels.

    Raises:
        TrainingError: "dataset.no_images".
    """
    root = Path(dataset_dir)
    for folder in (root / "imagesTs", *(root / name for name in _IMAGE_FOLDERS), root / "JPEGImages", root):
        if found := image_files(folder):
            if num_channels > 1 and all(has_channel_number(path) for path in found):
                cases = group_channels(found)
                numbers = [[int(stem(Path(path))[-4:]) for path in paths] for paths in cases.values()]
                is_complete = all(its == list(range(num_channels)) for its in numbers)
                # a single 2D image may have three channels itself
                if not is_2d_image(found[0]) or (is_complete and (len(cases) > 1 or num_channels != 3)):
                    return [{"name": name, "image": paths} for name, paths in cases.items()]
            return [{"name": stem(path), "image": str(path)} for path in found]
    raise TrainingError("dataset.no_images", f"no {', '.join(VOLUMES + IMAGES_2D)} in {root}, its imagesTs/ or images/")


def _detect_layout(root: Path, description: Mapping[str, Any], convertible: bool, soft: bool) -> str:
    listing, found = description.get("training"), []
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        cases = {stem(path) for path in image_files(root / "labelsTr", convertible)}
        if any(without_channel(path) in cases - {stem(path)} for path in image_files(root / "imagesTr", convertible)):
            found.append("nnunet")
    if not found and isinstance(listing, list) and listing and isinstance(listing[0], dict):
        found.append("decathlon")
    if next(bids_labels(root, soft=soft), None):
        found.append("bids")
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        found.append("voc")
    if not found and all(any((root / n).is_dir() for n in names) for names in (_IMAGE_FOLDERS, _LABEL_FOLDERS)):
        found.append("folders")
    if not found and len(_lists_in(root)) == 1:
        found.append("list")
    if len(found) == 1:
        return found[0]
    if found:
        raise TrainingError(
            "dataset.ambiguous", f"{root} can be read as {' or as '.join(found)}; choose with layout, e.g. {found[0]}"
        )
    content = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise TrainingError("dataset.unknown", f"{root} holds {content}; {_EXPECTED}")


def _lists_in(root: Path) -> list[Path]:
    """Return the lists of cases that lie in a folder."""
    tables = [path for path in sorted(root.iterdir()) if path.is_file() and is_list_of_cases(path)]
    return tables or [path for path in sorted(root.glob("*.json")) if _training_list(path)]


def _only_list(root: Path) -> Path:
    """Return the only list of cases in a folder.

    Raises:
        TrainingError: "dataset.ambiguous".
    """
    lists = _lists_in(root)
    if len(lists) != 1:
        found = ", ".join(path.name for path in lists) or "none"
        raise TrainingError("dataset.ambiguous", f"{root} holds {found}; give the path of one list of cases")
    return lists[0]


def _training_list(path: Path) -> list[Any]:
    """Return the labelled cases of a JSON data list as MONAI reads it; none if it is no such list.

    Cases of "validation" beside "training" get "split", unless they have it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.stat().st_size < _MAX_LIST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return []
    listing = content if isinstance(content, dict) else {"training": content}
    sections = {
        section: [
            entry
            for entry in _as_list(listing.get(section))
            if isinstance(entry, dict) and entry.keys() >= {"image", "label"}
        ]
        for section in ("training", "validation")
    }
    split = sections if sections["validation"] else {}
    return [
        ({"split": section} if section in split else {}) | entry for section in sections for entry in sections[section]
    ]


def _unused_sections(description: Mapping[str, Any], read: Sequence[str]) -> tuple[str, ...]:
    """Return in words which sections of a list have labelled cases that are not read.

    Args:
        description: content of the list.
        read: sections that are read.
    """
    unused = []
    for section in ("validation", "test", "testing"):
        cases = [one for one in _as_list(description.get(section)) if isinstance(one, dict) and "label" in one]
        if section not in read and cases:
            way = "give the path of dataset.json in place of its folder to use them"
            if section != "validation":
                way = 'list them under "training" with "split": "test" to score them, and all others with "split", too'
            unused.append(f'labelled cases under "{section}" ({len(cases)}) are not used; {way}')
    return tuple(unused)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _list(
    path: Path, description: Mapping[str, Any], channels: Sequence[str] | None, anywhere: bool
) -> tuple[Dataset, Listed]:
    """Read a table of paths or a JSON data list; see `listed_cases` for `anywhere`."""
    if path.name.lower().endswith(TABLES):
        found = read_table(path, channels, anywhere)
        labels, ignored = {}, ()
    else:
        found = _listed(path, _training_list(path), anywhere)
        found = found._replace(unused=_unused_sections(description, ("training", "validation")))
        labels, ignored = _named_values(description, path)
        found = found._replace(channels=_channel_names(description, path, "modality", "channel_names"))
    is_2d = are_2d_images(found.cases)
    dataset = Dataset("list", tuple(found.cases), tuple(found.unpaired), labels, found.channels, is_2d, ignored)
    return dataset, found


def _decathlon(root: Path, description: Mapping[str, Any], anywhere: bool) -> tuple[Dataset, Listed]:
    """Read the Medical Segmentation Decathlon's layout (Antonelli et al. 2022); a 4D image has its channels last."""
    found = _listed(root / "dataset.json", description.get("training", []), anywhere)
    found = found._replace(unused=_unused_sections(description, ("training",)))
    labels, ignored = _named_values(description, root / "dataset.json")
    channels = _channel_names(description, root / "dataset.json", "modality")
    unread = count_unread(*(root / name for name in ("imagesTr", "labelsTr")))
    cases, unpaired = tuple(found.cases), tuple(found.unpaired)
    dataset = Dataset("decathlon", cases, unpaired, labels, channels, are_2d_images(cases), ignored, unread=unread)
    return dataset, found


def _channel_names(description: Mapping[str, Any], path: Path, *keys: str) -> tuple[str, ...]:
    """Return the names of the channels, {"0": "T1", "1": "FLAIR"} or ["T1", "FLAIR"], under the first of some keys."""
    stated = next((description[key] for key in keys if description.get(key) is not None), {})
    try:
        numbered = dict(enumerate(stated)) if isinstance(stated, list) else {int(n): stated[n] for n in stated}
        if not all(isinstance(name, str | int | float) for name in numbered.values()):
            raise TypeError
    except (TypeError, ValueError) as error:
        text = f'{path}: the channels are {_start(stated)}; expected {{"0": name}}'
        raise TrainingError("dataset.bad_json", text) from error
    return tuple(str(numbered[number]) for number in sorted(numbered))


def _text(value: Any) -> str:
    """Return a value of a list as text; "" for null, and for NaN, which pandas writes for a missing one."""
    return "" if value is None or value != value else str(value)


def _start(value: Any) -> str:
    """Return a value as text that fits into a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _listed(path: Path, listing: Any, anywhere: bool) -> Listed:
    """Return the cases of a JSON list: {"image", "label"} each, "image" a path or a list of them.

    An entry may have "patient", "name", "split", "fold", "labelled" and "replay"; without names, the cases are named
    after their images.
    """
    entries = []
    if not isinstance(listing, list):
        raise TrainingError("dataset.bad_json", f"{path}: training is {_start(listing)}; expected a list of cases")
    for number, listed in enumerate(listing):
        images = listed.get("image") if isinstance(listed, dict) else None
        images = [images] if isinstance(images, str) else images
        is_list = isinstance(images, list) and images and all(isinstance(image, str) for image in images)
        if not is_list or not isinstance(listed.get("label"), str):
            raise TrainingError(
                "dataset.bad_json",
                f'{path}: training[{number}] is {_start(listed)}; expected {{"image": path, "label": path}}',
            )
        patient, part, fold = (_text(listed.get(key)) for key in ("patient", "split", "fold"))
        labelled = listed.get("labelled", ...)
        is_replayed = listed.get("replay") is True
        entries.append(Entry(images, listed["label"], patient, listed.get("name"), part, fold, labelled, is_replayed))
    return listed_cases(path, entries, anywhere)


def _nnunet(root: Path, description: Mapping[str, Any], convertible: bool) -> Dataset:
    """Read nnU-Net's raw layout, version 1 or 2 (Isensee et al. 2021), with or without its dataset.json."""
    folders = root / "imagesTr", root / "labelsTr"
    cases, unpaired = pair(*(image_files(folder, convertible) for folder in folders))
    labels, ignored = _named_values(description, root / "dataset.json")
    names = _channel_names(description, root / "dataset.json", "channel_names", "modality")
    unread = count_unread(*folders, convertible=convertible)
    return Dataset("nnunet", cases, unpaired, labels, names, are_2d_images(cases), ignored, unread=unread)


def _voc(root: Path) -> Dataset:
    """Read PASCAL VOC's layout; see `segnets.data.voc`."""
    cases, unpaired, parts = voc_cases(root)
    unread = count_unread(root / "JPEGImages", root / "SegmentationClass")
    names = voc_names(root)
    return Dataset("voc", cases, unpaired, names, is_2d=True, ignored=(255,), unread=unread, parts=parts)


def _folders(
    root: Path,
    images_dir: str | Path | None,
    labels_dir: str | Path | None,
    description: Mapping[str, Any],
    convertible: bool,
) -> Dataset:
    """Read two plain folders, of images and of label maps."""
    folders = []
    for given, usual in ((images_dir, _IMAGE_FOLDERS), (labels_dir, _LABEL_FOLDERS)):
        options = [root / given] if given else [root / name for name in usual]
        if not any(folder.is_dir() for folder in options):
            raise TrainingError(
                "dataset.missing", f"no folder {', '.join(map(str, options))}; give --images_dir and --labels_dir"
            )
        folders.append(next(folder for folder in options if folder.is_dir()))
    cases, unpaired = pair(*(image_files(folder, convertible) for folder in folders))
    labels, ignored = _named_values(description, root / "dataset.json")
    unread = count_unread(*folders, convertible=convertible)
    return Dataset("folders", cases, unpaired, labels, is_2d=are_2d_images(cases), ignored=ignored, unread=unread)


def _named_values(description: Mapping[str, Any], path: Path) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return name -> values, and the values to ignore, from the "labels" of a dataset.json or another file.

    The Decathlon writes {"1": "Anterior"}, nnU-Net {"Anterior": 1} or, for regions, {"whole tumour": [1, 2]}.
    """
    names: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in dict(description.get("labels", {})).items():
            if isinstance(value, str):
                names[value] = (*names.get(value, ()), label_value(key))
            else:
                names[key] = tuple(label_value(v) for v in (value if isinstance(value, list) else [value]))
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainingError(
            "dataset.bad_json",
            f'{path}: labels are {_start(description["labels"])}; expected {{"1": name}} or {{name: 1}} with integers '
            f"up to {MAX_VALUE}",
        ) from error
    return (
        {name: values for name, values in names.items() if values != (0,) and name != "ignore"},
        names.get("ignore", ()),
    )


def _labels_json(path: Path) -> dict[str, Any]:
    """Return the content of labels.json as the "labels" of a dataset.json."""
    content = _json(path)
    return content if isinstance(content.get("labels"), dict) else {"labels": content}


def _json(root: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or of the dataset.json in a folder; empty for a list or a missing file."""
    path = root / "dataset.json" if root.is_dir() else root
    if not path.is_file() or path.suffix.lower() != ".json":
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TrainingError("dataset.bad_json", f"{path} is no JSON: {error}") from error
    if isinstance(description, list) and not root.is_dir():
        return {}
    if not isinstance(description, dict):
        raise TrainingError("dataset.bad_json", f"{path} holds a {type(description).__name__}; expected an object")
    return description
