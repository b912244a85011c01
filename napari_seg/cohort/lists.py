"""Read lists of scans: MONAI's datalists and plain lists in JSON, and tables (CSV, TSV).

Paths in a list are absolute, or relative to the folder of the list. An entry whose file is missing becomes a failed
case with a reason; a list that breaks the format is refused with the line or the entry, what it holds and what was
expected.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from napari_seg.cohort.naming import MAX_NAME_BYTES, compared
from napari_seg.errors import InputError, one_line
from napari_seg.formats.data_sets import MAX_LIST_BYTES
from napari_seg.formats.endings import has_ending

TABLE_ENDINGS = (".csv", ".tsv")
LIST_ENDINGS = (".json", *TABLE_ENDINGS)

_TEST_SECTIONS = ("testing", "test")
_IMAGE_KEYS = ("image", "path")
_TEXT_KEYS = ("name", "id", "model")

# what Windows, macOS and Linux refuse in a file name, and what a shell or a spreadsheet would act on at its beginning
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff/\\:*?"<>|]|^[-. =+@]|[. ]$')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class ListedScan:
    """One entry of a list.

    Attributes:
        place: where it stands, such as "line 3".
        images: paths of its image, or of its images that are channels, as they are written.
        name: name of the case; "" if the list gives none.
        model: model that segments it; "" if the list gives none.
    """

    place: str
    images: tuple[str, ...]
    name: str = ""
    model: str = ""


def is_list(path: Path) -> bool:
    """Return whether an input is a list of scans, by the ending of its name."""
    return has_ending(path, LIST_ENDINGS) and path.is_file()


def read_list(path: Path) -> list[ListedScan]:
    """Return the entries of a list in their order.

    JSON: a list of paths or of objects with "image" (or "path"), or an object with such lists, as MONAI's datalists; of
    these, "testing" or "test" is read if it has entries, and all lists otherwise. CSV and TSV: a first line with the
    titles, of which one is `path` or `image`. An entry may have a name, an id, which is its name if it has no name, and
    a model.

    Raises:
        InputError: `cohort.list`, the list breaks the format; `cohort.list_name`, a name occurs twice or is no valid
            file name; `cohort.network`, it names a model on another computer; `file.unreadable`.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_LIST_BYTES else b""
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
    if size > MAX_LIST_BYTES:
        raise _fault(path, "", f"{size} bytes", f"at most {MAX_LIST_BYTES}")
    of_format = _of_table if has_ending(path, TABLE_ENDINGS) else _of_json
    entries = [replace(entry, model=model_in(path, entry.model)) for entry in of_format(path, content)]
    if not entries:
        raise _fault(path, "", "no entry", "a scan in each entry")
    _check_names(path, entries)
    return entries


def listed_file(path: Path, text: str) -> Path:
    """Return the file that an entry of a list means; it need not exist.

    A list may come from another system, with backslashes or with another Unicode form of the names.

    Args:
        path: the list.
        text: the path as it is written there.

    Raises:
        InputError: `cohort.network`, the path leads to another computer.
    """
    _refuse_network(text, path)
    slashes = text.replace("\\", "/")
    forms = (text, *(unicodedata.normalize(form, one) for one in (text, slashes) for form in ("NFC", "NFD")))
    files = [path.parent / form for form in dict.fromkeys(forms)]
    return next((file for file in files if _exists(file)), files[0])


def model_in(path: Path, model: str) -> str:
    """Return the model that a file names: a folder relative to the file if there is one, else the name as it is.

    Args:
        path: the file.
        model: a name or a folder.

    Raises:
        InputError: `cohort.network`, the path leads to another computer.
    """
    _refuse_network(model, path)
    folder = path.parent / model
    return str(folder) if model and folder.is_dir() else model


def _refuse_network(text: str, path: Path) -> None:
    """Refuse a path in a file that leads, on Windows, to another computer than the one on which the file lies.

    Windows sends the user's credentials to every computer that a path names.
    """
    drive = PureWindowsPath(text).drive
    if drive.startswith("\\\\") and drive.casefold() != PureWindowsPath(os.path.abspath(path)).drive.casefold():
        raise InputError(
            "cohort.network",
            f"found a path on another computer ({one_line(drive, 60)}); expected one on this computer, or relative to "
            f"{path.name}; connect the other one as a drive first",
        )


def check_file_name(name: str) -> str:
    """Return why a name is no valid base name of files on Windows, macOS and Linux; "" if it is valid."""
    if found := _FORBIDDEN.search(name):
        return f"the character {found[0]!r}"
    if not name or _RESERVED.fullmatch(name):
        return "a name that Windows reserves" if name else "no name"
    size = len(name.encode())
    return f"{size} bytes, more than {MAX_NAME_BYTES}" if size > MAX_NAME_BYTES else ""


