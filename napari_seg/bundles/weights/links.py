"""Addresses of the large files that a bundle leaves out, as it lists them in `large_files.yml`."""

from __future__ import annotations

from pathlib import Path

from napari_seg.bundles.config.read import read_config
from napari_seg.errors import one_line

LARGE_FILES = ("large_files.yml", "large_files.yaml")


def listing_of(root: Path) -> Path | None:
    """Return the list of a bundle's large files; None if it has none."""
    return next((root / name for name in LARGE_FILES if (root / name).is_file()), None)


def how_to_get(root: Path, name: str) -> str:
    """Return what a user does to get a missing file of a bundle, as text; nothing is downloaded.

    Args:
        root: the bundle's folder.
        name: path of the file in it.
    """
    listing = listing_of(root)
    if listing is None:
        return "train it first, or copy the file there"
    url = one_line(_links(listing).get(name, ""), 400)
    if not url:
        return f"its {listing.name} does not name this file; train it first, or copy the file there"
    return (
        f"{listing.name} names {url}: 'napari-seg models add SOURCE --replace' downloads it, where SOURCE is the "
        f"bundle's folder or zip; without a network, save it as {one_line(name, 200)} in SOURCE and add SOURCE again"
    )


def _links(listing: Path) -> dict[str, str]:
    try:
        entries = read_config(listing).get("large_files") or ()
        return {str(one["path"]): str(one["url"]) for one in entries}
    except Exception:  # a foreign file can hold anything; `models add` says what is wrong with it
        return {}
