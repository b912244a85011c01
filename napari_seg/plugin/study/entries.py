"""Rows of the Study tab, without Qt: the scans and labels below a path, each with a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cohort.naming import SUFFIX
from napari_seg.formats.find import find
from napari_seg.formats.scan import ReadOptions
from napari_seg.plugin.messages import as_gui_text
from napari_seg.plugin.session_file.endings import is_session_file
from napari_seg.plugin.study.label_files import are_labels, holds_labels, kind_of, scan_index

if TYPE_CHECKING:
    from napari_seg.formats.scan import Scan
    from napari_seg.formats.verdict import Verdict

_VERDICTS = {"process": "ready", "warn": "ready, with warnings", "refuse": "can't be used", "skip": "no scan"}
"""Verdict -> its text in the window."""

_SHORT_VERDICTS = {"process": "ready", "warn": "warning", "refuse": "refused", "skip": "no scan"}
"""Verdict -> its text in a narrow column."""


@dataclass(frozen=True)
class Entry:
    """One row of the tree: a scan, a file of labels, or a file that is neither.

    Attributes:
        verdict: result of the check of the scan.
        scan: the scan, or the scan of the labels; None if there is none.
        folder: folder of the file, relative to the chosen path.
        volumes: number of volumes of which one must be chosen; 0 if there is nothing to choose.
        is_tilted: whether the slices must be shifted onto a straight grid.
        labels: file of a segmentation or of contours; None for a scan.
        scan_name: name of the scan that the labels belong to; "" if it is unknown.
        session: session file; None for all other rows.
    """

    verdict: Verdict
    scan: Scan | None
    folder: str
    volumes: int = 0
    is_tilted: bool = False
    labels: Path | None = None
    scan_name: str = ""
    session: Path | None = None

    @property
    def can_open(self) -> bool:
        """Return whether the entry can be shown, possibly after a choice of volume or straightening."""
        if self.labels is not None or self.session is not None:
            return True
        is_fit = self.verdict.verdict in ("process", "warn") or self.volumes > 0 or self.is_tilted
        return self.scan is not None and is_fit

    @property
    def can_be_labels(self) -> bool:
        """Return whether the file may hold a label map: its format does not distinguish scans from label maps."""
        is_image = self.scan is not None and self.scan.format in ("nifti", "itk", "image2d")
        return is_image and self.labels is None and self.can_open

    @property
    def title(self) -> str:
        """Return the name of the row, which is also the name of its layer."""
        if self.labels is not None:
            kind = "contours" if self.verdict.modality == "RTSTRUCT" else "segmentation"
            return f"{kind} of {self.scan_name}" if self.scan_name else self.verdict.name
        return self.verdict.name

    def read_options(self, volume: int) -> ReadOptions:
        """Return the options to read the scan with.

        Args:
            volume: number of the volume, from 0; ignored if there is only one.
        """
        return ReadOptions(volume=volume if self.volumes else None, resample_tilt=self.is_tilted, one_slice=True)

    @property
    def size(self) -> str:
        """Return the number of voxels along each axis as text; "" if it is unknown."""
        return "" if self.verdict.shape is None else " × ".join(map(str, self.verdict.shape))

    @property
    def spacing(self) -> str:
        """Return the spacing along each axis in mm as text; "" if it is unknown."""
        spacing = self.verdict.spacing_mm
        return "" if spacing is None else " × ".join(f"{length:.3g}" for length in spacing)

    @property
    def short(self) -> str:
        """Return the verdict in one or two words."""
        if self.labels is not None:
            return "labels"
        if self.session is not None:
            return "session"
        if self.volumes:
            return f"{self.volumes} volumes"
        return "tilted" if self.is_tilted else _SHORT_VERDICTS[self.verdict.verdict]

    @property
    def details(self) -> str:
        """Return all known facts about the entry as lines of text."""
        measures = [
            text for text in (self.verdict.modality, self.size, f"{self.spacing} mm" if self.spacing else "") if text
        ]
        code = f" ({self.verdict.code})" if self.verdict.code else ""
        why = as_gui_text(self.verdict.message) if self.volumes or self.is_tilted else ""
        return "\n".join(text for text in (self.title, ", ".join(measures), f"{self.words}{code}", why) if text)

    @property
    def words(self) -> str:
        """Return the verdict as text, with its reason."""
        verdict = self.verdict
        if self.labels is not None:
            return "labels" if self.scan_name else "labels; their scan is not in this folder"
        if self.session is not None:
            return "session: layers, labels and settings of earlier work"
        if self.volumes:
            return f"{self.volumes} volumes: choose one below{', tilted' if self.is_tilted else ''}"
        if self.is_tilted:
            return "tilted gantry: can be straightened"
        reason = f": {as_gui_text(verdict.message)}" if verdict.message else ""
        return f"{_VERDICTS[verdict.verdict]}{reason}"


def find_entries(path: Path) -> Iterator[Entry]:
    """Yield the scans and labels below a path; slow, because each scan is read in full to check it.

    Session files, segmentations, contours and results of earlier runs come after the scans; labels come with the scan
    that they belong to.

    Args:
        path: a file or a folder.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder may not be opened.
    """
    from napari_seg.cohort.naming import is_certainty_map
    from napari_seg.formats.archive import shown
    from napari_seg.formats.verdict import Verdict, verdict_of, verdict_of_skipped

    found = find(path, ignore=is_certainty_map)
    root = path if path.is_dir() else path.parent
    labels = [scan.files[0] for scan in found.scans if scan.format == "nifti" and holds_labels(scan.files[0])]
    scans = [scan for scan in found.scans if scan.files[0] not in labels]
    for scan in scans:
        verdict, folder = verdict_of(scan, ReadOptions(one_slice=True)), _folder(scan.files[0], root)
        yield Entry(verdict, scan, folder, verdict.choices, verdict.option == "resample_tilt")
    for skipped in found.skipped:
        if are_labels(skipped):
            labels.append(skipped.files[0])
        elif is_session_file(skipped.files[0]):
            file = skipped.files[0]
            verdict = Verdict(str(file), file.name, 1, "process", modality="session")
            yield Entry(verdict, None, _folder(file, root), session=file)
        else:
            yield Entry(verdict_of_skipped(skipped), None, _folder(shown(skipped.files[0]), root))
    for file in labels:
        yield _labels_entry(file, scans, root)


def _labels_entry(file: Path, scans: Sequence[Scan], root: Path) -> Entry:
    """Return the row of a file of labels."""
    from napari_seg.formats.archive import shown
    from napari_seg.formats.verdict import Verdict

    kind = kind_of(file)
    if kind in ("SEG", "RTSTRUCT"):
        number = scan_index(file, [scan.files for scan in scans])
    else:
        stem = file.name.removesuffix(kind).removesuffix(SUFFIX)
        number = next((n for n, scan in enumerate(scans) if scan.name == stem), None)
    name = "" if number is None else scans[number].name
    place = shown(file)
    verdict = Verdict(str(place), place.name, 1, "process", modality=kind)
    return Entry(verdict, None if number is None else scans[number], _folder(place, root), labels=file, scan_name=name)


def _folder(file: Path, root: Path) -> str:
    folder = file.parent
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
