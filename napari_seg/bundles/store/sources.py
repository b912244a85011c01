"""Sources of models: how one is named.

    FOLDER, FILE.zip           on this machine
    https://.../FILE.zip       a zip on the web
    hf:OWNER/NAME[@REVISION]   a repository of Hugging Face, such as hf:MONAI/spleen_ct_segmentation
    ngc:NAME[@VERSION]         a zip of the MONAI Model Zoo on NVIDIA's NGC
    NAME                       a model of the catalogue

`fetch.py` brings the files.
"""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from napari_seg.bundles.store.catalogue import entry_of
from napari_seg.bundles.store.download import shown_url
from napari_seg.errors import StoreError, one_line

SourceKind = Literal["folder", "zip", "url", "hf", "ngc"]

_PATTERNS: dict[SourceKind, str] = {
    "hf": r"(?:hf:|https://huggingface\.co/)(?P<place>[\w.-]+/[\w.-]+)(?:(?:@|/tree/)(?P<version>[\w./-]+))?/?",
    "ngc": r"ngc:(?P<place>[\w.-]+)(?:@(?P<version>[\w.-]+))?",
    "url": r"https?://\S+",
}


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        kind: how its files are fetched.
        place: path, address, or name in the repository.
        name: name of the model, by which it is installed and chosen.
        version: requested revision or version; "" for the newest, or the one of the catalogue.
    """

    kind: SourceKind
    place: str
    name: str
    version: str = ""

    def __str__(self) -> str:
        """Return the source as it was named, an address without its query and account, which may be secret."""
        prefix = f"{self.kind}:" if self.kind in ("hf", "ngc") else ""
        place = shown_url(self.place) if self.kind == "url" else self.place
        return f"{prefix}{place}" + (f"@{self.version}" if self.version else "")


def parse_source(text: str | Path) -> Source:
    """Return the source that a text names.

    Raises:
        StoreError: `store.source`, it names none; `store.name`, its name can't be a folder's; `store.refused`, it names
            a model of the catalogue that can't be used.
    """
    if isinstance(text, str):
        for kind, pattern in _PATTERNS.items():
            if found := re.fullmatch(pattern, text):
                return _remote(kind, found)
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return Source("folder", str(path.resolve()), safe_name(path.resolve().name))
        if path.is_file() and zipfile.is_zipfile(path):
            return Source("zip", str(path.resolve()), _name_of_zip(path.name))
    except (OSError, ValueError):  # a name that no file system takes
        pass
    if entry := entry_of(str(text)):
        if entry.refused:
            advice = f"to look at it nevertheless, add {entry.source}"
            raise StoreError("store.refused", f"{entry.name} can't be used: {entry.reason}; {advice}")
        return parse_source(entry.source)
    raise StoreError(
        "store.source",
        f"{_why_none(text)}; expected a bundle's folder or zip, the address of a zip, hf:OWNER/NAME, ngc:NAME, or a "
        "name that 'napari-seg models search' lists",
    )


def _why_none(text: str | Path) -> str:
    shown, path = one_line(text, 200), Path(text).expanduser()
    with suppress(OSError, ValueError):  # a name that no file system takes
        if path.is_file():
            return f"{shown!r} is no zip archive"
        is_path = len(path.parts) > 1 or path.suffix.lower() == ".zip" or isinstance(text, Path)
        if is_path and not path.exists() and not re.match(r"\w{2,}:", str(text)):
            return f"{shown!r} does not exist"
    return f"found nothing to install at {shown!r}"


def _remote(kind: SourceKind, found: re.Match[str]) -> Source:
    groups = {"version": "", **found.groupdict()}
    if kind == "url":
        return Source("url", found[0], _name_of_zip(unquote(urlsplit(found[0]).path.rpartition("/")[2])))
    return Source(kind, groups["place"], safe_name(groups["place"].rpartition("/")[2]), groups["version"] or "")


def _name_of_zip(file: str) -> str:
    """Return the name of the model in a zip: that of the zip, without a version."""
    return safe_name(re.sub(r"(_v[\d.]+)?(\.zip)?$", "", file, flags=re.IGNORECASE))


def safe_name(name: str) -> str:
    """Return a name as every file system takes it: letters, digits, ".", "_" and "-".

    Raises:
        StoreError: `store.name`, nothing is left of it, or some system reserves it.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:100].rstrip("._-")
    if not safe or re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe, re.IGNORECASE):
        text = f"a model can't be named {one_line(name, 100)!r}; expected letters and digits; give another with --name"
        raise StoreError("store.name", text)
    return safe
