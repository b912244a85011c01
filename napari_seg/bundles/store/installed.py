"""The store: models installed on this machine, one folder each; everything but `add` works without a network.

    <store>/<name>/                 the bundle, as `spec.py` reads it and as its source has it
    <store>/.records/<name>.json    its record: source, revision, digests, licence, date
    <store>/.part/<name>-<key>/     what a stopped `add` has fetched so far; the next one goes on from there
    <store>/.weights/               weights of checkpoints of nnU-Net, kept as tensors alone
    <store>/licences.json           which licences the user accepted

A model moves into place by one rename, after everything about it is verified. Nothing of a bundle runs here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_seg.bundles.nnunet.folder import find_trainings
from napari_seg.bundles.places import kept_folder, store_root
from napari_seg.bundles.read import read_bundle, read_bundles
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.store.fetch import fetch
from napari_seg.bundles.store.folders import (
    Damage,
    damages,
    delete,
    delete_kept,
    digests_of,
    locked,
    move,
    parts_folder,
    size_of,
    writing,
)
from napari_seg.bundles.store.licence import AcceptLicence, Licence, require_acceptance
from napari_seg.bundles.store.sources import Source, parse_source, safe_name
from napari_seg.bundles.store.tasks import add_task, remove_task, verify_task
from napari_seg.bundles.totalsegmentator.table import is_task_name
from napari_seg.bundles.totalsegmentator.task import PREFIX, TaskBundle
from napari_seg.bundles.totalsegmentator.weights import own_folder
from napari_seg.bundles.trust import forget
from napari_seg.errors import BundleError, InputError, StoreError, one_line
from napari_seg.formats.atomic import atomic_write
from napari_seg.progress import Progress, ignore_progress


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


def installed() -> list[Bundle]:
    """Return the installed models, in the order of their names; unreadable ones are left out."""
    bundles = []
    for root in _roots():
        with suppress(BundleError):  # `find_bundles` reports it
            bundles += read_bundles(root)
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
    if isinstance(source, str) and is_task_name(source):
        add_task(source, accept_licence=accept_licence, progress=progress, replace=replace, offline=offline)
        return read_bundle(source)
    origin = parse_source(source)
    name = safe_name(name or origin.name)
    target = store_root() / name
    if name.casefold() == own_folder().name:  # some file systems do not distinguish case
        text = f"{name!r} is the store's folder for the models of TotalSegmentator; give another name with --name"
        raise StoreError("store.name", text)
    if target.exists() and not replace:
        text = f"a model named {name!r} is installed; remove it first, give --replace, or another name with --name"
        raise StoreError("store.exists", text)
    accepted = ""

    def ask(licence: Licence) -> None:
        nonlocal accepted
        accepted = require_acceptance(licence, accept_licence, name)

    with writing(target), _part_folder(origin, name) as part:
        try:
            root, licence, revision = fetch(origin, part, ask, progress, offline=offline)
            read_bundles(root)
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
            digests=digests_of(root),
        )
        move(root, target, part)
        _record_file(name).parent.mkdir(exist_ok=True)
        atomic_write(_record_file(name), json.dumps(asdict(record), indent=2))
        shutil.rmtree(part, ignore_errors=True)
    return read_bundles(target)[0]


def installed_as(bundle: Bundle) -> str:
    """Return the name by which an installed model is chosen, such as "spleen"; "" if it is not in the store.

    Where several models of nnU-Net were installed as one, a choice follows, such as "hippocampus:3d_fullres".
    """
    store = store_root().resolve()
    root = bundle.root.resolve()
    if bundle.kind == "totalsegmentator" or root == store or not root.is_relative_to(store):
        return ""
    name = root.relative_to(store).parts[0]
    if name.startswith(".") or store / name == own_folder():
        return ""
    neighbours = find_trainings(store / name)
    if bundle.kind != "nnunet" or len(neighbours) < 2:
        return name
    configuration = root.name.rpartition("__")[2]
    is_only = sum(one.name.rpartition("__")[2] == configuration for one in neighbours) == 1
    return f"{name}:{configuration if is_only else root.name}"


def task_name(bundle: TaskBundle) -> str:
    """Return the text by which a task is chosen, such as "totalsegmentator:total+liver_round1".

    Improved models that are not installed are named by their folders.
    """
    models = (installed_as(one.bundle) or str(one.root) for one in bundle.improved)
    return "+".join((PREFIX + bundle.task.name, *models))


def remove(name: str) -> int:
    """Remove an installed model and what a stopped download of it left, and return the freed bytes.

    The consent to its code is forgotten.

    Raises:
        StoreError: `store.unknown`, there is no such model; `store.busy`, another program installs it now.
        OutputError: `output.not_written`, its folder can't be removed.
    """
    if is_task_name(name):
        return remove_task(name)
    pattern = re.compile(re.escape(name) + "-[0-9a-f]{12}")
    parts = [path for path in parts_folder().glob("*/") if pattern.fullmatch(path.name)]
    roots = [root for root in _roots() if root.name == name]
    if not roots + parts:
        raise _unknown(name)
    freed = 0
    with writing(store_root() / name):
        for part in parts:
            with locked(part, name):
                freed += delete(part)
        for root in roots:
            freed += delete_kept(read_record(name).digests.values())
            forget(root)
            freed += delete(root)
        _record_file(name).unlink(missing_ok=True)
    return freed


def verify(name: str) -> list[Damage]:
    """Return the files of an installed model that differ from those that were installed.

    Raises:
        StoreError: `store.unknown`, there is no such model; `store.record`, nothing is noted of it.
    """
    if is_task_name(name):
        return verify_task(name)
    root = _root_of(name)
    noted = read_record(name).digests
    if not noted:
        text = f"there is no record of the files of {name!r}; remove the model and add it again"
        raise StoreError("store.record", text)
    return damages(noted, digests_of(root))


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
    """Return the bytes on disk of each installed model, and of what else the store holds.

    The models of TotalSegmentator's tasks, which share some, count together as "totalsegmentator", what stopped
    downloads left as ".part", and the weights that were kept of nnU-Net's checkpoints as ".weights".
    """
    use = {root.name: size_of(root) for root in _roots()}
    others = {path.name: size_of(path) for path in (own_folder(), parts_folder(), kept_folder())}
    return use | {name: size for name, size in others.items() if size}


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
    whole, _, choice = name.partition(":")
    if choice and any(root.name == whole for root in _roots()):
        text = f"{one_line(name, 100)!r} is one model of {whole!r}, which is kept as a whole; give {whole!r} alone"
    return StoreError("store.unknown", text)


def _record_file(name: str) -> Path:
    return store_root() / ".records" / f"{name}.json"


@contextmanager
def _part_folder(source: Source, name: str) -> Iterator[Path]:
    """Yield the folder for what is fetched of a source; no other program uses it meanwhile."""
    key = hashlib.sha256("\0".join((source.kind, source.place, source.version)).encode()).hexdigest()[:12]
    part = parts_folder() / f"{name}-{key}"
    part.mkdir(parents=True, exist_ok=True)
    with locked(part, name):
        yield part
