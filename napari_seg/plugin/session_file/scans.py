"""Scans of a session: recognise them by their content, wherever they lie and whatever they are called now.

Marks of files are those of `scan_mark`, keyed with the salt of the session file. They are quick to search for. A digest
of all voxels, taken when a scan is read, tells scans with equal marks apart, and detects any other change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import ChoiceNeeded, InputError, Notice
from napari_seg.formats.archive import origin, unpacked
from napari_seg.formats.endings import ARCHIVE_ENDINGS, has_ending
from napari_seg.formats.itk import with_pixel_files
from napari_seg.formats.scan import Scan
from napari_seg.formats.walk import files_below
from napari_seg.plugin.layers import VOLUME_MARK
from napari_seg.plugin.scan_mark import digest_of_ends, keyed_digest
from napari_seg.plugin.session_file.content import FileMark, SavedGrid, SavedScan
from napari_seg.volume import Volume

_MAX_CANDIDATES = 200
"""Largest number of candidates that are read for one scan."""


def mark_of(file: Path, salt: str) -> FileMark:
    """Return the mark of a file.

    Raises:
        OSError: the file can't be read.
    """
    size, digest = digest_of_ends(file, salt)
    return FileMark(size=size, digest=digest)


def voxels_digest(array: NDArray, salt: str) -> str:
    """Return the salted digest of the values and the shape of an array (C, I, J, K)."""
    digest = keyed_digest(salt, f"{array.shape} {array.dtype.newbyteorder('<').str}".encode())
    for channel in array:
        for plane in channel.T:  # arrays of readers are in Fortran order
            digest.update(np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def saved_scan(volume: Volume, salt: str) -> SavedScan:
    """Return the reference to a scan that was read from files; slow, call outside the main thread.

    Raises:
        OSError: one of its files can't be read any more.
    """
    files = with_pixel_files(volume.source.files)
    archive = origin(files[0])
    _, mark, number = volume.name.rpartition(VOLUME_MARK)
    solved = None if volume.source.stack is None else volume.source.stack.solved
    return SavedScan(
        format=volume.source.format,  # type: ignore[arg-type]
        modality=volume.modality,
        grid=SavedGrid.of(volume.grid),
        channels=len(volume.array),
        files=tuple(mark_of(file, salt) for file in files),
        archive=None if archive == files[0] else mark_of(archive, salt),
        volume=int(number) if mark and number.isdecimal() else None,
        is_tilted=solved is not None and solved.is_tilted,
        voxels=voxels_digest(volume.array, salt),
    )


@dataclass(frozen=True)
class ScanFiles:
    """Result of a search for one scan.

    Attributes:
        candidates: files with the marks of the scan, in their order; several if there are copies, or scans that are
            alike; () if they were not found.
        may_have_changed: whether a part of the files, or a file of the same size, was found.
    """

    candidates: tuple[tuple[Path, ...], ...] = ()
    may_have_changed: bool = False


def find_scans(
    folder: Path, scans: Sequence[SavedScan], salt: str, check: Callable[[], object] = lambda: None
) -> list[ScanFiles]:
    """Search scans in a folder and below; slow, call outside the main thread.

    Args:
        folder: folder to search.
        scans: scans to search for.
        salt: salt of the session file.
        check: called often; may raise an error to stop.

    Raises:
        InputError: `file.unreadable`, the folder can't be opened.
    """
    known = _Known(salt, check)
    below, _ = files_below(folder, lambda _: False)
    plain = [scan for scan in scans if scan.archive is None]
    known.add(below, {mark.size for scan in plain for mark in scan.files})
    packed = {scan.archive for scan in scans if scan.archive is not None}
    if packed:
        archives = _Known(salt, check)
        archives.add((one for one in below if has_ending(one, ARCHIVE_ENDINGS)), {mark.size for mark in packed})
        for mark in packed:
            for archive in archives.paths.get(mark, ())[:1]:
                inside, _ = files_below(unpacked(archive), lambda _: False)
                known.add(inside, {one.size for scan in scans if scan.archive == mark for one in scan.files})
    return [known.find(scan) for scan in scans]


class _Known:
    """Files of some sizes, by their marks."""

    def __init__(self, salt: str, check: Callable[[], object]) -> None:
        self._salt, self._check = salt, check
        self.paths: dict[FileMark, list[Path]] = defaultdict(list)
        self._sizes: set[int] = set()

    def add(self, files: Iterable[Path], sizes: set[int]) -> None:
        for file in files:
            self._check()
            try:
                if file.stat().st_size in sizes:
                    mark = mark_of(file, self._salt)
                    self.paths[mark].append(file)
                    self._sizes.add(mark.size)
            except OSError:  # it can't be the scan
                continue

    def find(self, scan: SavedScan) -> ScanFiles:
        """Return the files of a scan; those in one folder are preferred to parts in several."""
        found = [self.paths.get(mark, []) for mark in scan.files]
        if not all(found):
            part = any(found) if len(found) > 1 else scan.files[0].size in self._sizes
            return ScanFiles(may_have_changed=part)
        folders = set.intersection(*({path.parent for path in paths} for paths in found))
        together = (
            [[path for path in paths if path.parent == folder] for paths in found] for folder in sorted(folders)
        )
        choices = together if folders else [found]
        candidates = chain.from_iterable(product(*choice) for choice in choices)
        return ScanFiles(tuple(islice(candidates, _MAX_CANDIDATES)))


def read_found(
    saved: SavedScan, found: ScanFiles, salt: str, check: Callable[[], object] = lambda: None
) -> tuple[Volume, tuple[Notice, ...]]:
    """Read the scan that was found, as `read_scan`; of several candidates the one with the same voxels.

    Raises:
        InputError: as `read_scan`; `session.scan_changed`, no candidate has the voxels of the scan.
    """
    if len(found.candidates) == 1:
        return read_scan(saved, found.candidates[0], salt)
    for files in found.candidates:
        check()
        with suppress(InputError):
            volume, notices = read_scan(saved, files, salt)
            if not notices:
                return volume, ()
    size = " x ".join(map(str, saved.grid.shape))
    raise InputError(
        "session.scan_changed",
        f"{len(found.candidates)} scans look like the scan of {size} voxels, but none has the intensities that it had "
        "when the session was saved; open the right one by itself and check the labels on it",
    )


def read_scan(saved: SavedScan, files: tuple[Path, ...], salt: str) -> tuple[Volume, tuple[Notice, ...]]:
    """Read a scan that was found; return it and doubts whether it is unchanged; slow, call outside the main thread.

    Raises:
        InputError: `session.scan_changed`, it has another grid than when the session was saved; or it can't be read.
    """
    scan = _scan(saved, files)
    options: dict[str, Any] = {"resample_tilt": saved.is_tilted, "one_slice": True}
    try:
        volume = scan.read(**options)
    except ChoiceNeeded as choice:
        if choice.option != "volume" or saved.volume is None:
            raise
        volume = scan.read(saved.volume, **options)
    if saved.volume is not None:
        volume = replace(volume, name=f"{volume.name}{VOLUME_MARK}{saved.volume}")
    if not volume.grid.matches(saved.grid.grid()) or len(volume.array) != saved.channels:
        raise InputError(
            "session.scan_changed",
            f"{scan.name} lies on other voxels than when the session was saved; expected the unchanged scan; open it "
            "by itself and check the labels on it",
        )
    if voxels_digest(volume.array, salt) == saved.voxels:
        return volume, ()
    text = (
        f"{scan.name} has other intensities than when the session was saved: it was changed, or is another scan with "
        "the same size, beginning and end; check that the labels belong to it"
    )
    return volume, (Notice("session.scan_changed", text),)


def _scan(saved: SavedScan, files: tuple[Path, ...]) -> Scan:
    if saved.format == "dicom":
        from napari_seg.formats.dicom.series import find_series

        series, _ = find_series(files)
        name = series[0].name if series else "scan"  # never that of a file
        return Scan(name, "dicom", files)
    return Scan(files[0].name, saved.format, files[:1] if saved.format == "itk" else files)
