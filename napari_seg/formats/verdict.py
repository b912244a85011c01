"""Verdicts: whether each series and file below a path can be segmented, and if not, why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from napari_seg.errors import ChoiceNeeded, InputError, NapariSegError, printable
from napari_seg.formats.archive import shown
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.facts import facts_of
from napari_seg.formats.find import Skipped, find
from napari_seg.formats.label_maps import label_map_doubts
from napari_seg.formats.scan import ReadOptions, Scan
from napari_seg.volume import Volume


@dataclass(frozen=True)
class Verdict:
    """Verdict on one series or file.

    Attributes:
        path: the file, or the folder of the series.
        name: name of the scan for people.
        files: number of its files.
        verdict: "process"; "warn", processed with a warning; "refuse"; "skip", it is no scan.
        code: code of the warning or reason; "" if there is none.
        message: what was found, what was expected and what to do.
        option: option of `Scan.read` with which a refused scan can be processed: "volume" or "resample_tilt"; else "".
        choices: number of volumes to choose from.
        modality: DICOM's code of the modality; of a file that states none, what its name or the JSON file next to it
            suggests; "" if unknown.
        shape: (I, J, K); None if the scan can't be read.
        spacing_mm: voxel size along each index axis.
        orientation: patient direction of each index axis, such as "RAS".
        channels: number of channels.
        dtype: type of the array, such as "int16".
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
        """Return plain values for JSON."""
        return asdict(self)


def verdicts(path: Path, reading: ReadOptions | None = None) -> Iterator[Verdict]:
    """Yield a verdict for each series and file below a path; each is read completely to find all faults.

    Args:
        path: a file or a folder.
        reading: options of `Scan.read`.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder can't be opened.
    """
    found = without_label_maps(find(path), path)
    for scan in found.scans:
        yield verdict_of(scan, reading)
    for skipped in found.skipped:
        yield verdict_of_skipped(skipped)


def verdict_of(scan: Scan, reading: ReadOptions | None = None) -> Verdict:
    """Return the verdict on a scan, which is read completely; faults of the scan are never raised.

    Args:
        scan: scan found by `find`.
        reading: options of `Scan.read`.
    """
    try:
        volume = scan.read(**(reading or {}))
    except ChoiceNeeded as error:
        return _refused(scan, error.code, error.message, error.option, error.count)
    except NapariSegError as error:
        return _refused(scan, error.code, error.message)
    except MemoryError:
        return _refused(scan, "file.too_large", f"{scan.name} needs more memory than is free")
    except Exception as error:  # a bug must not hide the other scans; its text may contain private values
        text = f"this should not have happened: {type(error).__name__}; please report it"
        return _refused(scan, "internal.error", text)
    return _of_volume(scan, volume)


def verdict_of_skipped(skipped: Skipped) -> Verdict:
    """Return the verdict on files that are no scan."""
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
    notices = (*volume.notices, *label_map_doubts(volume))
    modality = volume.modality
    with suppress(InputError):  # such as a file that is gone by now
        modality = modality or facts_of(scan).modality
    return Verdict(
        scan.source,
        scan.name,
        len(scan.files),
        "warn" if notices else "process",
        notices[0].code if notices else "",
        "; ".join(notice.message for notice in notices),
        modality=modality,
        shape=volume.grid.shape,
        spacing_mm=tuple(round(length, 6) for length in volume.grid.spacing_mm),
        orientation=volume.grid.orientation,
        channels=len(volume.array),
        dtype=str(volume.array.dtype),
    )
