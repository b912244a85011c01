"""Read lists of cases: CSV and TSV tables of paths, and the paths in JSON data lists."""

from __future__ import annotations

import csv
import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from segnets.data.pairing import CONVERTIBLE, IMAGES_2D, VOLUMES, Case, normalized, stem
from segnets.errors import TrainingError

TABLES = (".csv", ".tsv")

_LABEL = re.compile(r"(label|mask|seg|segmentation|ground ?truth|gt|annotation)s?( ?(map|path|file|name|filename))?")
_IMAGE = re.compile(r"(image|img|scan|volume|input|picture)s?( ?\d+)?( ?(path|file|name|filename))?")
_PATIENT = re.compile(r"(patient|subject|participant|case)( ?(id|name|number))?")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff/\\]{1,200}")
_ENDINGS = VOLUMES + IMAGES_2D + CONVERTIBLE


class Listed(NamedTuple):
    """Cases of a list, and the patient and channel names that it states.

    Attributes:
        cases: cases whose files exist.
        unpaired: cases that lack a file.
        patients: name of a case -> its patient; empty if the list names none.
        channels: names of the columns of images if there are several; else empty.
    """

    cases: list[Case]
    unpaired: list[Case]
    patients: dict[str, str]
    channels: tuple[str, ...] = ()


def read_table(path: Path, channels: Sequence[str] | None = None) -> Listed:
    """Read a table with a row per case: a column of label maps, and one or more columns of images.

    The columns are found by their titles (image, label, mask, patient, ...), in upper or lower case. If none is titled
    as an image, every other column whose cells end as image files is a channel. A table without titles has the images
    in the first columns and the label map in the last one. Paths are relative to the table or absolute.

    Args:
        path: the table; its separator may be a comma, a semicolon or a tabulator.
        channels: titles of the columns of the image's channels; None: found by their titles.

    Raises:
        TrainingError: "dataset.bad_table".
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    first_line = text.partition("\n")[0]
    separator = max("\t;,", key=first_line.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise TrainingError("dataset.bad_table", f"{path.name} is no table ({error}); {_EXPECTED}") from error
    titles = [_plain(cell) for cell in rows[0]] if rows else []
    if len(titles) < 2:
        raise TrainingError("dataset.bad_table", f"{path.name} has fewer than two columns; {_EXPECTED}")
    if all(_is_image(cell) for cell in rows[0] if cell.strip()):  # no titles
        names = [f"image {n}" for n in range(len(titles) - 1)] + ["label"]
    else:
        names, rows = titles, rows[1:]
    labels = [n for n, name in enumerate(names) if _LABEL.fullmatch(name)]
    if len(labels) != 1 or not rows:
        found = ", ".join(cell.strip() for cell in names)
        raise TrainingError("dataset.bad_table", f"{path.name} has the columns {found}; {_EXPECTED}")
    images = _image_columns(names, rows, labels[0], channels, path)
    patient = next((n for n, name in enumerate(names) if _PATIENT.fullmatch(name)), None)
    entries = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in (*row, *[""] * (len(names) - len(row)))]
        if any(not cells[n] for n in (*images, labels[0])):
            raise TrainingError("dataset.bad_table", f"{path.name}: row {number} lacks a path; fill it in or remove it")
        who = cells[patient] if patient is not None else ""
        entries.append(([cells[n] for n in images], cells[labels[0]], who))
    titles = list(channels or [names[n] for n in images]) if len(images) > 1 else []
    return listed_cases(path.parent, entries)._replace(channels=tuple(titles))


def listed_cases(
    root: Path, entries: Iterable[tuple[Sequence[str], str, str]], stated: Sequence[str | None] = ()
) -> Listed:
    """Return the cases of a list; they are numbered if different images have the same name.

    Args:
        root: folder that the paths are relative to.
        entries: paths of the image's channels, path of the label map, and patient ("" if unknown) of each case.
        stated: names of the cases; used if every case has one of its own, of one line and without separators of paths.
    """
    names_in = cache(_names_in)
    found = [
        ([_listed_file(root, path, names_in) for path in images], _listed_file(root, label, names_in), who)
        for images, label, who in entries
    ]
    stems = [stem(images[0]) for images, _, _ in found]
    is_numbered = len(set(stems)) < len({images[0] for images, _, _ in found})
    names = [f"case_{n:04d}" for n in range(1, len(stems) + 1)] if is_numbered else stems
    if all(isinstance(name, str) and _NAME.fullmatch(name) for name in stated) and len(set(stated)) == len(names):
        names = [str(name) for name in stated]
    listed = Listed([], [], {})
    for name, (images, label, who) in zip(names, found, strict=True):
        case: Case = {"name": name}
        if all(map(_is_file, images)):
            case["image"] = str(images[0]) if len(images) == 1 else [str(path) for path in images]
        if _is_file(label):
            case["label"] = str(label)
        (listed.cases if len(case) == 3 else listed.unpaired).append(case)
        if who:
            listed.patients[name] = who
    return listed


def _listed_file(root: Path, listed: str, names_in: Callable[[Path], Mapping[str, Sequence[Path]]]) -> Path:
    """Return the path of a file in a list; the file need not exist.

    The list may come from another system: with backslashes, with another Unicode form of the names, or with absolute
    paths of a folder that was moved. Of an absolute path only the last folder and the name are used.

    Args:
        root: folder that the path is relative to.
        listed: the path.
        names_in: function that returns the files in a folder, by their normalized names.
    """
    for name in dict.fromkeys((listed, listed.replace("\\", "/"))):
        if _is_file(root / name):
            return root / name
    path = PureWindowsPath(listed) if "\\" in listed or PureWindowsPath(listed).drive else PurePosixPath(listed)
    inside = root.joinpath(*path.parts[-2:]) if path.anchor else root.joinpath(*path.parts)
    same = names_in(inside.parent).get(normalized(inside.name), ())
    return same[0] if len(same) == 1 and not _is_file(inside) else inside


def _names_in(folder: Path) -> dict[str, list[Path]]:
    """Return normalized name -> the files in a folder that have it; empty if there is no such folder."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir() if _is_file(folder, Path.is_dir) else ():
        found.setdefault(normalized(path.name), []).append(path)
    return found


