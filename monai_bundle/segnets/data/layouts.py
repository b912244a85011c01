"""Find the cases of a data set in any of the field's usual layouts."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

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
    normalized,
    pair,
    stem,
    without_channel,
)
from segnets.data.patients import patient_of
from segnets.errors import TrainingError

_EXPECTED = """expected one of these layouts:
  decathlon  dataset.json that lists its training cases
  nnunet     imagesTr/<case>_0000.nii.gz (a file a channel) and labelsTr/<case>.nii.gz
  bids       sub-*/[ses-*/]anat/*_T1w.nii.gz and *_dseg.nii.gz, under derivatives/ or in the same folder
  voc        JPEGImages/ and SegmentationClass/
  folders    images/ and labels/ of .nii, .nii.gz, .png, .jpg, .bmp or .tif; or give images_dir and labels_dir"""
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "img")
_LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "mask", "segmentations")
_ANATOMY = ("sub-*/anat", "sub-*/ses-*/anat")
_BAD_NAME = re.compile(r"\s*[$@%]|.*[\x00-\x1f\x7f-\x9f]", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """List the cases of a data set, with the names of its labels and channels.

    Attributes:
        layout: "decathlon", "nnunet", "bids", "voc" or "folders".
        cases: `{"name", "image", "label"}` each, in the order of dataset.json (decathlon) or of their names; "image"
            is a path, or a list of paths if every channel has its own file.
        unpaired: images without a label map and label maps without an image; entries of `cases` that lack the other.
        labels: name -> values in the label files, without background; empty if the data set names none.
        channels: names of the image's channels; empty if the data set names none.
        is_2d: whether the images are 2D images (PNG, JPEG, ...) and not volumes.
        ignored: values that stand for no class (PASCAL VOC's 255 around objects, nnU-Net's "ignore"). MONAI's losses
            can't ignore values, so these become background.
        unread: ending -> number of files in a format that is not read.
        root: folder of the data set.
        patients: name of a case -> its patient.
    """

    layout: str
    cases: tuple[Case, ...]
    unpaired: tuple[Case, ...] = ()
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    is_2d: bool = False
    ignored: tuple[int, ...] = ()
    unread: dict[str, int] = field(default_factory=dict)
    root: Path = Path()
    patients: dict[str, str] = field(default_factory=dict)


def find_dataset(
    dataset_dir: str | Path,
    layout: str = "auto",
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    channels: Sequence[str] | None = None,
    patient: str | None = None,
) -> Dataset:
    """Find the cases, labels, channels and patients of a data set; opens no scan.

    Args:
        dataset_dir: folder of the data set.
        layout: "decathlon", "nnunet", "bids", "voc" or "folders"; "auto" detects it from the folder's content.
        images_dir: folder of the images in the layout "folders", relative to `dataset_dir` or absolute; if None, the
            first folder with a usual name.
        labels_dir: the same for the label maps; in the layout "bids", the derivative that holds the `_dseg` files.
        channels: suffixes of the files that form an image in the layout "bids", e.g. ["T1w", "FLAIR"], on one grid; if
            None, the most frequent suffix alone.
        patient: regular expression; its match in a case's name identifies the patient. A case without a match is a
            patient of its own. None: `segnets.data.patients.PATIENT`.

    Raises:
        TrainingError: "dataset.missing", "dataset.unknown" (no layout fits), "dataset.ambiguous" (several layouts fit,
            or several files fit one scan), "dataset.no_cases", "dataset.bad_json", "dataset.bad_table",
            "dataset.bad_name".
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise TrainingError("dataset.missing", f"{root} is no folder; give the folder of the data set as dataset_dir")
    if layout == "auto" and images_dir and labels_dir:
        layout = "folders"
    description = {} if layout in ("bids", "voc") else _json(root)
    if layout == "auto":
        layout = _detect_layout(root, description)
    if layout == "decathlon":
        dataset = _decathlon(root, description)
    elif layout == "nnunet":
        dataset = _nnunet(root, description)
    elif layout == "bids":
        dataset = _bids(root, labels_dir, channels)
    elif layout == "voc":
        dataset = _voc(root)
    elif layout == "folders":
        dataset = _folders(root, images_dir, labels_dir, description)
    else:
        raise TrainingError("dataset.unknown", f"there is no layout {layout!r}; {_EXPECTED}")
    if not dataset.cases:
        found = f"no image has a label map ({len(dataset.unpaired)} files are unpaired)"
        advice = "give an image and its label map the same name"
        if dataset.unread:
            found += f"; not read were {list_endings(dataset.unread)}"
            advice = f"training reads {', '.join(VOLUMES + IMAGES_2D)}; convert the others"
        raise TrainingError("dataset.no_cases", f"{root} ({dataset.layout}): {found}; {advice}")
    for name in (*dataset.labels, *dataset.channels):
        if _BAD_NAME.match(name):
            # MONAI runs a string that begins with $ as Python wherever it stands in a config
            raise TrainingError(
                "dataset.bad_name",
                f"{root} names a label or channel {name!r}; expected no $, @ or % at its beginning and no control "
                "characters; rename it",
            )
    patients = {case["name"]: patient_of(case["name"], patient) for case in dataset.cases}
    return replace(dataset, root=root, patients=patients)


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


def _detect_layout(root: Path, description: Mapping[str, Any]) -> str:
    listing, found = description.get("training"), []
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        cases = {stem(path) for path in image_files(root / "labelsTr")}
        if any(without_channel(path) in cases - {stem(path)} for path in image_files(root / "imagesTr")):
            found.append("nnunet")
    if not found and isinstance(listing, list) and listing and isinstance(listing[0], dict):
        found.append("decathlon")
    if next(_bids_labels(root), None):
        found.append("bids")
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        found.append("voc")
    if not found and all(any((root / n).is_dir() for n in names) for names in (_IMAGE_FOLDERS, _LABEL_FOLDERS)):
        found.append("folders")
    if len(found) == 1:
        return found[0]
    if found:
        raise TrainingError(
            "dataset.ambiguous", f"{root} can be read as {' or as '.join(found)}; choose with layout, e.g. {found[0]}"
        )
    content = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise TrainingError("dataset.unknown", f"{root} holds {content}; {_EXPECTED}")


def _decathlon(root: Path, description: Mapping[str, Any]) -> Dataset:
    """Read the Medical Segmentation Decathlon's layout (Antonelli et al. 2022); a 4D image has its channels last."""
    cases, unpaired = [], []
    for number, listed in enumerate(description.get("training", ())):
        if not isinstance(listed, dict) or not all(isinstance(listed.get(key), str) for key in ("image", "label")):
            raise TrainingError(
                "dataset.bad_json",
                f'{root / "dataset.json"}: training[{number}] is {listed}; expected {{"image": path, "label": path}}',
            )
        paths = {key: _listed_file(root, listed[key]) for key in ("image", "label")}
        case = {key: str(path) for key, path in paths.items() if path.is_file()}
        (cases if len(case) == 2 else unpaired).append({"name": stem(paths["image"]), **case})
    labels, ignored = _named_values(description, root)
    channels = tuple(str(name) for name in description.get("modality", {}).values())
    unread = count_unread(*(root / name for name in ("imagesTr", "labelsTr")))
    return Dataset("decathlon", tuple(cases), tuple(unpaired), labels, channels, are_2d_images(cases), ignored, unread)


def _listed_file(root: Path, listed: str) -> Path:
    """Return the path of a file that dataset.json lists; the file need not exist.

    The list may come from another system: with backslashes, with another Unicode form of the names, or with absolute
    paths of a folder that was moved. Of an absolute path only the last folder and the name are used.
    """
    for name in (listed, listed.replace("\\", "/")):
        if (root / name).is_file():
            return root / name
    path = PureWindowsPath(listed) if "\\" in listed or PureWindowsPath(listed).drive else PurePosixPath(listed)
    inside = root.joinpath(*path.parts[-2:]) if path.anchor else root.joinpath(*path.parts)
    if not inside.is_file() and inside.parent.is_dir():
        same = [p for p in inside.parent.iterdir() if normalized(p.name) == normalized(inside.name)]
        return same[0] if len(same) == 1 else inside
    return inside


def _nnunet(root: Path, description: Mapping[str, Any]) -> Dataset:
    """Read nnU-Net's raw layout, version 1 or 2 (Isensee et al. 2021), with or without its dataset.json."""
    cases, unpaired = pair(image_files(root / "imagesTr"), image_files(root / "labelsTr"))
    labels, ignored = _named_values(description, root)
    channels = description.get("channel_names", description.get("modality", {}))
    names = tuple(str(channels[number]) for number in sorted(channels, key=int))
    unread = count_unread(root / "imagesTr", root / "labelsTr")
    return Dataset("nnunet", cases, unpaired, labels, names, are_2d_images(cases), ignored, unread)


def _voc(root: Path) -> Dataset:
    """Read PASCAL VOC's layout (Everingham et al. 2010); many images there have no label map and are left out."""
    cases, unpaired = pair(image_files(root / "JPEGImages"), image_files(root / "SegmentationClass"))
    unread = count_unread(root / "JPEGImages", root / "SegmentationClass")
    return Dataset("voc", cases, tuple(c for c in unpaired if "label" in c), is_2d=True, ignored=(255,), unread=unread)


def _folders(
    root: Path, images_dir: str | Path | None, labels_dir: str | Path | None, description: Mapping[str, Any]
) -> Dataset:
    """Read two plain folders, of images and of label maps."""
    folders = []
    for given, usual in ((images_dir, _IMAGE_FOLDERS), (labels_dir, _LABEL_FOLDERS)):
        options = [root / given] if given else [root / name for name in usual]
        if not any(folder.is_dir() for folder in options):
            raise TrainingError(
                "dataset.missing", f"no folder {', '.join(map(str, options))}; give images_dir and labels_dir"
            )
        folders.append(next(folder for folder in options if folder.is_dir()))
    cases, unpaired = pair(*(image_files(folder) for folder in folders))
    labels, ignored = _named_values(description, root)
    is_2d = are_2d_images(cases)
    return Dataset("folders", cases, unpaired, labels, is_2d=is_2d, ignored=ignored, unread=count_unread(*folders))


def _bids(root: Path, labels_dir: str | Path | None, channels: Sequence[str] | None) -> Dataset:
    """Read BIDS with discrete segmentations as derivatives (Gorgolewski et al. 2016; bids-specification 1.10)."""
    scans: dict[tuple[str, str], list[Path]] = {}
    labelled: dict[str, Path] = {}
    for folder in _ANATOMY:
        for path in (path for where in sorted(root.glob(folder)) for path in image_files(where)):
            key, _, suffix = stem(path).rpartition("_")
            if suffix != "dseg":
                scans.setdefault((key, suffix), []).append(path)
    keys = {key for key, _ in scans}
    unpaired: list[Case] = []
    for path in sorted(_bids_labels(root, labels_dir)):
        # other entities of a derivative's name (space-, desc-, ...) do not identify its scan
        stated = {e for e in stem(path).split("_")[:-1] if e.startswith(("sub-", "ses-", "acq-", "run-", "rec-"))}
        fits = sorted(key for key in keys if stated <= set(key.split("_")))
        if len(fits) > 1 or (fits and fits[0] in labelled):
            rivals = f"scans {', '.join(fits)}" if len(fits) > 1 else f"{labelled[fits[0]]} as well"
            raise TrainingError(
                "dataset.ambiguous", f"{path} fits {rivals}; give one derivative as labels_dir, or name files in full"
            )
        if fits:
            labelled[fits[0]] = path
        else:
            unpaired.append({"name": stem(path).rpartition("_")[0], "label": str(path)})
    if not channels:
        common = Counter(suffix for key, suffix in scans if key in labelled)
        usual = {"T1w": 3, "T2w": 2, "FLAIR": 1}
        channels = sorted(common, key=lambda suffix: (-common[suffix], -usual.get(suffix, 0), suffix))[:1]
    cases: list[Case] = []
    for key in sorted(keys):
        found = [str(path) for suffix in channels for path in scans.get((key, suffix), ())]
        case: Case = {"name": key, "image": found[0] if len(channels) == 1 and found else found}
        if key in labelled:
            case["label"] = str(labelled[key])
        if found and key in labelled:
            cases.append(case)
        elif found or key in labelled:
            unpaired.append({name: value for name, value in case.items() if value})
    unread = count_unread(*(path for pattern in _ANATOMY for path in root.glob(pattern)))
    return Dataset("bids", tuple(cases), tuple(unpaired), _bids_names(root), tuple(channels), unread=unread)


def _bids_labels(root: Path, labels_dir: str | Path | None = None) -> Iterable[Path]:
    where = root / labels_dir if labels_dir else root
    for folder in ("", "derivatives/*/") if not labels_dir else ("",):
        for inner in _ANATOMY:
            yield from where.glob(f"{folder}{inner}/*_dseg.nii*")


def _bids_names(root: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> value from the `*_dseg.tsv` tables (columns index and name), which must agree with each other."""
    names: dict[str, tuple[int, ...]] = {}
    for path in sorted(root.rglob("*dseg.tsv")):
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                try:
                    name, value = row["name"].strip(), int(row["index"])
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise TrainingError(
                        "dataset.bad_table", f"{path}: expected the columns index and name, found {row}"
                    ) from error
                if names.setdefault(name, (value,)) != (value,):
                    raise TrainingError(
                        "dataset.bad_table", f"{path}: {name} is {value}, but {names[name][0]} elsewhere"
                    )
    return {name: values for name, values in names.items() if values != (0,)}


def _named_values(description: Mapping[str, Any], root: Path) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return name -> values, and the values to ignore, from the "labels" of a dataset.json.

    The Decathlon writes {"1": "Anterior"}, nnU-Net {"Anterior": 1} or, for regions, {"whole tumour": [1, 2]}.
    """
    names: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in dict(description.get("labels", {})).items():
            if isinstance(value, str):
                names[value] = (*names.get(value, ()), int(key))
            else:
                names[key] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    except (TypeError, ValueError) as error:
        raise TrainingError(
            "dataset.bad_json",
            f'{root / "dataset.json"}: labels are {description["labels"]}; expected {{"1": name}} or {{name: 1}}',
        ) from error
    return (
        {name: values for name, values in names.items() if values != (0,) and name != "ignore"},
        names.get("ignore", ()),
    )


def _json(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise TrainingError("dataset.bad_json", f"{path} is no JSON: {error}") from error
    if not isinstance(description, dict):
        raise TrainingError("dataset.bad_json", f"{path} holds a {type(description).__name__}; expected an object")
    return description
