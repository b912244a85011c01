"""Small images of the previews, for a report that is one file."""

from __future__ import annotations

import io
import os
import warnings
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image

WIDTH = 320
MAX_HEIGHT = 400
"""Pixels of a thumbnail; a longer preview is cut, so that its first structures stay legible."""

MAX_EMBEDDED_BYTES = 8_000_000
"""Size of all thumbnails of a page together, about 1,200; base64 adds a third, and mail servers accept about 20 MB."""

_QUALITY = 60
_MAX_PIXELS = 40_000_000
_AT_ONCE = 64


def thumbnails(paths: Iterable[str], folder: Path, max_bytes: int = MAX_EMBEDDED_BYTES) -> Iterator[str]:
    """Yield WebP thumbnails as base64, "" for a preview that can't be read, until they have a size together.

    Args:
        paths: paths of the previews, relative to the folder; the most important first.
        folder: the output folder.
        max_bytes: size after which no further thumbnail is yielded.
    """
    left, remaining = max_bytes, iter(paths)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow works outside the interpreter's lock
        while batch := list(islice(remaining, _AT_ONCE)):
            for content in pool.map(lambda path: _thumbnail(path, folder), batch):
                left -= len(content)
                if left < 0:
                    return
                yield b64encode(content).decode("ascii")


def is_below(path: str) -> bool:
    """Return whether a relative path with "/" stays below the folder that it is relative to, on every system."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in parts[0]


def _thumbnail(path: str, folder: Path) -> bytes:
    if not is_below(path):
        return b""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(folder / path, formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                return b""
            height = max(1, round(image.height * WIDTH / image.width))
            small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.BOX, reducing_gap=2.0)
        written = io.BytesIO()
        small.crop((0, 0, WIDTH, min(height, MAX_HEIGHT))).save(written, "WEBP", quality=_QUALITY, method=2)
        return written.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # a missing or damaged file
        return b""