def _is_file(path: Path, test: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether a file exists; a name that is too long for the file system names none."""
    try:
        return test(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_list_of_cases(path: Path) -> bool:
    """Return whether a table has a column of label maps and another one; it need not be a list otherwise."""
    if not path.name.lower().endswith(TABLES):
        return False
    try:
        with path.open(encoding="utf-8-sig") as stream:
            titles = [_plain(cell) for cell in re.split("[,;\t]", stream.readline())]
    except (OSError, UnicodeDecodeError):
        return False
    return sum(bool(_LABEL.fullmatch(title)) for title in titles) == 1 and any(map(_IMAGE.fullmatch, titles))


def _image_columns(
    names: Sequence[str], rows: Sequence[Sequence[str]], label: int, channels: Sequence[str] | None, path: Path
) -> list[int]:
    if channels:
        wanted = [_plain(title) for title in channels]
        if missing := [title for title in wanted if title not in names]:
            text = f"{path.name} has no column {', '.join(missing)}; it has {', '.join(names)}"
            raise TrainingError("dataset.bad_table", text)
        return [names.index(title) for title in wanted]
    titled = [n for n, name in enumerate(names) if n != label and _IMAGE.fullmatch(name)]
    by_cells = [n for n in range(len(names)) if n != label and all(len(row) > n and _is_image(row[n]) for row in rows)]
    if found := titled or by_cells:
        return found
    raise TrainingError("dataset.bad_table", f"{path.name} has the columns {', '.join(names)}; {_EXPECTED}")


def _plain(title: str) -> str:
    return re.sub(r"[\s_\-.]+", " ", title.strip().strip('"').lower())


def _is_image(cell: str) -> bool:
    return cell.strip().strip('"').lower().endswith(_ENDINGS)


_EXPECTED = (
    "expected a row per case with the columns image and label, which hold paths relative to the table or absolute "
    "ones; several columns of images are channels, and a column patient names the patient"
)
