"""Limits of what may be installed as a model, whatever its source."""

from __future__ import annotations

import re
from collections.abc import Container

from napari_seg.errors import StoreError, one_line
from napari_seg.formats.archive import path_inside

MAX_FILES = 20_000
"""Limit of the number of files in a bundle; published ones have up to 50."""

MAX_BYTES = 2**36
"""Size limit of a bundle: 64 GiB."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that stand for devices on Windows, whatever their ending."""

MAX_PATH = 200
"""Length limit of the path of a file in a bundle, in characters."""


def check_name(name: str) -> None:
    """Check that a path stays inside a bundle's folder, and that every file system takes it as it is.

    Raises:
        StoreError: `store.unsafe`.
    """
    is_portable = name.isprintable() and not re.search(r'[<>:"|?*\\]', name) and len(name) <= MAX_PATH
    is_portable &= not any(_RESERVED.fullmatch(part) or part.endswith((".", " ")) for part in name.split("/"))
    if path_inside(name) is None or not is_portable:
        text = f"it names a file {one_line(name, 100)!r}, which leads out of its folder or is no name on every system"
        raise StoreError("store.unsafe", f"{text}; do not trust it")


def is_spare(name: str, others: Container[str]) -> bool:
    """Return whether a file is TorchScript (which is code) of weights that are there in a plain form too."""
    return name.endswith(".ts") and name.removesuffix("ts") + "pt" in others


def too_large(name: str) -> StoreError:
    """Return the error for a bundle beyond the limits."""
    text = f"{name} holds more than {MAX_FILES} files or {MAX_BYTES // 2**30} GiB, or is packed far too densely"
    return StoreError("store.too_large", f"{text}; expected a bundle; do not trust it")