def _exists(file: Path) -> bool:
    try:
        return os.path.lexists(file)
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _fault(path: Path, place: str, found: str, expected: str) -> InputError:
    where = f"{path.name}, {place}" if place else path.name
    return InputError("cohort.list", f"{where}: found {one_line(found, 200)}; expected {expected}")


def _of_json(path: Path, content: bytes) -> Iterator[ListedScan]:
    expected = 'a list of paths, or a datalist such as {"testing": [{"image": "head.nii.gz"}]}'
    try:
        root = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _fault(path, place, f"no JSON ({type(error).__name__})", expected) from error
    sections: dict[str, list[Any]] = {"": root} if isinstance(root, list) else {}
    if isinstance(root, dict):
        lists = {name: value for name, value in root.items() if isinstance(value, list) and value}
        sections = {name: lists[name] for name in _TEST_SECTIONS if name in lists}
        sections = sections or {name: value for name, value in lists.items() if _is_section(value)}
    if not sections:
        raise _fault(path, "", "no list of scans", expected)
    for section, values in sections.items():
        for number, value in enumerate(values, 1):
            place = f"entry {number} of {section}" if section else f"entry {number}"
            yield _entry_of_json(path, place, value)


def _is_section(values: list[Any]) -> bool:
    """Return whether a list in an object holds scans; others hold names of labels, numbers, ..."""
    return all(isinstance(one, dict) and any(key in one for key in _IMAGE_KEYS) for one in values)


def _entry_of_json(path: Path, place: str, value: Any) -> ListedScan:
    entry = {"path": value} if isinstance(value, str) else value
    if not isinstance(entry, dict):
        raise _fault(path, place, json.dumps(value), 'a path or an object with "image"')
    images = next((entry[key] for key in _IMAGE_KEYS if entry.get(key)), None)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(one, str) and one for one in images):
        raise _fault(path, place, json.dumps(entry), 'the path of an image, or a list of paths, as "image"')
    for key in _TEXT_KEYS:
        if not isinstance(entry.get(key) or "", str | int):
            raise _fault(path, place, f"{key} {json.dumps(entry[key])}", f"text as {key}")
    name, identifier, model = (str(entry.get(key) or "").strip() for key in _TEXT_KEYS)
    return ListedScan(place, tuple(images), name or identifier, model)


def _of_table(path: Path, content: bytes) -> Iterator[ListedScan]:
    titles: list[str] = []
    for place, cells in table_rows(path, content):
        if not titles:
            titles = [cell.strip().casefold() for cell in cells]
            column = next((key for key in ("path", "image") if key in titles), "")
            if not column or len(set(filter(None, titles))) < len([*filter(None, titles)]):
                listed = ", ".join(cells)
                raise _fault(path, place, f"the columns {listed}", "different columns, of which one is path or image")
            continue
        if len(cells) > len(titles):
            raise _fault(path, place, f"{len(cells)} cells", f"{len(titles)}, one in each column")
        row = {title: cell.strip() for title, cell in zip(titles, cells, strict=False)}
        if not row.get(column):
            raise _fault(path, place, f"nothing in the column {column}", "a path")
        yield ListedScan(place, (row[column],), row.get("name") or row.get("id") or "", row.get("model", ""))


def table_rows(path: Path, content: bytes, code: str = "cohort.list") -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a table that are not empty, each with its place, such as "line 3".

    The separator is a comma, a semicolon or a tabulator, whichever the line of titles has most of. The text is UTF-8,
    or Latin-1 as spreadsheets of Western Europe write it.

    Args:
        path: the table.
        content: its bytes.
        code: code of the error.

    Raises:
        InputError: with the code, it is no table.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    first = next((line for line in text.split("\n") if line.strip() and line[0] != "#"), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t;,", key=first.count), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"line {reader.line_num}", cells
    except csv.Error as error:
        text = f"{path.name}, line {reader.line_num}: found no row of a table ({error}); expected cells and separators"
        raise InputError(code, text) from error


def _check_names(path: Path, entries: list[ListedScan]) -> None:
    """Raise if a name occurs twice, on any file system, or is no valid file name.

    Entries with the same name and different models are one scan for several models.
    """
    places: dict[tuple[str, str], str] = {}
    for entry in entries:
        if not entry.name:
            continue
        if fault := check_file_name(entry.name):
            shown = one_line(entry.name, 60)
            text = f"{path.name}, {entry.place}: the name {shown!r} has {fault}; expected a valid file name"
            raise InputError("cohort.list_name", text)
        first = places.setdefault((compared(entry.name), entry.model), entry.place)
        if first != entry.place:
            shown = one_line(entry.name, 60)
            text = f"{path.name}, {entry.place}: the name {shown!r} is that of {first}; expected a name for each scan"
            raise InputError("cohort.list_name", text)
