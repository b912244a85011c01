"""Read lists of cases: CSV and TSV tables of paths, and the paths in JSON data lists."""

from __future__ import annotations

import csv
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from segnets.data.columns import part_of, stated_columns
from segnets.data.pairing import CONVERTIBLE, IMAGES_2D, VOLUMES, Case, normalized, stem
from segnets.errors import TrainingError

TABLES = (".csv", ".tsv")

_LABEL = re.compile(r"(label|mask|seg|segmentation|ground ?truth|gt|annotation)s?( ?(map|path|file|name|filename))?")
_IMAGE = re.compile(r"(image|img|scan|volume|input|picture)s?( ?\d+)?( ?(path|file|name|filename))?")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff/\\]{1,200}")
_MAX_LINE = 1 << 16
_SHOWN_COLUMNS = 20
_ENDINGS = VOLUMES + IMAGES_2D + CONVERTIBLE


class Entry(NamedTuple):
    """A case in a list.

    Attributes:
        images: paths of the image's channels.
        label: path of the label map.
        patient: the patient; "" if unknown.
        name: name of the case, if the list gives one.
        part: word for the part of the data set; "" if unknown.
        fold: name of the fold; "" if unknown.
        labelled: names or values of the annotated classes; `...`: all.
        is_replayed: whether it is a case of an earlier training.
        line: line of the table; 0 in other lists.
    """

    images: Sequence[str]
    label: str
    patient: str = ""
    name: Any = None
    part: str = ""
    fold: str = ""
    labelled: Any = ...
    is_replayed: bool = False
    line: int = 0


class Listed(NamedTuple):
    """Cases of a list, and what it states about them.

    Attributes:
        cases: cases whose files exist.
        unpaired: cases that lack a file, see `Dataset.unpaired`.
        patients: name of a case -> its patient; empty if the list names none.
        parts: name of a case -> "training", "validation" or "test"; empty if the list states no parts.
        folds: name of a case -> its fold, from 0; empty if the list states none.
        labelled: name of a case -> names or values of its annotated classes, for the cases for which they are stated.
        replayed: names of cases of an earlier training.
        channels: names of the columns of images if there are several; else empty.
        unclear: what it states in a way that can't be used, see `Dataset.unclear`.
        unused: what it states and is not used, see `Dataset.unused`.
        is_numbered: whether the cases are named by numbers.
    """

    cases: list[Case]
    unpaired: list[Case]
    patients: dict[str, str]
    parts: dict[str, str]
    folds: dict[str, int]
    labelled: dict[str, Any]
    replayed: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    is_numbered: bool = False


