"""Licences of models: read them, name their class, and remember which ones the user accepted."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from napari_seg.bundles.places import store_root
from napari_seg.errors import one_line
from napari_seg.formats.atomic import atomic_write

LicenceKind = Literal["open", "non-commercial", "research", "unknown"]

MAX_LICENCE_BYTES = 2**18
"""Size limit of a licence file; a longer one is cut."""

_NAMES = (
    (r"apache license\W+version 2", "Apache-2.0"),
    (r"mit license", "MIT"),
    (r"attribution[- ]noncommercial[- ]sharealike 4\.0|cc[- ]by[- ]nc[- ]sa\b", "CC-BY-NC-SA"),
    (r"attribution[- ]noncommercial 4\.0|cc[- ]by[- ]nc\b(?![- ]sa)", "CC-BY-NC"),
    (r"attribution[- ]sharealike 4\.0|cc[- ]by[- ]sa\b", "CC-BY-SA"),
    (r"creative commons attribution 4\.0|cc[- ]by\b(?![- ](nc|sa))", "CC-BY"),
    (r"redistribution and use in source and binary forms", "BSD"),
    (r"gnu (affero |lesser )?general public license", "GPL"),
    (r"mozilla public license", "MPL-2.0"),
)
"""What a licence text holds, and the name of the licence."""


@dataclass(frozen=True)
class Licence:
    """What a user accepts before the weights of a model are downloaded.

    Attributes:
        model: name of the model.
        name: short name, such as "Apache-2.0"; "" if unknown.
        kind: class of the licence.
        text: the licence files of the model; "" if they can't be read before the download.
    """

    model: str
    name: str = ""
    kind: LicenceKind = "unknown"
    text: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is accepted."""
        return hashlib.sha256("\0".join((self.name, self.kind, self.text)).encode()).hexdigest()


def is_licence_file(path: str) -> bool:
    """Return whether a file of a bundle, given relative to its root with "/", holds a licence."""
    folder, _, name = path.lower().rpartition("/")
    if folder == "docs":
        return "licen" in name and name.endswith((".txt", ".md"))
    return not folder and name.startswith(("license", "licence", "copying", "notice"))


def kind_of(text: str) -> LicenceKind:
    """Return the class of a licence text; "unknown" if nothing in it is recognised."""
    lower = " ".join(text.lower().split())
    if re.search(r"non-? ?commercial|cc[- ]by[- ]nc", lower):
        return "non-commercial"
    if re.search(r"(research|academic)( and \w+)? (use|purposes?) only|only for (\w+ )?research", lower):
        return "research"
    return "open" if names_in(text) else "unknown"


def name_of(text: str) -> str:
    """Return the name of a licence text: the licences that it holds, else its title; "" if it has none."""
    names = names_in(text)
    if not names:
        title = text.strip().partition("\n")[0].strip()
        return one_line(title, 100) if re.search(r"licen[cs]e", title, re.IGNORECASE) else ""
    is_limited = kind_of(text) != "open" and not any("-NC" in name for name in names)
    return " and ".join(names) + (", with more terms" if is_limited else "")


def names_in(text: str) -> list[str]:
    """Return the short names of the licences that a text holds."""
    lower = " ".join(text.lower().split())
    return [name for pattern, name in _NAMES if re.search(pattern, lower)]


def read_licence(root: Path, model: str) -> Licence:
    """Return the licence in a bundle's folder."""
    texts: dict[str, bytes] = {}
    for path in sorted([*root.iterdir(), *(root / "docs").glob("*")]):
        relative = path.relative_to(root).as_posix()
        if is_licence_file(relative) and path.is_file():
            with path.open("rb") as file:
                texts[relative] = file.read(MAX_LICENCE_BYTES)
    return licence_of(model, texts)


def licence_of(model: str, files: dict[str, bytes]) -> Licence:
    """Return the licence in the licence files of a bundle: its class is not that of its training data.

    Args:
        model: name of the model.
        files: content of the files, by their paths in the bundle.
    """
    texts = {name: content.decode("utf-8", "replace").strip() for name, content in sorted(files.items())}
    own = "\n\n".join(text for name, text in texts.items() if "/" not in name)
    whole = "\n\n".join(f"{name}:\n{text}" for name, text in texts.items())
    return Licence(model, name_of(own), kind_of(own), whole)


def accepted_at(licence: Licence) -> str:
    """Return when the user accepted this licence of this model, as a date of ISO 8601; "" if never."""
    return _accepted().get(licence.model, {}).get(licence.digest, "")


def remember_acceptance(licence: Licence) -> str:
    """Note that the user accepted a licence, and return the date.

    Raises:
        OSError: the note could not be written.
    """
    accepted = _accepted()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    accepted.setdefault(licence.model, {})[licence.digest] = now
    store_root().mkdir(parents=True, exist_ok=True)
    atomic_write(_file(), json.dumps(accepted, indent=2))
    return now


def _file() -> Path:
    return store_root() / "licences.json"


def _accepted() -> dict[str, dict[str, str]]:
    try:
        noted = json.loads(_file().read_bytes())
    except (OSError, ValueError, RecursionError):  # none yet; of a damaged file, the user is asked again
        return {}
    if not isinstance(noted, dict):
        return {}
    return {model: dates for model, dates in noted.items() if isinstance(dates, dict)}
