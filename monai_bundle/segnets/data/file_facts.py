"""Read a data set's files to their end and record what the check needs of each, in a cache on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import math
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segnets.data.labels import convert_image, convert_label_map
from segnets.data.pairing import IMAGES_2D, VOLUMES, Case, is_2d_image
from segnets.errors import TrainingError
from segnets.files import replacing

logger = logging.getLogger(__name__)

WORKERS = 4
"""Number of files that are read, and held in memory, at the same time."""

_SLAB_VOXELS = 1 << 22
_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 24
_SECONDS_BETWEEN_LINES = 10
_CACHE_VERSION = 3

Facts = dict[str, Any]
"""What the check needs of one file, in JSON's types: "error" (code and text), or "shape", "affine", "channels",
"not_finite", "low", "high", and "digest" of all that. A label map also has "values" (value -> number of voxels) and
"fractional" (number of voxels whose value is no integer). One of fractions has "values" (number of a structure ->
number of voxels above one half) and "volumes" (number of a structure -> sum of its fractions) of the structures that it
has. A 2D image has "mode", PIL's name."""


def image_paths(case: Case) -> list[str]:
    """Return the files of a case's image, one or one per channel."""
    return case["image"] if isinstance(case["image"], list) else [case["image"]]


def read_all(cases: Iterable[Case], cache_dir: str | Path | None, soft: bool = False) -> dict[str, Facts]:
    """Return path -> facts of every file; unchanged files are taken from the cache.

    Args:
        cases: as in `Dataset.cases`.
        cache_dir: folder of the cache, `checked_files.json`; None: every file is read.
        soft: the label maps hold fractions.
    """
    is_label = {path: False for case in cases for path in image_paths(case)} | {case["label"]: True for case in cases}
    cache = Path(cache_dir) / "checked_files.json" if cache_dir else None
    stored = _read_cache(cache)
    keys = {path: _cache_key(path, label * (3 if soft else 1)) for path, label in is_label.items()}
    facts = {path: stored[path]["facts"] for path, key in keys.items() if stored.get(path, {}).get("stamp") == key}
    to_read = [path for path in is_label if path not in facts]
    logged = time.monotonic()
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = pool.map(lambda path: read_facts(path, is_label[path], soft), to_read)
            for n, (path, found) in enumerate(zip(to_read, results, strict=True), 1):
                facts[path] = found
                if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
                    logged = time.monotonic()
                    logger.info(f"checking: {n} of {len(to_read)} files")
    finally:
        if cache and to_read:
            # a file that could not be read is tried again: a permission or a mount may have been missing
            entries = {p: {"stamp": keys[p], "facts": f} for p, f in facts.items() if "error" not in f}
            with replacing(cache) as part:
                part.write_text(json.dumps({"version": _CACHE_VERSION, "files": entries}))
    return facts


def _read_cache(cache: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):  # absent or damaged: every file is read again
        return {}
    return content["files"] if content.get("version") == _CACHE_VERSION else {}


def _cache_key(path: str, content: int) -> list[int]:
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, int(content)]


def read_facts(path: str, is_label: bool, soft: bool = False) -> Facts:
    """Read one file to its end and return its facts; a file that can't be read gives "error" and raises nothing."""
    try:
        if is_2d_image(path):
            with Image.open(path) as image:
                return _summarise(*_open_2d_image(image, is_label), is_label, soft) | {"mode": image.mode}
        if not path.lower().endswith(VOLUMES):
            raise TrainingError("file.format", f"training reads {', '.join(VOLUMES + IMAGES_2D)}; convert it")
        return _summarise(*_open_volume(path), is_label, soft)
    except TrainingError as error:
        found = error.code, error.message
    except EOFError:
        found = "file.truncated", "its gzip stream is truncated"
    except (gzip.BadGzipFile, zlib.error) as error:
        found = "file.damaged", f"its gzip stream is damaged ({error})"
    except Exception as error:  # a reader may raise anything, and the other files must be checked nevertheless
        found = "file.unreadable", f"it can't be read ({type(error).__name__}: {error})"
    return {"error": [found[0], f"{Path(path).name}: {found[1]}; copy or export it again"]}


