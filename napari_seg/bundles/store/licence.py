"""Licences of models: read them, name their class, and remember which ones the user accepted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from napari_seg.bundles.nnunet.folder import is_training
from napari_seg.bundles.places import store_root
from napari_seg.errors import StoreError, one_line
from napari_seg.formats.atomic import atomic_write

LicenceKind = Literal["open", "non-commercial", "research", "unknown"]

_STRICTEST_FIRST: tuple[LicenceKind, ...] = ("non-commercial", "research", "unknown", "open")

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
"""Licence texts: the name and the class of a licence."""

_OPEN_TEXTS = frozenset(
    [
        "e87dea5078ce2faaea46d3475af18d30a5c0ac0f09425b60b3e0c6569f72f8d2",  # Apache-2.0
        "0cf21bdfd1964a97a8615e128534845826afbc887edc95aa5c925cbf64386b5c",  # MIT
        "a56fee4b2f66331ed54da4950ef9c9391453fd1490b4d8ea202bc29683bcbd30",  # BSD-2-Clause
        "9b83d3dee0616d07b82a272dd9bf5134a9f402b750f5ee6188458073b0a32ff2",  # BSD-3-Clause
        "efe73660e5476cf0368fc0fc143f624ff9d1b73c4484b14a9969dd20c5786821",  # GPL-2.0
        "a8cd54d6683aa630f0b8d05d56184ad91dc486756da2df61c94d3e4e8d5ecb68",  # GPL-3.0
        "4d55922bdeafabde164d75448bbfb0b474bf952bbb541325364010900acd9891",  # LGPL-2.1
        "aae2b222477171fb64e298e7965e768a9a6f85320646b266c94399ac029d42be",  # LGPL-3.0
        "f82071285728ca3ec7685ee9bc4acdae0b8267142a4d20b8f1805eabedb4a98a",  # MPL-2.0
    ]
)
"""SHA-256 of the words of open licences, without title and holder of the copyright."""

_TITLE = re.compile(r"(the )?(mit license( mit)?|bsd [23] clause( new or revised| simplified)? license) (?=.)")

_OPEN_NAME = re.compile(
    r"((released |licensed )?under )?(the )?"
    r"(apache license version 2( 0)?( january 2004)?|mit license|(creative commons attribution|cc by)( sharealike| sa)?"
    r"( 4 0)?( international)?( license)?|mozilla public license( version)?( 2 0)?"
    r"|gnu (affero |lesser )?general public license( version \d| v\d)?( or later)?)"
)
"""Text that is no more than the name of an open licence, in the words of `_words_of`."""

_HOLDER = re.compile(r"\W*copyright(\W*$|\W*(\(c\)|©|\d|\[yyyy))")

_TERM = re.compile(r"\b(no|not|only|use|permission|licen[cs]e)\b")
"""What a line says that does more than name who holds the copyright."""


@dataclass(frozen=True)
class Licence:
    """Licence that a user accepts before the weights of a model are downloaded.

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


AcceptLicence = Callable[[Licence], bool]
"""Called with a licence that the user has not accepted yet; returns whether the user accepts it."""


def is_licence_file(path: str) -> bool:
    """Return whether a file of a bundle, given relative to its root with "/", holds a licence."""
    folder, _, name = path.lower().rpartition("/")
    if folder == "docs":
        return "licen" in name and name.endswith((".txt", ".md"))
    return not folder and name.startswith(("license", "licence", "copying", "notice"))


def kind_of(text: str) -> LicenceKind:
    """Return the class of a licence text: open only if it is a known licence word by word, or no more than its name."""
    lower = " ".join(text.lower().split())
    if re.search(r"non-? ?commercial|cc[- ]by[- ]nc", lower):
        return "non-commercial"
    if re.search(r"(research|academic)( and \w+)? (use|purposes?) only|only for (\w+ )?research", lower):
        return "research"
    words = _words_of(text)
    body = hashlib.sha256(_TITLE.sub("", words).encode()).hexdigest()
    return "open" if body in _OPEN_TEXTS or _OPEN_NAME.fullmatch(words) else "unknown"


def _words_of(text: str) -> str:
    """Return the words of a licence text without the lines that only name who holds the copyright."""
    lines = [line for line in text.lower().splitlines() if not _HOLDER.match(line) or _TERM.search(line)]
    return " ".join(re.findall(r"[a-z0-9]+", " ".join(lines)))


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
    """Return the licence in a bundle's folder; that of a model of nnU-Net may lie with its data set or its zip."""
    texts: dict[str, bytes] = {}
    if is_training(root):
        # a parent that is no data set, such as a repository, has a licence of its own
        named = [root.parent] if re.match(r"Dataset\d{3}_", root.parent.name) else []
        above = [root, *named, *(one for one in root.parents if one.parent == store_root().resolve())]
        root = next((one for one in above if any(is_licence_file(path.name) for path in one.iterdir())), root)
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
    kinds = {kind_of(text) for name, text in texts.items() if "/" not in name} or {"unknown"}
    return Licence(model, name_of(own), min(kinds, key=_STRICTEST_FIRST.index), whole)


def accepted_at(licence: Licence) -> str:
    """Return when the user accepted this licence of this model, as a date of ISO 8601; "" if never."""
    return _accepted().get(licence.model, {}).get(licence.digest, "")


def require_acceptance(licence: Licence, accept: AcceptLicence, name: str) -> str:
    """Return when the user accepted a licence, as a date of ISO 8601; ask if that has not happened before.

    Args:
        licence: the licence.
        accept: shows it and asks.
        name: what is installed, for the user.

    Raises:
        StoreError: `store.licence`, it was not accepted.
    """
    before = accepted_at(licence)
    if not before and not accept(licence):
        text = f"the licence of {name!r} was not accepted, so it was not installed"
        raise StoreError("store.licence", f"{text}; in a script, --accept-licence accepts it")
    return before or remember_acceptance(licence)


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
