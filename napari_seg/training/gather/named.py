"""Pair scans and label maps by the names of their files and folders, in arrangements that are no known layout.

These arrangements are known: an image and its label map next to each other (`a.nrrd`, `a_seg.nrrd`), a folder for each
case with one label map and one image or one for each channel (`p1/t1.nii.gz`, `p1/flair.nii.gz`, `p1/seg.nii.gz`), a
folder of label maps with a file for each structure (`p1/ct.nii.gz`, `p1/segmentations/liver.nii.gz`), and two trees
with the same folders below (`images/p1/ct.mha`, `labels/p1/ct.mha`). A DICOM series may be the image, by its folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import product, takewhile
from pathlib import Path, PurePath

from napari_seg.formats.archive import shown
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.endings import SEG_NRRD_ENDINGS, ending_of, has_ending
from napari_seg.formats.find import Found
from napari_seg.formats.scan import Scan
from napari_seg.training.gather.dicom import Unpaired
from napari_seg.training.gather.pair import ENDINGS, Pair

_LABEL_WORD = (
    r"(?:d?segs?|segmentations?|labels?|labelmaps?|masks?|gt|ground[-_ ]?truth|annotations?|manual\d*|lesions?)"
)
_LABEL = re.compile(rf"(?:(?P<before>.+?)[-_. ]+)?{_LABEL_WORD}|{_LABEL_WORD}[-_. ]*(?P<after>\d.*)", re.IGNORECASE)
"""Name of a label map: the word alone, after the name of its image, or before its number."""

_IMAGE_WORD = re.compile(
    r"^(image|img|scan|volume)[-_. ]*(?=\d)|[-_. ](image|img|scan|volume|orig|training|test)$", re.IGNORECASE
)
_CHANNEL = re.compile(r"[-_. ]000\d$")
"""Number of a channel at the end of the name of an image, which its label map lacks."""

_LABEL_FOLDER = re.compile(rf"{_LABEL_WORD}(tr|ts)?|1st_manual", re.IGNORECASE)
_SEPARATORS = "-_. "


@dataclass
class _Case:
    """Images that one or more label maps belong to.

    Attributes:
        images: the images.
        home: their folder.
        labels: label maps, each with the words of its name that name no image.
    """

    images: tuple[Scan, ...]
    home: PurePath
    labels: list[tuple[Path, str]] = field(default_factory=list)


def named_pairs(found: Found, root: Path, channels: Sequence[str] | None = None) -> tuple[list[Pair], Unpaired]:
    """Return the pairs of scans and label maps below a folder, by their names; and what has no partner.

    Args:
        found: content of the folder.
        root: the folder.
        channels: names of the channels, as files of the cases have them; None: those that most cases have.
    """
    labelled = without_label_maps(found, root)
    labels = [one.files[0] for one in labelled.skipped if one.code == "skip.label_map"]
    labels += [f for one in labelled.skipped for f in one.files if has_ending(f, SEG_NRRD_ENDINGS)]
    images = list(labelled.scans)
    more = [scan for scan in images if scan.format != "dicom" and _is_named_label(scan)]
    if len(more) < len(images):
        labels += [scan.files[0] for scan in more]
        images = [scan for scan in images if scan not in more]
    homes: dict[PurePath, list[tuple[str, Scan]]] = {}
    for scan in images:
        folder = shown(scan.files[0]).parent
        if scan.format == "dicom":
            homes.setdefault(folder, []).append(("", scan))
            homes.setdefault(folder.parent, []).append((folder.name, scan))
        else:
            homes.setdefault(folder, []).append((scan.name, scan))
    folders = {one for home in homes for one in (home, *home.parents)}
    cases: dict[tuple[Scan, ...], _Case] = {}
    unpaired: Unpaired = []
    for label in sorted(set(labels)):
        match = _match(label, homes, folders, root)
        if match is None:
            unpaired.append((label, "partner.no_image"))
            continue
        home, chosen, rest = match
        cases.setdefault(chosen, _Case(chosen, home)).labels.append((label, rest))
    used = {scan for case in cases.values() for scan in case.images}
    unpaired += [(scan, "partner.no_label") for scan in images if scan not in used]
    pairs, without = _pairs(list(cases.values()), root, channels)
    return pairs, [*unpaired, *without]


def _is_named_label(scan: Scan) -> bool:
    return bool(_LABEL.fullmatch(scan.name)) or bool(_LABEL_FOLDER.fullmatch(shown(scan.files[0]).parent.name))


def _match(
    label: Path, homes: dict[PurePath, list[tuple[str, Scan]]], folders: Set[PurePath], root: Path
) -> tuple[PurePath, tuple[Scan, ...], str] | None:
    """Return the folder and the images that a label map belongs to, and the rest of its name; None without an image."""
    file = shown(label)
    name = file.name.removesuffix(ending_of(label, ENDINGS))
    rest = name
    if found := _LABEL.fullmatch(name):
        rest = found["before"] or found["after"] or ""
    homes_of_label = _homes_of(file.parent, shown(root), folders)
    for home in homes_of_label:
        candidates = homes.get(home, [])
        for wanted, plain in product(filter(None, dict.fromkeys((rest, name))), (str.casefold, _plain)):
            exact = {scan for stem, scan in candidates if plain(stem) == plain(wanted)}
            if not exact:
                exact = {scan for stem, scan in candidates if plain(_CHANNEL.sub("", stem)) == plain(wanted)}
            if len(exact) == 1:
                return home, (*exact,), ""
        channels = [scan for stem, scan in candidates if rest and _begins(stem, rest)]
        if channels:
            return home, tuple(channels), ""
        longer = [(stem, scan) for stem, scan in candidates if stem and _begins(rest, stem)]
        if longer:
            stem, scan = max(longer, key=lambda one: len(one[0]))
            return home, (scan,), rest[len(stem) :].strip(_SEPARATORS)
    for home in homes_of_label:
        own = [scan for stem, scan in homes.get(home, []) if scan.format != "dicom" or stem == ""]
        is_case = home != shown(root) and not _is_image_folder(home.name)
        if any(_differ_in_number(rest, scan.name) for scan in own):
            continue
        if is_case and (len(own) == 1 or (not rest and _differ_only_in_channel(own))):
            return home, tuple(own), name if _LABEL_FOLDER.fullmatch(file.parent.name) else rest
    return None


def _homes_of(folder: PurePath, root: PurePath, folders: Set[PurePath]) -> list[PurePath]:
    """Return the folders where the image of a label map in some folder may lie, the nearest first.

    Args:
        folder: folder of the label map.
        root: folder of the data set.
        folders: folders with images below them.
    """
    found = [folder]
    for above in (folder, *folder.parents):
        if above == root or not above.is_relative_to(root):
            break
        if _LABEL_FOLDER.fullmatch(above.name):
            below = folder.relative_to(above)
            beside = sorted(one for one in folders if one.parent == above.parent and _is_image_folder(one.name))
            found += [*(one / below for one in beside), above.parent / below]
    return list(dict.fromkeys(found))


def _plain(stem: str) -> str:
    """Return a name in lower case, without words such as "image" at its end."""
    return _IMAGE_WORD.sub("", stem).casefold().strip(_SEPARATORS)


def _begins(longer: str, shorter: str) -> bool:
    """Return whether a name begins with the words of another one."""
    one, other = longer.casefold(), shorter.casefold()
    return one.startswith(other) and one[len(other) : len(other) + 1] in tuple(_SEPARATORS)


def _differ_in_number(name: str, other: str) -> bool:
    """Return whether two names are equal but for a number: those of different scans."""
    one, two = name.casefold(), other.casefold()
    return one != two and bool(re.search(r"\d", one)) and re.sub(r"\d+", "0", one) == re.sub(r"\d+", "0", two)


def _differ_only_in_channel(scans: Sequence[Scan]) -> bool:
    """Return whether images may be the channels of one case: at most eight, with words of their own each."""
    return 1 < len(scans) <= 8 and len(set(_own_words([scan.name for scan in scans]))) == len(scans)


def _own_words(names: Sequence[str]) -> list[str]:
    """Return names without what they have in common at their beginning, cut at a separator."""
    if len(names) < 2:
        return ["" for _ in names]
    common = re.sub(r"[^-_. ]*$", "", _beginning(names))
    return [name[len(common) :] or name for name in names]


def _beginning(names: Sequence[str]) -> str:
    """Return the letters that all names begin with."""
    return "".join(letters[0] for letters in takewhile(lambda one: len(set(one)) == 1, zip(*names, strict=False)))


def _pairs(cases: Sequence[_Case], root: Path, channels: Sequence[str] | None) -> tuple[list[Pair], Unpaired]:
    """Return the pairs of cases that have the same channels; the others have no partner for a channel."""
    named = [dict(zip(_own_words([scan.name for scan in case.images]), case.images, strict=True)) for case in cases]
    if channels:
        wanted: tuple[str, ...] = tuple(channels)
    else:
        counts = Counter(tuple(sorted(of_case, key=_channel_order)) for of_case in named)
        wanted = max(counts, key=lambda names: (counts[names], len(names)), default=())
    rests = Counter(case.labels[0][1] for case in cases if len(case.labels) == 1)
    is_one_each = len(cases) > 1 and all(len(case.labels) == 1 for case in cases)
    # names that cases share are of structures, others may be of patients
    is_by_structure = is_one_each and "" not in rests and len(rests) > 1 and min(rests.values()) > 1
    is_by_structure |= any(len(case.labels) > 1 for case in cases)
    only = next(iter(rests)) if is_one_each and len(rests) == 1 else ""
    pairs: list[Pair] = []
    unpaired: Unpaired = []
    for case, of_case in zip(cases, named, strict=True):
        chosen = {name: _channel(of_case, name) for name in wanted}
        images = tuple((name, scan) for name, scan in chosen.items() if scan is not None)
        if len(images) < len(wanted):
            unpaired += [(scan, "channels.missing") for scan in case.images]
            continue
        unpaired += [(scan, "partner.no_label") for scan in case.images if scan not in dict(images).values()]
        structures = tuple(rest or f"structure {n}" for n, (_, rest) in enumerate(case.labels, 1))
        folders = case.home.relative_to(shown(root)).parts
        parts = [folder for folder in folders if not _is_image_folder(folder)]
        is_dicom = any(scan.format == "dicom" for scan in case.images)
        pairs.append(
            Pair(
                f"case_{len(pairs) + 1:04d}" if is_dicom else _case_name(case, parts, channels or ()),
                images,
                tuple(label for label, _ in case.labels),
                structures if len(case.labels) > 1 or (is_by_structure and case.labels[0][1]) else (),
                only_structure=only,
                folders=folders,
            )
        )
    return pairs, unpaired


def _is_image_folder(folder: str) -> bool:
    from segnets.data.patients import IMAGE_FOLDER

    return bool(IMAGE_FOLDER.fullmatch(folder))


def part_of(folders: Sequence[str]) -> str:
    """Return the part of a data set that one of the folders above an image names, as train/ does; "" without one."""
    from segnets.data.patients import PART_FOLDER

    named = next(filter(PART_FOLDER.fullmatch, folders), "").lower()
    return {"": "", "tr": "training", "va": "validation", "te": "test"}[named[:2]]


def _case_name(case: _Case, folders: Sequence[str], channels: Sequence[str]) -> str:
    """Return the folders and the common name of the images of a case, without repetition and chosen channels."""
    common = _beginning([scan.name for scan in case.images])
    is_whole = len(case.images) == 1 and not any(_ends(common.casefold(), one.casefold()) for one in channels)
    name = common if is_whole else re.sub(r"[-_. ]?[^-_. ]*$", "", common)
    if folders and name.startswith(folders[-1]):
        return "_".join([*folders[:-1], name])
    return "_".join(filter(None, [*folders, name]))


def _channel(of_case: dict[str, Scan], name: str) -> Scan | None:
    """Return the image of a channel: the one with these words of its own, or whose whole name ends with them."""
    if name in of_case:
        return of_case[name]
    found = [scan for own, scan in of_case.items() if own.casefold() == name.casefold()]
    found = found or [scan for scan in of_case.values() if _ends(scan.name.casefold(), name.casefold())]
    return found[0] if len(found) == 1 else None


def _ends(name: str, word: str) -> bool:
    return name == word or name.endswith(tuple(separator + word for separator in _SEPARATORS))


def _channel_order(name: str) -> tuple[int, str]:
    """Sort T1 before T1 with contrast agent, T2 and FLAIR, others by name."""
    order = ("t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "t2f")
    return (order.index(name.casefold()), "") if name.casefold() in order else (len(order), name)
