"""Names of cases and of their result files: unique in a run, valid on any file system, without names of patients."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from napari_seg.cohort.case import Case
from napari_seg.errors import InputError, printable
from napari_seg.formats.archive import shown
from napari_seg.formats.channel_sets import common_folder
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.dicom.private_words import (
    private_words,
    public_name,
    without_private_words,
    without_uids,
)
from napari_seg.formats.endings import ARCHIVE_ENDINGS, NIFTI_ENDINGS, ending_of, has_ending, nifti_ending
from napari_seg.formats.record import read_record
from napari_seg.formats.scan import Scan

SUFFIX = Case.suffix
BIDS_SUFFIX = "_dseg"
CONFIDENCE_MAPS = ("confidence", "entropy")

MAX_NAME_BYTES = 255 - len(f"{SUFFIX}_confidence.nii.gz")
"""Longest file name that file systems allow, minus the longest ending of a result."""

_MODALITY = re.compile("t1(w|c|ce|gd|n)?|t2(w|f|star)?|pdw?|flair|dwi|adc|swi|mri?|cta?|pet|pt")
_IMAGES = re.compile("images?(tr|ts|va|val|test)?|imgs?|scans?|volumes?")
"""Folder names without information; left out of case names, so that results match a data set's label maps."""
_LEVEL = re.compile(f"anat|func|dwi|fmap|perf|pet|nifti|ses(sion)?-.*|{_IMAGES.pattern}")
"""Folder names that identify a scan only together with the parent folder."""


def is_result(path: Path) -> bool:
    """Return whether an earlier run wrote a label map, confidence map or preview, judged by the record next to it."""
    ending = ending_of(path, (*NIFTI_ENDINGS, ".png"))
    if not ending:
        return False
    stem = path.name.removesuffix(ending)
    for name in CONFIDENCE_MAPS:
        stem = stem.removesuffix(f"_{name}")
    return stem.endswith((SUFFIX, BIDS_SUFFIX)) and read_record(path.with_name(f"{stem}.json")) is not None


def is_certainty_map(path: Path) -> bool:
    """Return whether an earlier run wrote a confidence map or a preview."""
    ending = nifti_ending(path)
    is_label_map = bool(ending) and path.name.removesuffix(ending).endswith((SUFFIX, BIDS_SUFFIX))
    return is_result(path) and not is_label_map


class _Folders:
    """Names of folders without UIDs of DICOM, and words that occur in private attributes of the DICOM files below."""

    def __init__(self, files: Sequence[Path], scans: Sequence[Scan | ChannelSet]) -> None:
        self._public: dict[PurePath, str] = {}
        self._study: dict[PurePath, str] = {}
        self._below: dict[tuple[PurePath, PurePath, bool], tuple[str, ...]] = {}
        for file, scan in zip(files, scans, strict=True):
            if scan.format == "dicom":
                from napari_seg.formats.dicom.headers import read_header

                try:
                    tags = read_header(scan.files[0]).tags
                except InputError:  # reading the scan reports the error
                    continue
                for folder in file.parents:
                    self._public[folder] = public_name(self._public.get(folder, _split(folder.name)[0]), tags)
                    self._study.setdefault(folder, str(tags.get("StudyInstanceUID") or ""))

    def name(self, folder: PurePath) -> str:
        """Return a folder's public name; if no word is left, six characters of a digest of its study."""
        name = printable(self._public.get(folder, without_uids(_split(folder.name)[0])))
        return name or hashlib.sha256(self._study.get(folder, "").encode()).hexdigest()[:6]

    def below(self, root: PurePath, folder: PurePath, has_endings: bool = False) -> tuple[str, ...]:
        """Return the public names of the folders below a root, down to a folder; none if it lies elsewhere.

        Args:
            root: ancestor of the folder, or the folder itself; not included.
            folder: the last folder; included.
            has_endings: keep the endings of archives.
        """
        key = root, folder, has_endings
        if key not in self._below:
            names: tuple[str, ...] = ()
            if folder != root and root in folder.parents:
                ending = _split(folder.name)[1] if has_endings else ""
                names = (*self.below(root, folder.parent, has_endings), self.name(folder) + ending)
            self._below[key] = names
        return self._below[key]


