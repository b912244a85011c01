"""Describe pairs of scans and label maps that were found on disk and not yet read."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_seg.error_codes import CODES
from napari_seg.formats.archive import origin, shown
from napari_seg.formats.endings import (
    ARCHIVE_ENDINGS,
    IMAGE2D_ENDINGS,
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    PAIR_ENDINGS,
    SEG_NRRD_ENDINGS,
    ending_of,
)
from napari_seg.formats.find import Skipped
from napari_seg.formats.itk import with_pixel_files
from napari_seg.formats.scan import Scan
from napari_seg.training.gather.colours import Colours
from napari_seg.training.identity import Row

ENDINGS = (
    *NIFTI_ENDINGS,
    *PAIR_ENDINGS,
    *SEG_NRRD_ENDINGS,
    *ITK_ENDINGS,
    *ARCHIVE_ENDINGS,
    *IMAGE2D_ENDINGS,
)


@dataclass(frozen=True)
class Pair:
    """A scan and its label maps.

    Attributes:
        name: name of the case, also of its files; without identifiers of a patient.
        images: (name of the channel, its image); the name is "" if there is one image without a name.
        labels: files of the label maps.
        structures: for each file of `labels` the structure that all its voxels above 0 are; empty if the files hold
            label values or named segments.
        patient: equal for the pairs of one patient, "" if unknown; may be an identifier, so it is never written.
        frame: number of the frame, page or volume of a file that holds several, counted from 0; None for the whole.
        colours: colours of the classes if the label maps are 2D images in colours.
        labelled: values that are annotated in the case, if the data set declares it; None: all.
        part: "training", "validation" or "test", if the data set states it; else "".
        fold: fold of a cross-validation, if the data set states it.
        drawn_on: number of the image on which the label maps were drawn, whose grid is that of the case.
        only_structure: name of the label map's file if all cases have one file with this name; it is the structure if
            the files hold one value.
        is_stack: the pages of its TIFF files are slices of a volume.
        place: paths of its images and label maps below the data set; may hold identifiers, so they are never written.
        folders: folders above its image or series; None: those of the first path in `place`.
    """

    name: str
    images: tuple[tuple[str, Scan], ...]
    labels: tuple[Path, ...]
    structures: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)
    frame: int | None = None
    colours: Colours = ()
    labelled: tuple[int, ...] | None = None
    part: str = ""
    fold: int | None = None
    drawn_on: int = 0
    only_structure: str = ""
    is_stack: bool = False
    place: tuple[str, ...] = field(default=(), repr=False)
    folders: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the images and the label maps."""
        return (*(file for _, scan in self.images for file in scan.files), *self.labels)

    @property
    def row(self) -> Row:
        """What a plan records of the case."""
        return Row(self.name, self.place, self.patient, self.part, self.fold, self.labelled)

    @property
    def key(self) -> str:
        """Digest of the paths, sizes and times of the files and of how they are read; it reveals none of them."""
        names = [name for name, _ in self.images]
        parts = [repr((self.structures, self.frame, self.colours, names, self.drawn_on, self.is_stack))]
        parts += ["slices"] if self.is_stack else []
        for file in with_pixel_files(self.files):
            with suppress(FileNotFoundError):  # reading the pair raises the reason
                status = origin(file).stat()  # an unpacked file is as old as its archive
                parts.append(f"{shown(file)} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class PassedOver:
    """Files of a data set that became no case.

    Attributes:
        ending: ending of their names, or "DICOM series", or "files without an ending".
        count: number of files, or of series.
        code: stable code of the reason.
        reason: the reason in words, without names of files.
    """

    ending: str
    count: int
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.count} {self.ending} ({self.code}: {self.reason.rstrip('.')})"


def passed_over(skipped: Iterable[Skipped], unpaired: Sequence[tuple[Scan | Path, str]] = ()) -> tuple[PassedOver, ...]:
    """Return what became no case, counted by ending and reason.

    Args:
        skipped: files that the search for scans left out.
        unpaired: scans and files of label maps without a partner, each with the code of the reason.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for one in skipped:
        counts.update((_ending(file), one.code) for file in one.files)
    for what, code in unpaired:
        is_series = isinstance(what, Scan) and what.format == "dicom"
        file = what.files[0] if isinstance(what, Scan) else what
        counts[("DICOM series" if is_series else _ending(file), code)] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(PassedOver(ending, count, code, CODES[code].meaning) for (ending, code), count in ordered)


def unread_files(unread: Mapping[str, int]) -> tuple[PassedOver, ...]:
    """Return what `segnets.data.find_dataset` did not read, by ending."""
    code = "skip.not_an_image"
    return tuple(PassedOver(ending, count, code, CODES[code].meaning) for ending, count in sorted(unread.items()))


def _ending(file: Path) -> str:
    ending = ending_of(file, ENDINGS) or file.suffix
    is_ending = 1 < len(ending) <= 10 and not ending[1:].isdigit()  # DICOM files may be named by a UID
    return ending.lower() if is_ending else "files without an ending"


def with_distinct_names(pairs: Sequence[Pair]) -> list[Pair]:
    """Return pairs with names that are fit for files; of several pairs with one name, the others get a number."""
    taken: set[str] = set()
    named = []
    for pair in pairs:
        plain = unicodedata.normalize("NFC", re.sub(r"[^\w.-]+", "_", pair.name)).strip("._-") or "case"
        name, number = plain, 2
        while name.casefold() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.casefold())
        named.append(replace(pair, name=name))
    return named