def read_table(path: Path, channels: Sequence[str] | None = None, anywhere: bool = False) -> Listed:
    """Read a table with a row per case: a column of label maps, and one or more columns of images.

    The columns are found by their titles (image, label, mask, patient, ...), in upper or lower case. If none is titled
    as an image, every other column whose cells end as image files is a channel. A table without titles has the images
    in the first columns and the label map in the last one. Paths are relative to the table or absolute. A column split
    says which rows are for training, validation and test, and a column fold to which fold they belong; see
    `segnets.data.columns`.

    Args:
        path: the table; its separator may be a comma, a semicolon or a tabulator.
        channels: titles of the columns of the image's channels; None: found by their titles.
        anywhere: see `listed_cases`.

    Raises:
        TrainingError: "dataset.bad_table", "dataset.outside".
    """
    text = _decoded(path.read_bytes())
    first_line = text.partition("\n")[0]
    separator = max("\t;,", key=first_line.count)
    try:
        reader = csv.reader(text.splitlines(), delimiter=separator)
        numbered = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise TrainingError("dataset.bad_table", f"{path.name} is no table ({error}); {_EXPECTED}") from error
    rows = [row for _, row in numbered]
    titles = [_plain(cell) for cell in rows[0]] if rows else []
    if len(titles) < 2:
        raise TrainingError("dataset.bad_table", f"{path.name} has fewer than two columns; {_EXPECTED}")
    if all(_is_image(cell) for cell in rows[0] if cell.strip()):  # no titles
        names = [f"image {n}" for n in range(len(titles) - 1)] + ["label"]
    else:
        names, rows, numbered = titles, rows[1:], numbered[1:]
    labels = [n for n, name in enumerate(names) if _LABEL.fullmatch(name)]
    if len(labels) != 1 or not rows:
        found = ", ".join(cell.strip() for cell in names)
        raise TrainingError("dataset.bad_table", f"{path.name} has the columns {found}; {_EXPECTED}")
    images = _image_columns(names, rows, labels[0], channels, path)
    columns = stated_columns(names, rows, (n for n in range(len(names)) if n not in (*images, labels[0])))
    numbers = {"patient": columns.patient, "part": columns.part, "fold": columns.fold}
    entries = []
    for number, row in numbered:
        cells = [cell.strip() for cell in (*row, *[""] * (len(names) - len(row)))]
        if any(not cells[n] for n in (*images, labels[0])):
            raise TrainingError(
                "dataset.bad_table", f"{path.name}: line {number} lacks a path; fill it in or remove it"
            )
        stated = {key: cells[n] for key, n in numbers.items() if n is not None}
        entries.append(Entry([cells[n] for n in images], cells[labels[0]], line=number, **stated))
    titles = list(channels or [names[n] for n in images]) if len(images) > 1 else []
    found = listed_cases(path, entries, anywhere)
    filled = {n for row in rows for n, cell in enumerate(row[: len(names)]) if cell.strip()}
    others = [names[n] or "one without a title" for n in sorted(filled - {*images, labels[0], *numbers.values()})]
    more = f" and {len(others) - _SHOWN_COLUMNS} more" if len(others) > _SHOWN_COLUMNS else ""
    ignored = (f"columns not used: {', '.join(others[:_SHOWN_COLUMNS])}{more}",) if others else ()
    return found._replace(
        channels=tuple(titles),
        unclear=(*columns.unclear, *found.unclear),
        unused=(*columns.unused, *found.unused, *ignored),
    )


def listed_cases(path: Path, entries: Sequence[Entry], anywhere: bool = False) -> Listed:
    """Return the cases of a list; they are numbered if different images have the same name.

    Names in the list are used if every case has one of its own, of one line and without separators of paths.

    Args:
        path: the list; paths in it are relative to its folder.
        entries: its cases.
        anywhere: accept files outside of its folder, which are those of the user himself if he names the list; a list
            that lies in the folder of a data set may come from someone else.

    Raises:
        TrainingError: "dataset.outside", a file lies outside; "dataset.stated", some cases have no part.
    """
    names_in = cache(_names_in)
    found = [[_listed_file(path, name, names_in, anywhere) for name in (*one.images, one.label)] for one in entries]
    stems = [stem(files[0]) for files in found]
    is_numbered = len(set(stems)) < len({files[0] for files in found})
    names = [f"case_{n:04d}" for n in range(1, len(stems) + 1)] if is_numbered else stems
    stated = [one.name for one in entries]
    if all(isinstance(name, str) and _NAME.fullmatch(name) for name in stated) and len(set(stated)) == len(names):
        names, is_numbered = [str(name) for name in stated], False
    parts = _parts_of(path, entries)
    word = next((one.part for one in entries if one.part.strip()), "") if not parts else ""
    listed = Listed(
        [],
        [],
        {name: one.patient for name, one in zip(names, entries, strict=True) if one.patient},
        parts=dict(zip(names, parts, strict=False)),
        folds=_folds_of({name: one.fold for name, one in zip(names, entries, strict=True) if one.fold}),
        labelled={name: one.labelled for name, one in zip(names, entries, strict=True) if one.labelled is not ...},
        replayed=tuple(name for name, one in zip(names, entries, strict=True) if one.is_replayed),
        unclear=(f"its split has words such as {word[:40]!r}; expected train, validation and test",) if word else (),
        is_numbered=is_numbered,
    )
    for name, (*images, label), one in zip(names, found, entries, strict=True):
        case: Case = {"name": name}
        if all(map(_is_file, images)):
            case["image"] = str(images[0]) if len(images) == 1 else [str(path) for path in images]
        if _is_file(label):
            case["label"] = str(label)
        if len(case) == 3:
            listed.cases.append(case)
            continue
        files = zip((*images, label), (*one.images, one.label), strict=True)
        missing = [text for file, text in files if not _is_file(file)]
        listed.unpaired.append(case | {"list": path.name, "missing": missing})
    return listed