class _Roots:
    """Folders, of which the first that contains a file is looked up once for all files of a folder."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = list(roots)
        self._of: dict[Path, Path | None] = {}

    def of(self, file: Path) -> Path:
        """Return the first root that contains a file, or that is the file; its folder if none does."""
        folder = file.parent
        if folder not in self._of:
            above = {folder, *folder.parents}
            self._of[folder] = next((root for root in self._roots if root in above), None)
        return self._of[folder] or (file if file in self._roots else folder)


def _split(name: str) -> tuple[str, str]:
    """Split the name of a folder or archive into stem and ending; a folder has the ending ""."""
    ending = next((ending for ending in ARCHIVE_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)], name[len(name) - len(ending) :]


@dataclass(frozen=True)
class NamedScan:
    """A scan with its name and its place, in public names.

    Attributes:
        scan: the scan, or images that are channels.
        name: unique in the run, valid on any file system.
        stem: name without those of folders; not unique.
        folders: folders between the input and the scan.
        source: as for `Case`.
        place: as for `Case`.
    """

    scan: Scan | ChannelSet
    name: str
    stem: str
    folders: tuple[str, ...]
    source: str
    place: str


def named_cases(scans: Sequence[Scan | ChannelSet], inputs: Sequence[Path], given: Sequence[str] = ()) -> list[Case]:
    """Return the cases of scans for a run with one model and all results in one folder; see `named_scans`."""
    named = named_scans(scans, inputs, given)
    return [Case(one.name, one.source, one.place, one.scan) for one in named]


def named_scans(
    scans: Sequence[Scan | ChannelSet], inputs: Sequence[Path], given: Sequence[str] = ()
) -> list[NamedScan]:
    """Return scans with names by the rules of `discover.find_cases`.

    Args:
        scans: scans, or sets of images that are channels.
        inputs: absolute paths of the files and folders that were searched.
        given: for each scan the name that a list gives it, "" if none does; empty without lists.
    """
    searched = [path for path in inputs if path.is_dir() or has_ending(path, ARCHIVE_ENDINGS)]
    named = _Roots(sorted(searched, key=lambda path: len(path.parts)))
    roots = list(dict.fromkeys(path if path.is_dir() else path.parent for path in inputs))
    above = _folder_above(roots)
    common = _Roots(roots if above is None else [above])
    files = [Path(os.path.abspath(shown(scan.files[0]))) for scan in scans]
    folders = _Folders(files, scans)
    given = given or [""] * len(scans)
    names = [own or _name(scan, file, named, folders) for scan, file, own in zip(scans, files, given, strict=True)]
    stems = [own or scan.name or name for name, scan, own in zip(names, scans, given, strict=True)]
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        groups[compared(name)].append(number)
    for group in groups.values():
        group = [number for number in group if not given[number]]
        if len(group) > 1:
            anchors = [Path(files[n].anchor) for n in group]
            levels = [folders.below(anchor, files[n].parent) for n, anchor in zip(group, anchors, strict=True)]
            for number, name in zip(group, _with_folders([stems[n] for n in group], levels), strict=True):
                names[number] = name
    unique = UniqueNames()
    # a name that a list gives stays as it is, so that it comes before all others
    order = sorted(range(len(scans)), key=lambda number: not given[number])
    for number in order:
        names[number] = unique.take(names[number])
    found, real_folders = [], dict[Path, str]()
    for scan, file, name, stem in zip(scans, files, names, stems, strict=True):
        root = common.of(file)
        below = folders.below(root, file.parent)
        source = _source(scan, file, root, folders)
        place = str(place_of(scan.files[0], real_folders))
        found.append(NamedScan(scan, name, stem, below, source, place))
    return found


class UniqueNames:
    """Names of files that differ on every file system; one that is taken gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def has(self, name: str, folder: str = "") -> bool:
        """Return whether a name is taken in a folder."""
        return compared(f"{folder}/{name}") in self._taken

    def take(self, name: str, folder: str = "") -> str:
        """Return a name that is valid on terminals and file systems, and that no earlier call for a folder returned."""
        unique = short(name)
        base = compared(f"{folder}/{unique}")
        while self.has(unique, folder):  # several series with the same name in one folder
            number = self._next.get(base, 2)
            self._next[base] = number + 1
            unique = short(f"{name}_{number}")
        self._taken.add(compared(f"{folder}/{unique}"))
        return unique


