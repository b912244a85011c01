"""Names of layers and structures without names of people: those of files and folders may be patients' names.

The name of a scan is not kept: the reader gives it again. In the names of other layers it is replaced by the number of
the scan. Of what remains, words that occur in the path of a file or in private attributes of a DICOM header are left
out, unless they are words of anatomy, of models, or of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.formats.dicom.private_words import is_private, private_words, without_dates, words
from napari_seg.formats.endings import may_be_dicom
from napari_seg.plugin.session_file.content import SavedName

_FIELD = frozenset(
    words(
        "a and axial by channel confidence contours copy coronal ct differences dwi flair from in labels left manual "
        "map mr mri new of on pet reference restored right sagittal scan seg segmentation series structure t1 t1w t2 "
        "t2w the volume with"
    )
)
"""Words of the field, which are kept although folders are named by them."""


class PrivateWords:
    """Words that must not occur in a session file.

    Args:
        files: files of all scans and labels; slow for DICOM, whose headers are read: call outside the main thread.
        public: names of models, whose words are kept although folders are named by them.
    """

    def __init__(self, files: Iterable[Path], public: Iterable[str]) -> None:
        in_paths: set[str] = set()
        self._of_people: frozenset[str] = frozenset()
        files = list(dict.fromkeys(files))
        for part in {part for file in files for part in file.absolute().parts}:
            in_paths |= {word.lower() for word in _all_words(part) if not _is_short_number(word)}
        for file in {file.parent: file for file in files}.values():  # one of each series is enough
            self._of_people |= _private_words_of(file)
        self._of_people -= _always_public()
        self._known = {word.lower() for text in public for word in _all_words(text)} - self._of_people
        self._known |= _always_public()
        self._in_paths = frozenset(in_paths) - self._known

    def public_text(self, text: str) -> str:
        """Return a text without private words; "" if no word remains."""
        return _tidy(re.sub(r"\w+", self._kept, without_dates(text, self._of_people)))

    def public_structure(self, name: str, label: int) -> str:
        """Return the name of a structure without the words of DICOM headers; words of paths are kept."""
        of_people = self._of_people
        public = _always_public()
        kept = re.sub(
            r"[^\W_]+",
            lambda m: "" if m.group().lower() not in public and _is_one_of(m.group(), of_people) else m.group(),
            without_dates(name, of_people),
        )
        return name if kept == name else _tidy(kept) or f"label {label}"

    def _kept(self, match: re.Match[str]) -> str:
        # "_" joins words in names of files
        parts = [part for part in match.group().split("_") if not self._is_private(part)]
        return "_".join(parts)

    def _is_private(self, word: str) -> bool:
        if word.lower() in self._known:
            return False
        return _is_one_of(word, self._of_people) or _is_one_of(word, self._in_paths)


def saved_name(name: str, scan_names: Sequence[str], private: PrivateWords) -> SavedName:
    """Return the name of a layer with the names of scans replaced by their numbers, and without private words.

    Args:
        name: name of the layer.
        scan_names: name of each scan in the viewer.
        private: private words.
    """
    order = sorted(range(len(scan_names)), key=lambda n: -len(scan_names[n]))
    for number in order:
        title = scan_names[number]
        if len(title) > 1 and title in name:
            before, _, after = name.partition(title)
            texts = (_text(before, private), number, _text(after, private))
            return SavedName(parts=tuple(part for part in texts if part != ""))
    text = private.public_text(name)
    return SavedName(parts=(text,) if text else ())


def opened_name(saved: SavedName, scan_names: Sequence[str], fallback: str) -> str:
    """Return the name of a layer with the present names of the scans.

    Args:
        saved: name in the session file.
        scan_names: present name of each scan; "" for one that was not found.
        fallback: name if nothing else remains.
    """
    parts = []
    for part in saved.parts:
        if isinstance(part, str):
            parts.append(part)
        elif part < len(scan_names):
            parts.append(scan_names[part] or "scan")
    return "".join(parts).strip() or fallback


@cache
def _always_public() -> frozenset[str]:
    """Return the words of the field and of anatomy, which name nobody."""
    from napari_seg.bundles.totalsegmentator.table import structures_of, tasks

    names = (segment.name for task in tasks().values() for segment in structures_of(task))
    return _FIELD | {word.lower() for name in names for word in _all_words(name) if len(word) > 2}


def _tidy(text: str) -> str:
    """Return a text without what left-out words leave: empty brackets, and signs at its ends."""
    return re.sub(r"\s+", " ", re.sub(r"\(\W*\)|\[\W*\]", "", text)).strip(" _-,.;:^'")


def _text(text: str, private: PrivateWords) -> str:
    """Return a part of a name without private words; spaces and signs next to the name of a scan are kept."""
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", text, re.DOTALL)
    assert found is not None
    start, middle, end = found.groups()
    return start + private.public_text(middle) + end if middle else text


def _private_words_of(file: Path) -> frozenset[str]:
    """Return the private words of the header of a DICOM file; none for another file."""
    from napari_seg.formats.dicom.headers import read_header

    if not may_be_dicom(file):
        return frozenset()
    try:
        return private_words(read_header(file).tags)
    except InputError:
        return frozenset()


def _all_words(text: str) -> set[str]:
    """Return the words of a text, with and without accents."""
    return {*words(text), *re.findall(r"[^\W_]+", text)}


def _is_short_number(word: str) -> bool:
    return len(word) < 2 or (word.isdigit() and len(word) < 4)


def _is_one_of(word: str, private: frozenset[str]) -> bool:
    plain = "".join(words(word))
    return is_private(word.casefold(), private) or (bool(plain) and is_private(plain, private))