def _parts_of(path: Path, entries: Sequence[Entry]) -> list[str]:
    """Return the part of each case; empty if no word of the list means a part.

    Raises:
        TrainingError: "dataset.stated", only some words do.
    """
    parts = [part_of(one.part) for one in entries]
    if not any(parts):
        return []
    if "" in parts:
        number = parts.index("")
        where = f"line {line} has" if (line := entries[number].line) else f"case {number + 1} has"
        text = f"{where} the split {entries[number].part!r}; expected train, validation or test"
        raise TrainingError("dataset.stated", f"{path.name}: {text}")
    return parts


def _folds_of(stated: Mapping[str, str]) -> dict[str, int]:
    """Return name of a case -> number of its fold, in the order of the folds' numbers or names."""
    order = sorted(set(stated.values()), key=lambda fold: (not fold.isdecimal(), fold.zfill(20)))
    return {name: order.index(fold) for name, fold in stated.items()}


def _listed_file(
    path: Path, listed: str, names_in: Callable[[Path], Mapping[str, Sequence[Path]]], anywhere: bool
) -> Path:
    """Return the path of a file in a list; the file need not exist.

    The list may come from another system: with backslashes, with another Unicode form of the names, or with absolute
    paths of a folder that was moved. Of an absolute path only the last folder and the name are used.

    Args:
        path: the list.
        listed: the path in it.
        names_in: function that returns the files in a folder, by their normalized names.
        anywhere: see `listed_cases`.

    Raises:
        TrainingError: "dataset.outside".
    """
    root = path.parent
    for name in dict.fromkeys((listed, listed.replace("\\", "/"))):
        if (anywhere or _is_inside(root / name, root)) and _is_file(root / name):
            return root / name
    foreign = PureWindowsPath(listed) if "\\" in listed or PureWindowsPath(listed).drive else PurePosixPath(listed)
    inside = root.joinpath(*foreign.parts[-2:]) if foreign.anchor else root.joinpath(*foreign.parts)
    if anywhere or _is_inside(inside, root):
        same = names_in(inside.parent).get(normalized(inside.name), ())
        inside = same[0] if len(same) == 1 and not _is_file(inside) else inside
        if anywhere or _is_file(inside) or _is_inside(root / listed.replace("\\", "/"), root):
            return inside
    raise TrainingError(
        "dataset.outside",
        f"{path.name} lists {listed}, which is not in its folder; expected files in {root}. If this is your own list, "
        "give its path in place of the folder",
    )


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether a path leads into a folder; does not read the disk."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


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
        with path.open("rb") as stream:
            titles = [_plain(cell) for cell in re.split("[,;\t]", _decoded(stream.readline(_MAX_LINE)))]
    except OSError:
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


def _decoded(content: bytes) -> str:
    """Return the text of a table: UTF-8, or as spreadsheets of Western Europe write it."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _plain(title: str) -> str:
    return re.sub(r"[\s_\-.]+", " ", title.strip().strip('"').lower())


def _is_image(cell: str) -> bool:
    return cell.strip().strip('"').lower().endswith(_ENDINGS)


_EXPECTED = (
    "expected a row per case with the columns image and label, which hold paths relative to the table or absolute "
    "ones; several columns of images are channels, and a column patient names the patient"
)
