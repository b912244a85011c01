"""The store: models installed on this machine, one folder each; everything but `add` works without a network.

    <store>/<name>/                 the bundle, as `spec.py` reads it and as its source has it
    <store>/.records/<name>.json    its record: source, revision, digests, licence, date
    <store>/.part/<name>-<key>/     what a stopped `add` has fetched so far; the next one goes on from there
    <store>/licences.json           which licences the user accepted

A model moves into place by one rename, after everything about it is verified. Nothing of a bundle runs here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.store.fetch import fetch
from napari_seg.bundles.store.licence import Licence, accepted_at, remember_acceptance
from napari_seg.bundles.store.sources import Source, parse_source, safe_name
from napari_seg.bundles.trust import forget
from napari_seg.errors import BundleError, InputError, StoreError, one_line
from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.progress import Progress, ignore_progress

AcceptLicence = Callable[[Licence], bool]
"""Called with a licence that the user has not accepted yet; returns whether the user accepts it."""


@dataclass(frozen=True)
class Record:
    """Record of an installed model.

    Attributes:
        source: what `add` was given, in full.
        revision: version by which the source names the files; "" if it has none.
        installed: date of ISO 8601.
        licence: name of the licence; "" if unknown.
        licence_kind: its class.
        licence_accepted: when the user accepted it; "" if there was nothing to accept.
        digests: SHA-256 of each file, by its path relative to the model's folder.
    """

    source: str = ""
    revision: str = ""
    installed: str = ""
    licence: str = ""
    licence_kind: str = "unknown"
    licence_accepted: str = ""
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Damage:
    """A file of an installed model that is not what was installed.

    Attributes:
        file: path relative to the model's folder.
        fault: "missing", "changed" or "added".
    """

    file: str
    fault: str


def installed() -> list[Bundle]:
    """Return the installed models, in the order of their names; unreadable ones are left out."""
    bundles = []
    for root in _roots():
        with suppress(BundleError):  # `find_bundles` reports it
            bundles.append(read_bundle(root))
    return bundles


def add(
    source: str | Path,
    *,
    accept_licence: AcceptLicence,
    progress: Progress = ignore_progress,
    name: str | None = None,
    replace: bool = False,
    offline: bool = False,
) -> Bundle:
    """Install a model.

    If the work is stopped, what was fetched is kept, and the next call goes on from there.

    Args:
        source: what to install, see `sources.py`.
        accept_licence: called before the first byte of weights is downloaded, and again if the download holds
            another licence than was shown; not if the user has accepted this licence of this model before.
        progress: called with the bytes done and in all (0 if unknown); it may raise `Cancelled`.
        name: name of the model; by default the source's.
        replace: put it in the place of an installed model of the same name.
        offline: do not download the weights that a bundle on this machine names but lacks (`large_files.yml`).

    Raises:
        StoreError: `store.exists`, there is a model of this name; `store.busy`, another program installs it now;
            `store.licence`, the licence was not accepted; or see `fetch.fetch`.
        DownloadError: see `download.download`.
        InputError: a zip is damaged, or not to be trusted (`archive.*`, `file.*`).
        BundleError: `bundle.metadata`, it can't be read.
        OutputError: `output.disk_full`, `output.not_written`: the store can't be written.
    """
    origin = parse_source(source)
    name = safe_name(name or origin.name)
    target = store_root() / name
    if target.exists() and not replace:
        text = f"a model named {name!r} is installed; remove it first, give --replace, or another name with --name"
        raise StoreError("store.exists", text)
    accepted = ""

    def ask(licence: Licence) -> None:
        nonlocal accepted
        before = accepted_at(licence)
        if not before and not accept_licence(licence):
            text = f"the licence of {name!r} was not accepted, so it was not installed"
            raise StoreError("store.licence", f"{text}; in a script, --accept-licence accepts it")
        accepted = before or remember_acceptance(licence)

    with _writing(target), _part_folder(origin, name) as part:
        try:
            root, licence, revision = fetch(origin, part, ask, progress, offline=offline)
            read_bundle(root)
        except (StoreError, InputError, BundleError):  # what was fetched is of no use, unlike after an interruption
            shutil.rmtree(part, ignore_errors=True)
            raise
        record = Record(
            source=str(origin),
            revision=revision,
            installed=datetime.now(UTC).isoformat(timespec="seconds"),
            licence=licence.name,
            licence_kind=licence.kind,
            licence_accepted=accepted,
            digests=_digests(root),
        )
        _move(root, target, part)
        _record_file(name).parent.mkdir(exist_ok=True)
        atomic_write(_record_file(name), json.dumps(asdict(record), indent=2))
        shutil.rmtree(part, ignore_errors=True)
    return read_bundle(target)


def remove(name: str) -> int:
    """Remove an installed model and what a stopped download of it left, and return the freed bytes.

    The consent to its code is forgotten.

    Raises:
        StoreError: `store.unknown`, there is no such model; `store.busy`, another program installs it now.
        OutputError: `output.not_written`, its folder can't be removed.
    """
    pattern = re.compile(re.escape(name) + "-[0-9a-f]{12}")
    parts = [path for path in _parts().glob("*/") if pattern.fullmatch(path.name)]
    roots = [root for root in _roots() if root.name == name]
    if not roots + parts:
        raise _unknown(name)
    freed = 0
    with _writing(store_root() / name):
        for part in parts:
            with _locked(part, name):
                freed += _delete(part)
        for root in roots:
            forget(root)
            freed += _delete(root)
        _record_file(name).unlink(missing_ok=True)
    return freed


def _delete(folder: Path) -> int:
    """Remove a folder, and return its size; at no time does its name stand for a half of it."""
    if folder.is_symlink():  # someone's own folder, linked into the store, stays
        folder.unlink()
        return 0
    size = _size(folder)
    hidden = _parts() / f"removed-{uuid4().hex}"
    hidden.parent.mkdir(exist_ok=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)
    return size


def verify(name: str) -> list[Damage]:
    """Return the files of an installed model that differ from those that were installed.

    Raises:
        StoreError: `store.unknown`, there is no such model; `store.record`, nothing is noted of it.
    """
    root = _root_of(name)
    noted = read_record(name).digests
    if not noted:
        text = f"there is no record of the files of {name!r}; remove the model and add it again"
        raise StoreError("store.record", text)
    found = _digests(root)
    return [
        Damage(file, "missing" if file not in found else "added" if file not in noted else "changed")
        for file in sorted({*noted, *found})
        if noted.get(file) != found.get(file)
    ]


def read_record(name: str) -> Record:
    """Return what is noted of an installed model; an empty record if that can't be read.

    Raises:
        StoreError: `store.unknown`, there is no such model.
    """
    try:
        noted: Any = json.loads(_record_file(_root_of(name).name).read_bytes())
        texts = {key: one_line(noted.get(key, ""), 2000) for key in Record.__dataclass_fields__ if key != "digests"}
        return Record(**texts, digests={str(file): str(digest) for file, digest in noted["digests"].items()})
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return Record()


def disk_use() -> dict[str, int]:
    """Return the bytes on disk of each installed model, and of what stopped downloads left as ".part"."""
    use = {root.name: _size(root) for root in _roots()}
    left = _size(_parts())
    return use | ({".part": left} if left else {})


def _roots() -> list[Path]:
    try:
        folders = sorted(path for path in store_root().iterdir() if not path.name.startswith("."))
    except OSError:  # nothing was installed yet
        return []
    return [folder for folder in folders if (folder / METADATA).is_file() or _record_file(folder.name).is_file()]


def _root_of(name: str) -> Path:
    for root in _roots():
        if root.name == name:
            return root
    raise _unknown(name)


def _unknown(name: str) -> StoreError:
    text = f"no model named {one_line(name, 100)!r} is installed; 'napari-seg models list' lists the installed ones"
    return StoreError("store.unknown", text)


def _record_file(name: str) -> Path:
    return store_root() / ".records" / f"{name}.json"


def _parts() -> Path:
    return store_root() / ".part"


@contextmanager
def _part_folder(source: Source, name: str) -> Iterator[Path]:
    """Yield the folder for what is fetched of a source; no other program uses it meanwhile."""
    key = hashlib.sha256("\0".join((source.kind, source.place, source.version)).encode()).hexdigest()[:12]
    part = _parts() / f"{name}-{key}"
    part.mkdir(parents=True, exist_ok=True)
    with _locked(part, name):
        yield part


@contextmanager
def _locked(part: Path, name: str) -> Iterator[None]:
    lock = FileLock(part.with_name(f"{part.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        text = f"another program is installing {name!r}; wait for it"
        raise StoreError("store.busy", text) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(str(error.filename or target), error) from error


def _move(root: Path, target: Path, part: Path) -> None:
    """Rename a complete model into its place; a model that is there moves away first."""
    replaced = part / f"replaced-{uuid4().hex}"
    if target.exists():
        target.rename(replaced)
    try:
        root.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise


def _digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, but for what Python compiles."""
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and "__pycache__" not in relative.parts:
            with path.open("rb") as file:
                found[relative.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _size(folder: Path) -> int:
    return sum(os.lstat(path).st_size for path in folder.rglob("*") if not path.is_dir())
