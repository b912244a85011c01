"""What would become of each series and file below a path, told before anything is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from napari_seg.errors import ChoiceNeeded, NapariSegError, printable
from napari_seg.formats.archive import shown
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.find import Skipped, find
from napari_seg.formats.scan import ReadOptions, Scan
from napari_seg.volume import Volume


@dataclass(frozen=True)
class Verdict:
    """Of one series or file.

    Attributes:
        path: the file, or the folder of the series.
        name: what a person recognises it by.
        files: how many it is made of.
        verdict: "process"; "warn", the same with a doubt; "refuse"; "skip", it is no scan.
        code: of the doubt or the reason; "" where there is none.
        message: what was found, what was expected and what to do.
        option: of `Scan.read`, that would make a refused scan one to process: "volume" or "resample_tilt"; "" of none.
        choices: how many volumes there are, counted from 0.
        modality: DICOM's letters; "" where the file does not say.
        shape: (I, J, K); None of what can't be read.
        spacing_mm: along each index axis.
        orientation: where each index axis points, such as "RAS".
        channels: numbers a voxel.
        dtype: of the array, such as "int16".
    """

    path: str
    name: str
    files: int
    verdict: Literal["process", "warn", "refuse", "skip"]
    code: str = ""
    message: str = ""
    option: str = ""
    choices: int = 0
    modality: str = ""
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str = ""
    channels: int | None = None
    dtype: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def verdicts(path: Path, reading: ReadOptions | None = None) -> Iterator[Verdict]:
    """One verdict for each series and file below a path; each is read in full, because only that tells.

    Args:
        path: a file or a folder.
        reading: for `Scan.read`.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder may not be opened.
    """
    found = without_label_maps(find(path), path)
    for scan in found.scans:
        yield verdict_of(scan, reading)
    for skipped in found.skipped:
        yield verdict_of_skipped(skipped)


def verdict_of(scan: Scan, reading: ReadOptions | None = None) -> Verdict:
    """The verdict on one scan, which is read in full; never raises for what is wrong with it.

    Args:
        scan: as `find` gave it.
        reading: for `Scan.read`.
    """
    try:
        volume = scan.read(**(reading or {}))
    except ChoiceNeeded as error:
        return _refused(scan, error.code, error.message, error.option, error.count)
    except NapariSegError as error:
        return _refused(scan, error.code, error.message)
    except MemoryError:
        return _refused(scan, "file.too_large", f"{scan.name} needs more memory than is free")
    except Exception as error:  # our own mistake must not hide the other scans; it may quote what must stay private
        text = f"this should not have happened: {type(error).__name__}; please report it"
        return _refused(scan, "internal.error", text)
    return _of_volume(scan, volume)


def verdict_of_skipped(skipped: Skipped) -> Verdict:
    """The verdict on what is no scan."""
    from napari_seg.formats.dicom.headers import file_label

    first = skipped.files[0]
    return Verdict(
        printable(str(shown(first))),
        printable(file_label(first)),
        len(skipped.files),
        "skip",
        skipped.code,
        skipped.message,
    )


def _refused(scan: Scan, code: str, message: str, option: str = "", choices: int = 0) -> Verdict:
    return Verdict(scan.source, scan.name, len(scan.files), "refuse", code, message, option, choices)


def _of_volume(scan: Scan, volume: Volume) -> Verdict:
    notices = volume.notices
    return Verdict(
        scan.source,
        scan.name,
        len(scan.files),
        "warn" if notices else "process",
        notices[0].code if notices else "",
        "; ".join(notice.message for notice in notices),
        modality=volume.modality,
        shape=volume.grid.shape,
        spacing_mm=tuple(round(length, 6) for length in volume.grid.spacing_mm),
        orientation=volume.grid.orientation,
        channels=len(volume.array),
        dtype=str(volume.array.dtype),
    )