def _open_volume(path: str) -> tuple[list[int], int, Any, Iterator[NDArray]]:
    """Return a NIfTI file's spatial shape, number of channels, affine and slabs of voxels.

    As MONAI reads it, the last of more than three axes counts channels. nibabel does not notice a gzip stream that is
    truncated or damaged after the voxels it reads, so all bytes are read here, once.
    """
    with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as stream:
        start = _read(stream, _HEADER_BYTES)
        is_second = nibabel.Nifti2Header.may_contain_header(start[:1024])
        kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
        header = kind.header_class.from_fileobj(io.BytesIO(start))
        voxels = math.prod(int(length) for length in header.get_data_shape())
        needed = int(header.get_data_offset()) + voxels * header.get_data_dtype().itemsize
        content = start + _read(stream, max(0, needed - len(start)))
        if needed > len(content):
            raise TrainingError("file.truncated", f"{len(content)} of {needed} bytes are there")
        while stream.read(_CHUNK_BYTES):  # what follows the voxels is checked, and not kept
            pass
    image = kind.from_bytes(content)
    thickness = max(1, _SLAB_VOXELS // max(1, int(np.prod(image.shape[:-1]))))
    slabs = (np.asarray(image.dataobj[..., k : k + thickness]) for k in range(0, image.shape[-1], thickness))
    axes = image.ndim - 1 if image.ndim > 3 else image.ndim
    return list(image.shape[:axes]), int(np.prod(image.shape[axes:])), image.affine.tolist(), slabs


def _read(stream: IO[bytes], count: int) -> bytes:
    """Return so many bytes, or all that there are: of a damaged header the count may be larger than any memory."""
    chunks = []
    while count > 0 and (chunk := stream.read(min(count, _CHUNK_BYTES))):
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _open_2d_image(image: Image.Image, is_label: bool) -> tuple[list[int], int, Any, Iterator[NDArray]]:
    if getattr(image, "n_frames", 1) > 1:
        raise TrainingError("file.pages", f"{image.n_frames} pages or frames; expected a single image")
    array = np.asarray(convert_label_map(image) if is_label else convert_image(image))
    return [array.shape[1], array.shape[0]], array.shape[2] if array.ndim == 3 else 1, None, iter([array])


def _summarise(
    shape: list[int], channels: int, affine: Any, slabs: Iterator[NDArray], is_label: bool, soft: bool
) -> Facts:
    not_finite, fractional, bounds, values, read = 0, 0, [], Counter(), 0
    volumes: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([shape, channels, affine]).encode())
    for slab in slabs:
        digest.update(slab.tobytes())
        if is_label and soft:
            for fractions in np.moveaxis(slab, -1, 0) if channels > 1 else [slab]:
                read += channels > 1
                if fractions.any():
                    values[str(read or 1)] += int(np.count_nonzero(fractions > 0.5))
                    volumes[str(read or 1)] += float(fractions.sum(dtype=np.float64))
        if slab.dtype.kind == "f":
            good = np.isfinite(slab)
            if not good.all():
                not_finite += int(slab.size - np.count_nonzero(good))
                slab = slab[good]
        if slab.size:
            bounds += [float(slab.min()), float(slab.max())]
        if is_label and not soft:
            rounded = np.rint(slab) if slab.dtype.kind == "f" else slab
            fractional += int(np.count_nonzero(abs(slab - rounded) > 1e-3)) if slab.dtype.kind == "f" else 0
            if not fractional:
                numbers, counts = np.unique(rounded, return_counts=True)
                values.update({str(int(v)): int(n) for v, n in zip(numbers, counts, strict=True)})
    facts: Facts = {"shape": shape, "channels": channels, "affine": affine, "not_finite": not_finite}
    facts |= {"low": min(bounds, default=0.0), "high": max(bounds, default=0.0), "digest": digest.hexdigest()}
    facts |= {"values": dict(values), "fractional": fractional} if is_label else {}
    return facts | ({"volumes": dict(volumes)} if is_label and soft else {})
