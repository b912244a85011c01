"""DICOM series that a training set names without copying them, and without saying where they lie.

The set holds a small file for each series, with a digest of its voxels. Where the files of the series lie is known to
the user's own data folder on this machine only. So a set names no patient, whose name paths often hold, and nobody can
give away a set that makes this program read other files: a digest that this machine does not know leads nowhere, and a
known one leads to the very voxels that it was computed from, which is checked when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import InputError
from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.formats.scan import Scan
from napari_seg.volume import Volume

ENDING = ".series.json"
"""Ending of a file that names a series by the digest of its voxels."""

VARIABLE = "NAPARI_SEG_SCANS"
"""Environment variable with the folder in which the places of accepted scans are kept."""

_MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class KnownScan:
    """What this machine knows about a scan that was accepted here.

    Attributes:
        files: its files, absolute; those of a series in the order of its slices.
    """

    files: tuple[Path, ...]


@dataclass(frozen=True)
class ReferencedScan(Scan):
    """A DICOM series with the digest of the voxels that it must have.

    Attributes:
        digest: see `voxel_digest`.
    """

    digest: str = ""

    def read(self, volume: int | None = None, **options: Any) -> Volume:
        """Read the series as `Scan.read` does, and check its voxels.

        Raises:
            InputError: `series.changed`, they are others now; and as for `Scan.read`.
        """
        found = super().read(volume, **options)
        if voxel_digest(found) != self.digest:
            text = "the series holds other voxels than when its labels were accepted; restore its files, open it and "
            text += "accept it again, or remove its case (napari-seg accept --discard)"
            raise InputError("series.changed", text)
        return found


def voxel_digest(volume: Volume) -> str:
    """Return a digest of the voxels of a scan, as 32 hexadecimal digits.

    Copies of a scan in other formats have the same one: it is that of the values as float32 in the order right,
    anterior, superior. The place in the patient does not count, because formats round it differently.
    """
    axes, flips = volume.grid.patient_axes()
    turned = volume.array.transpose(0, *(axis + 1 for axis in axes))
    turned = turned[:, *(slice(None, None, -1 if flip else 1) for flip in flips)]
    digest = hashlib.blake2b(str(turned.shape).encode(), digest_size=16)
    for channel in turned:
        for plane in channel:
            digest.update(np.ascontiguousarray(plane, dtype="<f4").data)
    return digest.hexdigest()


def value_digest(volume: Volume) -> str:
    """Return a digest of the values of a scan in any order, as 16 hexadecimal digits.

    Mirrored copies, and copies with other axes, have the same one. Other scans hardly ever do; compare the voxels.
    """
    total = 0
    for channel in volume.array:
        for plane in channel:
            bits = (np.asarray(plane, "<f4") + np.float32(0)).view("<u4").astype(np.uint64)  # no -0.0
            bits *= np.uint64(0x9E3779B97F4A7C15)
            bits ^= bits >> np.uint64(32)
            total += int(bits.sum())
    text = f"{len(volume.array)} {sorted(volume.grid.shape)} {total & 0xFFFFFFFFFFFFFFFF}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def known_folder() -> Path:
    """Return the folder with the places of accepted scans; it need not exist."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("napari-seg", appauthor=False) / "scans"


def remember(digest: str, scan: KnownScan) -> None:
    """Note where the files of a scan lie; a note of the same scan is replaced.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`.
    """
    path = known_folder() / f"{digest}.json"
    content = {"files": [os.path.abspath(file) for file in scan.files]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(path, json.dumps(content) + "\n")
    except OSError as error:
        raise not_written(str(path), error) from error


def recall(digest: str) -> KnownScan | None:
    """Return what this machine knows about the scan with a digest; None if it knows nothing."""
    if not _is_digest(digest):
        return None
    content = _read(known_folder() / f"{digest}.json")
    files = content.get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return None
    return KnownScan(tuple(map(Path, files)))


def write_reference(path: Path, digest: str) -> None:
    """Write the file that names a series in a training set.

    Raises:
        OSError: the file could not be written.
    """
    atomic_write(path, json.dumps({"program": "napari-seg", "series": digest}) + "\n")


def referenced_scan(path: Path) -> ReferencedScan:
    """Return the series that a file of a training set names.

    Raises:
        InputError: `series.unknown`, this machine does not know where it lies; `series.moved`, it is no longer there.
    """
    name = path.name.removesuffix(ENDING)
    digest = _read(path).get("series")
    known = recall(digest) if isinstance(digest, str) else None
    if known is None or not known.files:
        raise InputError(
            "series.unknown",
            f"this machine does not know where the DICOM series of {name} lies; open the series here and accept it "
            "again, or accept it with a copy of its images where it is known",
        )
    if missing := [file for file in known.files if not file.is_file()]:
        raise InputError(
            "series.moved",
            f"{len(missing)} of the {len(known.files)} files of the DICOM series of {name} are no longer where they "
            "were; restore them, or open the series where it is now and accept it again",
        )
    return ReferencedScan(name, "dicom", known.files, str(digest))


def _is_digest(text: str) -> bool:
    return len(text) == 32 and not set(text) - set("0123456789abcdef")


def _read(path: Path) -> Mapping[str, Any]:
    """Return the content of a small JSON file; empty if it is missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _MAX_BYTES and isinstance(content := json.loads(path.read_bytes()), dict):
            return content
    return {}