def place_of(file: Path, real_folders: dict[Path, str]) -> Path:
    """Return the absolute path of a file, links resolved; for an unpacked file, its path in the archive.

    Args:
        file: the file.
        real_folders: folder -> the same without links; filled here, since the files of a series lie in one folder.
    """
    if os.path.islink(file):
        return shown(Path(os.path.realpath(file)))  # `Path.resolve` fails on a link to itself
    folder = file.parent
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    real = real_folders[folder]
    return shown(file if real == str(folder) else Path(real, file.name))


def _name(scan: Scan | ChannelSet, file: Path, named: _Roots, folders: _Folders) -> str:
    """Return the name of a scan, from its file and its folders (see `find_cases`)."""
    root = named.of(file)  # the outermost
    if not scan.name and isinstance(scan, ChannelSet):
        folder = Path(os.path.abspath(common_folder(scan)))
        levels = folders.below(root, folder)
        return "_".join(levels) or folders.name(folder)
    if scan.format == "dicom":
        return scan.name
    levels = folders.below(root, file.parent)
    if any(len(level) > 2 and _words(level) in _words(scan.name) for level in levels):
        return scan.name
    if all(_MODALITY.fullmatch(word) for word in _words(scan.name).split()):
        above = folders.below(Path(file.anchor), file.parent)
        count = next((n for n, level in enumerate(reversed(above)) if not _LEVEL.fullmatch(level.casefold())), 0) + 1
        levels = above[-max(count, len(levels)) :]
    return "_".join([*(level for level in levels if not _IMAGES.fullmatch(level.casefold())), scan.name])


def _words(text: str) -> str:
    """Return the words of a name, separated and surrounded by spaces, such as " sub 01 t1w "."""
    return f" {re.sub(r'[-_. ]+', ' ', text.casefold()).strip()} "


def _source(scan: Scan | ChannelSet, file: Path, root: Path, folders: _Folders) -> str:
    """Return the path of a scan relative to a root, in public names."""
    levels = folders.below(root, file.parent, has_endings=True)
    if scan.format != "dicom":
        return "/".join([*levels, printable(file.name)])
    return "/".join(levels) or folders.name(file.parent)


def input_name(path: Path, inputs: Sequence[Path], scans: Sequence[Scan | ChannelSet]) -> str:
    """Return the path of an input relative to the common folder of all inputs, which tells it from the others.

    Args:
        path: the input.
        inputs: all inputs of the run.
        scans: scans of the run, whose private words are left out.
    """
    folders = [Path(os.path.abspath(one if one.is_dir() else one.parent)) for one in inputs]
    place = os.path.abspath(path)
    name = os.path.basename(place)
    above = _folder_above(folders)
    if above is not None and Path(place) != above:
        name = Path(os.path.relpath(place, above)).as_posix()
    private = _private_words(scans)
    name = "/".join(filter(None, (without_private_words(Path(level), private) for level in name.split("/"))))
    return printable(name) or "input"


def _folder_above(folders: Sequence[Path]) -> Path | None:
    """Return the folder above absolute paths of folders; None if it is the root of a drive, or they lie on several.

    What lies below the root is the whole path, which results must not state.
    """
    with suppress(ValueError):  # several drives
        above = Path(os.path.commonpath(folders))
        return above if len(set(folders)) == 1 or above != Path(above.anchor) else None
    return None


def _private_words(scans: Sequence[Scan | ChannelSet]) -> frozenset[str]:
    """Return the private words of the DICOM files among scans."""
    private: frozenset[str] = frozenset()
    for scan in scans:
        if scan.format == "dicom":
            from napari_seg.formats.dicom.headers import read_header

            with suppress(InputError):  # reading the scan reports the error
                private |= private_words(read_header(scan.files[0]).tags)
    return private


def _with_folders(names: list[str], folders: list[tuple[str, ...]]) -> list[str]:
    """Return the names preceded by their folders, without leading folders that all of them share."""
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return ["_".join([*levels[shared:], name]) for levels, name in zip(folders, names, strict=True)]


def compared(name: str) -> str:
    """Return a name in the form in which case-insensitive and Unicode-normalising file systems compare it."""
    return unicodedata.normalize("NFC", name).casefold()


def short(name: str) -> str:
    """Return a name that is valid on terminals and file systems; a long name is cut and ends with a digest."""
    encoding = sys.getfilesystemencoding()  # "ascii" under LC_ALL=C where Python is not allowed UTF-8
    name = re.sub(r"\s", " ", printable(name)).encode(encoding, errors="replace").decode(encoding)
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"
