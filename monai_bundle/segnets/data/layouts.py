"""A folder of scans and label maps -> a `Dataset`, whichever of the field's layouts it follows."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from segnets.errors import TrainingError

Case = dict[str, Any]

VOLUMES = (".nii.gz", ".nii")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_EXPECTED = """a layout is told by what the folder holds:
  decathlon  dataset.json that lists its training cases
  nnunet     imagesTr/<case>_0000.nii.gz (a file a channel) and labelsTr/<case>.nii.gz
  bids       sub-*/[ses-*/]anat/*_T1w.nii.gz and *_dseg.nii.gz, under derivatives/ or beside it
  voc        JPEGImages/ and SegmentationClass/
  folders    images/ and labels/ of .nii, .nii.gz, .png, .jpg, .bmp or .tif; or give images_dir and labels_dir"""
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "img")
_LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "mask", "segmentations")
_ANATOMY = ("sub-*/anat", "sub-*/ses-*/anat")
_SIDECARS = (".json", ".txt", ".tsv", ".csv", ".md", ".bval", ".bvec", ".ini", ".db")
"""Endings of files that usually accompany images."""
_SUFFIX = re.compile(r"[-_](d?seg|segmentation|labels?|mask|gt|image|img)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")
_NO_NAME = re.compile(r"\s*[$@%]|.*[\x00-\x1f\x7f-\x9f]", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """Which cases a folder holds, and what it says about them.

    Attributes:
        layout: "decathlon", "nnunet", "bids", "voc" or "folders".
        cases: `{"name", "image", "label"}` each, in the order of dataset.json (decathlon) or of their names; "image"
            is a path, or a list of paths where every channel has a file of its own.
        lonely: the same without "label" or without "image", for what has no partner.
        labels: name -> values in the label files, without background; empty if the data set names none.
        channels: names of the image's channels; empty if the data set names none.
        pictures: the images are PNG, JPEG, ... and not volumes.
        ignored: values that stand for no class (PASCAL VOC's 255 around objects, nnU-Net's "ignore"). MONAI's losses
            have no such notion: they become background.
        unread: how many files beside the cases are in a format that is not read, by their ending.
    """

    layout: str
    cases: tuple[Case, ...]
    lonely: tuple[Case, ...] = ()
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    pictures: bool = False
    ignored: tuple[int, ...] = ()
    unread: dict[str, int] = field(default_factory=dict)


def find_dataset(
    dataset_dir: str | Path,
    layout: str = "auto",
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    channels: Sequence[str] | None = None,
) -> Dataset:
    """The cases of a folder, with what it says about its labels and channels; no scan is opened.

    Args:
        dataset_dir: the data set's folder.
        layout: one of "decathlon", "nnunet", "bids", "voc", "folders"; "auto" tells by what the folder holds.
        images_dir: of "folders", relative to `dataset_dir` or absolute; taken from the usual names if left out.
        labels_dir: the same for the label maps; of "bids", the derivative to take the `_dseg` files from.
        channels: of "bids", the suffixes that make up an image, e.g. ["T1w", "FLAIR"], on one grid; the most frequent
            one if left out.

    Raises:
        TrainingError: "dataset.missing", "dataset.unknown" (no layout fits), "dataset.ambiguous" (more than one does,
            or more than one file for one place), "dataset.no_cases", "dataset.bad_json", "dataset.bad_table",
            "dataset.bad_name".
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise TrainingError("dataset.missing", f"{root} is no folder; give the data set's as dataset_dir")
    if layout == "auto":
        layout = "folders" if images_dir and labels_dir else _told_layout(root)
    if layout == "decathlon":
        dataset = _decathlon(root)
    elif layout == "nnunet":
        dataset = _nnunet(root)
    elif layout == "bids":
        dataset = _bids(root, labels_dir, channels)
    elif layout == "voc":
        dataset = _voc(root)
    elif layout == "folders":
        dataset = _folders(root, images_dir, labels_dir)
    else:
        raise TrainingError("dataset.unknown", f"there is no layout {layout!r}; {_EXPECTED}")
    if not dataset.cases:
        found = f"no image has a label map ({len(dataset.lonely)} files have no partner)"
        advice = "an image and its label map carry the same name"
        if dataset.unread:
            found += f"; not read were {listed_endings(dataset.unread)}"
            advice = f"training reads {', '.join(VOLUMES + PICTURES)}; convert the others"
        raise TrainingError("dataset.no_cases", f"{root} ({dataset.layout}): {found}; {advice}")
    for name in (*dataset.labels, *dataset.channels):
        if _NO_NAME.match(name):
            # MONAI runs a string that begins with $ as Python wherever it stands in a config
            raise TrainingError(
                "dataset.bad_name",
                f"{root} names a label or channel {name!r}; expected no $, @ or % at its beginning and no control "
                "characters; rename it",
            )
    return dataset


def images(dataset_dir: str | Path, num_channels: int = 1) -> list[Case]:
    """Every image of a folder, `{"name", "image"}` each, by name: what inference segments.

    Args:
        dataset_dir: holds the images itself, or in an `imagesTs/`, or else in one of the usual folders of images.
        num_channels: with more than one, files `<case>_0000`, `<case>_0001`, ... are the channels of one image.
            Pictures only where each case has just that many; three of a single case are frames, not channels.

    Raises:
        TrainingError: "dataset.no_images".
    """
    root = Path(dataset_dir)
    for folder in (root / "imagesTs", *(root / name for name in _IMAGE_FOLDERS), root / "JPEGImages", root):
        if found := _files(folder):
            if num_channels > 1 and all(_CHANNEL.search(_stem(path)) for path in found):
                cases = _by_case(found)
                numbers = [[int(_stem(Path(path))[-4:]) for path in paths] for paths in cases.values()]
                whole = all(its == list(range(num_channels)) for its in numbers)
                # a picture may have three channels itself
                if not is_picture(found[0]) or (whole and (len(cases) > 1 or num_channels != 3)):
                    return [{"name": name, "image": paths} for name, paths in cases.items()]
            return [{"name": _stem(path), "image": str(path)} for path in found]
    raise TrainingError("dataset.no_images", f"no {', '.join(VOLUMES + PICTURES)} in {root}, its imagesTs/ or images/")


def is_picture(path: str | Path) -> bool:
    """Whether a file is a PNG, JPEG, ... by its name, as MONAI's readers tell."""
    return str(path).lower().endswith(PICTURES)


def _told_layout(root: Path) -> str:
    listing, found = _json(root).get("training"), []
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        cases = {_stem(path) for path in _files(root / "labelsTr")}
        if any(_CHANNEL.sub("", _stem(path)) in cases - {_stem(path)} for path in _files(root / "imagesTr")):
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
    held = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise TrainingError("dataset.unknown", f"{root} holds {held}; {_EXPECTED}")


def _decathlon(root: Path) -> Dataset:
    """The Medical Segmentation Decathlon (Antonelli et al. 2022); a 4D image has its channels last."""
    description = _json(root)
    cases, lonely = [], []
    for number, listed in enumerate(description.get("training", ())):
        if not isinstance(listed, dict) or not all(isinstance(listed.get(key), str) for key in ("image", "label")):
            raise TrainingError(
                "dataset.bad_json",
                f'{root / "dataset.json"}: training[{number}] is {listed}; expected {{"image": path, "label": path}}',
            )
        paths = {key: _listed_file(root, listed[key]) for key in ("image", "label")}
        case = {key: str(path) for key, path in paths.items() if path.is_file()}
        (cases if len(case) == 2 else lonely).append({"name": _stem(paths["image"]), **case})
    labels, ignored = _named_values(description, root)
    channels = tuple(str(name) for name in description.get("modality", {}).values())
    unread = _unread(*(root / name for name in ("imagesTr", "labelsTr")))
    return Dataset("decathlon", tuple(cases), tuple(lonely), labels, channels, _are_pictures(cases), ignored, unread)


def _listed_file(root: Path, listed: str) -> Path:
    """Return the file that a dataset.json names; it need not be there.

    The list may have been written on another system: with back-slashes, with another Unicode form of the names, or
    with the whole path of a folder that lies elsewhere now, of which the last folder and the name count.
    """
    for name in (listed, listed.replace("\\", "/")):
        if (root / name).is_file():
            return root / name
    path = PureWindowsPath(listed) if "\\" in listed or PureWindowsPath(listed).drive else PurePosixPath(listed)
    inside = root.joinpath(*path.parts[-2:]) if path.anchor else root.joinpath(*path.parts)
    if not inside.is_file() and inside.parent.is_dir():
        same = [p for p in inside.parent.iterdir() if _composed(p.name) == _composed(inside.name)]
        return same[0] if len(same) == 1 else inside
    return inside


def _nnunet(root: Path) -> Dataset:
    """nnU-Net's raw format, version 1 or 2 (Isensee et al. 2021), with or without its dataset.json."""
    description = _json(root)
    cases, lonely = _paired(_files(root / "imagesTr"), _files(root / "labelsTr"))
    labels, ignored = _named_values(description, root)
    channels = description.get("channel_names", description.get("modality", {}))
    names = tuple(str(channels[number]) for number in sorted(channels, key=int))
    unread = _unread(root / "imagesTr", root / "labelsTr")
    return Dataset("nnunet", cases, lonely, labels, names, _are_pictures(cases), ignored, unread)


def _voc(root: Path) -> Dataset:
    """PASCAL VOC (Everingham et al. 2010); images without a label map are usual there, and left out."""
    cases, lonely = _paired(_files(root / "JPEGImages"), _files(root / "SegmentationClass"))
    unread = _unread(root / "JPEGImages", root / "SegmentationClass")
    return Dataset("voc", cases, tuple(c for c in lonely if "label" in c), pictures=True, ignored=(255,), unread=unread)


def _folders(root: Path, images_dir: str | Path | None, labels_dir: str | Path | None) -> Dataset:
    folders = []
    for given, usual in ((images_dir, _IMAGE_FOLDERS), (labels_dir, _LABEL_FOLDERS)):
        options = [root / given] if given else [root / name for name in usual]
        if not any(folder.is_dir() for folder in options):
            raise TrainingError(
                "dataset.missing", f"no folder {', '.join(map(str, options))}; give images_dir and labels_dir"
            )
        folders.append(next(folder for folder in options if folder.is_dir()))
    cases, lonely = _paired(*(_files(folder) for folder in folders))
    labels, ignored = _named_values(_json(root), root)
    pictures = _are_pictures(cases)
    return Dataset("folders", cases, lonely, labels, pictures=pictures, ignored=ignored, unread=_unread(*folders))


def _bids(root: Path, labels_dir: str | Path | None, channels: Sequence[str] | None) -> Dataset:
    """BIDS, its discrete segmentations among the derivatives (Gorgolewski et al. 2016; bids-specification 1.10)."""
    scans: dict[tuple[str, str], list[Path]] = {}
    labelled: dict[str, Path] = {}
    for folder in _ANATOMY:
        for path in (path for where in sorted(root.glob(folder)) for path in _files(where)):
            key, _, suffix = _stem(path).rpartition("_")
            if suffix != "dseg":
                scans.setdefault((key, suffix), []).append(path)
    keys = {key for key, _ in scans}
    lonely: list[Case] = []
    for path in sorted(_bids_labels(root, labels_dir)):
        # what a derivative adds to its source's name (space-, desc-, ...) says nothing about which scan it is of
        stated = {e for e in _stem(path).split("_")[:-1] if e.startswith(("sub-", "ses-", "acq-", "run-", "rec-"))}
        fits = sorted(key for key in keys if stated <= set(key.split("_")))
        if len(fits) > 1 or (fits and fits[0] in labelled):
            rivals = f"scans {', '.join(fits)}" if len(fits) > 1 else f"{labelled[fits[0]]} as well"
            raise TrainingError(
                "dataset.ambiguous", f"{path} fits {rivals}; give one derivative as labels_dir, or name files in full"
            )
        if fits:
            labelled[fits[0]] = path
        else:
            lonely.append({"name": _stem(path).rpartition("_")[0], "label": str(path)})
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
            lonely.append({name: value for name, value in case.items() if value})
    unread = _unread(*(path for pattern in _ANATOMY for path in root.glob(pattern)))
    return Dataset("bids", tuple(cases), tuple(lonely), _bids_names(root), tuple(channels), unread=unread)


def _bids_labels(root: Path, labels_dir: str | Path | None = None) -> Iterable[Path]:
    where = root / labels_dir if labels_dir else root
    for folder in ("", "derivatives/*/") if not labels_dir else ("",):
        for inner in _ANATOMY:
            yield from where.glob(f"{folder}{inner}/*_dseg.nii*")


def _bids_names(root: Path) -> dict[str, tuple[int, ...]]:
    """From the `*_dseg.tsv` tables (columns index and name), which must not contradict one another."""
    names: dict[str, tuple[int, ...]] = {}
    for path in sorted(root.rglob("*dseg.tsv")):
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                try:
                    name, value = row["name"].strip(), int(row["index"])
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise TrainingError(
                        "dataset.bad_table", f"{path}: columns index and name expected, got {row}"
                    ) from error
                if names.setdefault(name, (value,)) != (value,):
                    raise TrainingError(
                        "dataset.bad_table", f"{path}: {name} is {value}, but {names[name][0]} elsewhere"
                    )
    return {name: values for name, values in names.items() if values != (0,)}


def _paired(images: Sequence[Path], labels: Sequence[Path]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cases and what has no partner, by name; a suffix as in `case_seg.png` or `case-mask.nii.gz` does not matter.

    Images are `<case>_0000`, `<case>_0001`, ... (a file a channel) if a label map is called `<case>`. Two files of
    one name give two cases of that name, for the check to report.
    """
    named = {_stem(path) for path in labels} | {_case_name(path) for path in labels}
    stems = {_stem(path) for path in images}
    pairs: dict[str, tuple[list[Any], list[str]]] = {}
    if any(_CHANNEL.sub("", stem) in named - stems for stem in stems):
        for name, paths in _by_case(images).items():
            pairs[name] = ([paths if len(paths) > 1 else paths[0]], [])
    else:
        for path in images:
            pairs.setdefault(_case_name(path), ([], []))[0].append(str(path))
    for path in labels:
        name = _stem(path) if _stem(path) in pairs else _case_name(path)
        pairs.setdefault(name, ([], []))[1].append(str(path))
    cases: list[Case] = []
    lonely: list[Case] = []
    for name, (scans, maps) in sorted(pairs.items()):
        if scans and maps:
            cases += [{"name": name, "image": scan, "label": label} for scan in scans for label in maps]
        else:
            lonely += [{"name": name, "image": scan} for scan in scans] + [{"name": name, "label": m} for m in maps]
    return tuple(cases), tuple(lonely)


def _by_case(files: Iterable[Path]) -> dict[str, list[str]]:
    """Case -> its channels' files, in the order of their numbers."""
    cases: dict[str, list[str]] = {}
    for path in files:
        cases.setdefault(_CHANNEL.sub("", _stem(path)), []).append(str(path))
    return cases


def _named_values(description: Mapping[str, Any], root: Path) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Name -> values, and the values to ignore, from a dataset.json's "labels".

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


def _files(folder: Path) -> list[Path]:
    """The folder's volumes by name or, if it has none, its pictures."""
    found = sorted(p for p in folder.glob("*") if p.name[0] != "." and p.is_file())
    volumes = [path for path in found if path.name.lower().endswith(VOLUMES)]
    return volumes or [path for path in found if is_picture(path)]


def _unread(*folders: Path) -> dict[str, int]:
    """Return how many files of some folders are not read, by ending; without files that usually accompany images."""
    endings: Counter[str] = Counter()
    for folder in folders:
        read = set(_files(folder))
        for path in (path for path in folder.glob("*") if path.name[0] != "." and path not in read):
            ending = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
            if path.is_dir():
                endings["folders"] += not read
            elif not read or ending not in _SIDECARS:
                endings[ending or "files without an ending"] += 1
    return dict(endings)


def listed_endings(endings: Mapping[str, int]) -> str:
    """Return counts by ending in words, such as "20 .nrrd, 3 .mha"."""
    return ", ".join(
        f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def _stem(path: Path) -> str:
    """The file's name without its ending, in one Unicode form: macOS writes an accent as a character of its own."""
    name = _composed(path.name)
    ending = next((e for e in VOLUMES + PICTURES if name.lower().endswith(e)), path.suffix)
    return name[: len(name) - len(ending)]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _case_name(path: Path) -> str:
    return _SUFFIX.sub("", _stem(path))


def _are_pictures(cases: Sequence[Case]) -> bool:
    return bool(cases) and all(is_picture(case["label"]) for case in cases)
