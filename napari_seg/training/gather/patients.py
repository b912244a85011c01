"""Name the patient of each case that a search has found, and number the patients of several data sets.

Patients of several data sets with an image in common are one patient.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from napari_seg.formats.itk import with_pixel_files
from napari_seg.training.gather.pair import Pair

if TYPE_CHECKING:
    from segnets.data.patients import Origin

_BLOCKS = 16
_BLOCK_BYTES = 1 << 16


def with_patients(pairs: Sequence[Pair], pattern: str | None, only_named: bool = False) -> list[Pair]:
    """Return pairs that were found by a search with a patient each, see `segnets.data.patients.patients_of`."""
    from segnets.data.patients import patients_of

    patients = patients_of([origin_of(pair) for pair in pairs], pattern, only_named)
    return [replace(pair, patient=patient) for pair, patient in zip(pairs, patients, strict=True)]


def origin_of(pair: Pair) -> Origin:
    """Return what identifies the patient of a pair that was found by a search; call it within `with_segnets`."""
    from segnets.data.patients import Origin

    file = None
    if pair.images[0][1].format == "dicom":  # a series is a folder, which may be the one of the label map
        folder = PurePosixPath(pair.place[0]).parent
        file = "" if folder.parts == pair.folders else folder.name
    return Origin(pair.place[0], stated=pair.patient, folders=pair.folders, file=file)


class CaseSource(NamedTuple):
    """Where a case of a data set came from, before it was converted.

    Attributes:
        folder: folder of its data set; equal patients in one folder are one patient.
        patient: name of its patient.
        images: files of its image.
    """

    folder: Path
    patient: str
    images: tuple[Path, ...]


def number_patients(cases: Mapping[tuple[int, str], CaseSource]) -> dict[tuple[int, str], int]:
    """Return (number of the data set, name of the case) -> number of the patient, from 1.

    Images are the same if they are one file, or files of equal content in different data sets.

    Args:
        cases: (number of the data set, name of the case) -> its source.
    """
    joined: dict[tuple[Path, str], tuple[Path, str]] = {}

    def first(key: tuple[Path, str]) -> tuple[Path, str]:
        while joined.get(key, key) != key:
            key = joined[key]
        return key

    of_file: dict[Path, tuple[Path, str]] = {}
    of_size: defaultdict[int, dict[Path, int]] = defaultdict(dict)
    for (number, _), source in cases.items():
        key = (source.folder, source.patient)
        for image in source.images:
            path = image.resolve()
            joined[first(key)] = first(of_file.setdefault(path, key))
            of_size[sum(file.stat().st_size for file in with_pixel_files([path]))][path] = number
    of_content: dict[str, tuple[Path, str]] = {}
    for files in of_size.values():
        if len(set(files.values())) > 1:
            for path in files:
                key = of_file[path]
                joined[first(key)] = first(of_content.setdefault(_digest(path), key))
    numbers: dict[tuple[Path, str], int] = {}
    return {
        case: numbers.setdefault(first((source.folder, source.patient)), len(numbers) + 1)
        for case, source in cases.items()
    }


def count_equal_names(patients: Mapping[tuple[int, str], int]) -> int:
    """Return the number of names of cases that several data sets have for different patients."""
    of_name: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for (number, name), patient in patients.items():
        of_name[name.casefold()].add((number, patient))
    return sum(len({n for n, _ in found}) > 1 and len({p for _, p in found}) > 1 for found in of_name.values())


def _digest(path: Path) -> str:
    """Return a digest of the size of a file, and of its pixel files, and of blocks that are spread over them."""
    digest = hashlib.sha256()
    for file in with_pixel_files([path]):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for number in range(_BLOCKS):
                stream.seek(number * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def folder_of(dataset_dir: Path) -> Path:
    """Return the folder of a data set: itself, or that of a list or an archive."""
    return dataset_dir.resolve() if dataset_dir.is_dir() else dataset_dir.resolve().parent


def as_paths(image: str | Sequence[str]) -> tuple[Path, ...]:
    """Return the files of a case's image."""
    return tuple(Path(path) for path in ([image] if isinstance(image, str) else image))
