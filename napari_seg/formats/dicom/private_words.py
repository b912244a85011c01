"""Remove private words (names of people, identifiers, the institution) from file names and descriptions."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

Tags = Mapping[str, Any]
"""Values of a DICOM file, by keyword: plain numbers and strings, or tuples of them."""

_PRIVATE_KEYWORDS = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "AdmissionID",
    "InstitutionName",
    "InstitutionAddress",
)
"""Keywords of private attributes, in addition to every attribute whose value is a person's name (VR PN)."""

_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
    | {"ẞ": "SS", "Æ": "AE", "Œ": "OE", "Ø": "O", "Ł": "L", "Đ": "D", "Ð": "D", "Þ": "TH"}
)
"""ASCII letters for letters that Unicode doesn't take apart into a letter and an accent."""

_SHORTER = {"aa": "a", "ae": "a", "oe": "o", "ue": "u", "ss": "s"}
"""ASCII spellings of å, ä, ö, ü and ß, and the letter that stands for each of them, too."""

_UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
_UID = re.compile(r"(?<!\d)(?<!\d\.)(?=[\d.]{21})\d+(?:\.\d+)+(?!\.?\d)")
"""A unique identifier of DICOM: numbers with dots between them, more than 20 characters."""

_THREE_NUMBERS = re.compile(r"(?=(?<!\d)(\d{1,4})[\W_]+(\d{1,2})[\W_]+(\d{1,4})(?!\d))")


@lru_cache(maxsize=1)
def private_keywords() -> tuple[str, ...]:
    """Return the keywords of the attributes whose words appear in no name and no message."""
    from pydicom.datadict import DicomDictionary

    return (*_PRIVATE_KEYWORDS, *(entry[4] for entry in DicomDictionary.values() if entry[0] == "PN"))


def private_words(tags: Tags) -> frozenset[str]:
    """Return every word, in lower case, of the attributes that name the patient, other persons or the institution.

    The date of birth is returned in all orders of its parts, with four and with two digits of the year.
    """
    private = _private_keywords()
    found = _private_words(tuple([str(tags[keyword]) for keyword in tags if keyword in private and tags[keyword]]))
    born = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(\d\d)", re.sub(r"\D", "", str(tags.get("PatientBirthDate") or "")))
    if born is None:
        return found
    century, year, month, day = born.groups()
    years = (century + year, year)
    return found | {date for y in years for date in (y + month + day, day + month + y, month + day + y)}


@lru_cache(maxsize=1)
def _private_keywords() -> frozenset[str]:
    return frozenset(private_keywords())


@lru_cache(maxsize=1024)  # the files of one patient share these values
def _private_words(values: tuple[str, ...]) -> frozenset[str]:
    private: set[str] = set()
    for value in values:
        found = [word.lower() for word in words(value)]
        private |= {*found, "".join(found)} - {""}
        private |= {word for word in re.findall(r"\w{2,}", value.casefold()) if not word.isascii()}
    return frozenset(private)


def is_private(word: str, private: frozenset[str]) -> bool:
    """Return whether a word equals a private word, or contains one of three letters or more, in any spelling."""
    text, short_text = word.lower(), _one_spelling(word)
    for each in private:
        if each == text or (len(each) >= 3 and each in text):
            return True
        short = _one_spelling(each)
        # a short one means too little: that of Maas is also that of mass
        if (short == each or len(short) >= 4) and (short == short_text or (len(short) >= 3 and short in short_text)):
            return True
    return False


@lru_cache(maxsize=4096)
def _one_spelling(word: str) -> str:
    """Return the spelling that stands for all of a word: Müller, Mueller and Muller; 0004711 and 4711."""
    word = word.lower()
    if word.isdigit():
        return word.lstrip("0")
    return re.sub("aa|ae|oe|ue|ss", lambda found: _SHORTER[found.group()], word)


def without_dates(text: str, private: frozenset[str]) -> str:
    """Return a text without private dates whose parts are separated, such as 12.03.1965."""
    for found in reversed([*_THREE_NUMBERS.finditer(text)]):
        if "".join(part.zfill(2) for part in found.groups()) in private:
            text = text[: found.start(1)] + text[found.end(3) :]
    return text


def words(text: str) -> list[str]:
    """Return the words of a text in ASCII letters and digits, without accents."""
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS)).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", plain)


def public_words(text: str, private: frozenset[str]) -> list[str]:
    """Return the words of a text, see `words`, that are not private."""
    return [word for word in words(without_dates(text, private)) if not is_private(word, private)]


def without_uids(text: str, tags: Tags | None = None) -> str:
    """Return a text, such as a folder's name, with a digest in place of each DICOM UID, which identifies a patient.

    Args:
        text: the text.
        tags: of a DICOM file; its own UIDs are replaced however short they are, if one is the whole text.
    """
    if tags is not None and text and text in (str(tags.get(keyword) or "") for keyword in _UID_KEYWORDS):
        return _digest(text)
    return _UID.sub(lambda found: _digest(found.group()), text)


def _digest(uid: str) -> str:
    return f"uid{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def label_of(path: Path, tags: Tags) -> str:
    """Return the name of a file for messages: without private words; its instance number if no word remains."""
    number = tags.get("InstanceNumber")
    nameless = "the DICOM file" if number is None else f"instance {number}"
    if _UID.search(path.name):
        return nameless
    return without_private_words(path, private_words(tags)) or nameless


def public_name(text: str, tags: Tags) -> str:
    """Return a text, such as a folder's name, without the private words of a file; "" if no word remains."""
    return _without(without_uids(text, tags), private_words(tags))


@lru_cache(maxsize=1024)  # requested for each frame of a file
def without_private_words(path: Path, private: frozenset[str]) -> str:
    """Return the name of a file without private words; "" if no word remains."""
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z]{1,5}", path.suffix) else ""
    name = _without(path.name.removesuffix(suffix), private)
    return name and name + suffix


@lru_cache(maxsize=1024)  # folders and descriptions repeat
def _without(text: str, private: frozenset[str]) -> str:
    """Return a text without private words and UIDs; "" if no word remains."""
    text = without_uids(text)
    if any(word in text.casefold() for word in private if not word.isascii()):
        return ""
    kept = public_words(text, private)
    return text if kept == words(text) else "_".join(kept)
