"""Weights of TotalSegmentator's tasks in the store: fetched from its releases, verified and removed.

    <store>/totalsegmentator/DatasetNNN_.../    a model, as the release has it
    <store>/totalsegmentator/record.json        which tasks were installed, and the digests of their models

A model serves several tasks; it is removed with the last one. No checksums are published, so the SHA-256 of a zip is
noted at its first download, and a later download must have the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_seg.bundles.nnunet.folder import has_weights
from napari_seg.bundles.store.download import Digest, RemoteFile, download
from napari_seg.bundles.store.fetch import unzip
from napari_seg.bundles.store.folders import (
    Damage,
    damages,
    delete,
    delete_kept,
    digests_of,
    locked,
    move,
    parts_folder,
    writing,
)
from napari_seg.bundles.store.licence import AcceptLicence, Licence, LicenceKind, require_acceptance
from napari_seg.bundles.totalsegmentator.table import (
    Weights,
    licensed_download,
    note_of,
    parts_needed,
    task_of,
    tasks,
    weights_of,
)
from napari_seg.bundles.totalsegmentator.task import PREFIX, Part, Task
from napari_seg.bundles.totalsegmentator.weights import own_folder, training_folder
from napari_seg.errors import DownloadError, InputError, StoreError
from napari_seg.formats.atomic import atomic_write
from napari_seg.progress import Progress

_ADDRESS = "https://github.com/wasserth/TotalSegmentator"
_LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0",
}


@dataclass
class TaskRecord:
    """Record of the installed tasks.

    Attributes:
        tasks: name of a task -> when it was installed and when its licence was accepted, as dates of ISO 8601.
        archives: folder of a model -> SHA-256 of its zip; kept when the model is removed.
        weights: folder of a model -> SHA-256 of each file, by its path relative to that folder.
    """

    tasks: dict[str, dict[str, str]] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    weights: dict[str, dict[str, str]] = field(default_factory=dict)


def add_task(
    name: str, *, accept_licence: AcceptLicence, progress: Progress, replace: bool = False, offline: bool = False
) -> Task:
    """Fetch the models that a task needs and that are not on this machine.

    If the work is stopped, what was fetched is kept, and the next call goes on from there.

    Args:
        name: such as "totalsegmentator:total".
        accept_licence: called before the first byte is downloaded, unless the user has accepted this licence before.
        progress: called with the bytes done and in all (0 if unknown); it may raise `Cancelled`.
        replace: fetch the models in the store again.
        offline: do not download.

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
        StoreError: `store.refused`, its weights need a licence; `store.licence`; `store.busy`; `store.no_bundle`, the
            zip holds another model; `store.unsafe`; `store.too_large`; `store.offline`.
        DownloadError: see `download.download`.
        InputError: a zip is damaged, or not to be trusted (`archive.*`, `file.*`).
        OutputError: `output.disk_full`, `output.not_written`.
    """
    task = task_of(name)
    missing = _missing(task, replace)
    if task.licence_kind == "licensed" and missing:
        folders = ", ".join(weights.folder for weights in missing)
        text = f"the weights of TotalSegmentator's task {task.name!r} need a licence ({task.licence})"
        text += f"; with one, {licensed_download(task)}; or copy {folders}"
        raise StoreError("store.refused", f"{text} into {own_folder()}")
    if offline and missing:
        text = f"{PREFIX}{task.name} needs downloads of {len(missing)} models, which --offline excludes"
        raise StoreError("store.offline", f"{text}; unzip {', '.join(one.url for one in missing)} in {own_folder()}")
    accepted = require_acceptance(licence_of(task), accept_licence, PREFIX + task.name) if missing else ""
    part = parts_folder() / "totalsegmentator"
    with writing(own_folder()):
        part.mkdir(parents=True, exist_ok=True)
        with locked(part, PREFIX + task.name):
            total, done = _total_bytes(missing), 0
            for weights in missing:
                base = done

                def report(fetched: int, _: int, base: int = base) -> None:
                    progress("downloading", base + fetched, max(total, base + fetched) if total else 0)

                needed = [one for one in parts_needed(task) if one.number == weights.number]
                done += _fetch(weights, needed, part, report)
            record = read_task_record()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            record.tasks[task.name] = {"installed": now, "licence_accepted": accepted}
            _write(record)
            shutil.rmtree(part, ignore_errors=True)
    return task


def remove_task(name: str) -> int:
    """Remove a task and the models in the store that no other installed task needs; return the freed bytes.

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
        StoreError: `store.unknown`, it is not installed in the store; `store.busy`.
        OutputError: `output.not_written`, a folder can't be removed.
    """
    task = task_of(name)
    with writing(own_folder()):
        parts_folder().mkdir(parents=True, exist_ok=True)
        with locked(parts_folder() / "totalsegmentator", PREFIX + task.name):
            record = read_task_record()
            if task.name not in record.tasks:
                raise _unknown(task, [one for one in record.tasks if _shares(task, task_of(one))])
            del record.tasks[task.name]
            kept = {part.number for one in record.tasks for part in parts_needed(task_of(one))}
            freed = 0
            for folder in _folders_of(task):
                # what was copied there by hand stays
                if int(folder.name[7:10]) not in kept and folder.name in record.weights:
                    freed += delete_kept(record.weights.pop(folder.name).values()) + delete(folder)
            _write(record)
    return freed


def verify_task(name: str) -> list[Damage]:
    """Return the files of a task's models in the store that differ from those that were fetched.

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
        StoreError: `store.unknown`, none of its models is in the store; `store.record`, nothing is noted of one.
    """
    task, record = task_of(name), read_task_record()
    noted = {weights_of(part.number).folder for part in parts_needed(task)} & set(record.weights)
    folders = {folder.name: folder for folder in _folders_of(task)}
    if not folders and not noted:
        raise _unknown(task)
    if unnoted := sorted(set(folders) - noted):
        text = f"there is no record of the files of {', '.join(unnoted)}, which were not fetched by napari-seg"
        raise StoreError("store.record", text)
    found = []
    for folder in sorted(noted):
        now = digests_of(folders[folder]) if folder in folders else {}
        found += [Damage(f"{folder}/{one.file}", one.fault) for one in damages(record.weights[folder], now)]
    return found


def licence_of(task: Task) -> Licence:
    """Return the licence of a task's weights; that of the open tasks is one licence, accepted once."""
    kind: LicenceKind = "non-commercial" if task.licence_kind == "non-commercial" else "open"
    model = "TotalSegmentator" if kind == "open" else f"TotalSegmentator {task.name}"
    text = f"Weights of {model} (Wasserthal et al., {_ADDRESS})\nLicence: {task.licence}"
    lines = (text, _LICENCES.get(task.licence, ""), note_of(task) if kind != "open" else "")
    return Licence(model, task.licence, kind, "\n".join(filter(None, lines)))


def read_task_record() -> TaskRecord:
    """Return what is noted of the installed tasks; an empty record if that can't be read."""
    try:
        noted: Any = json.loads(_record_file().read_bytes())
        return TaskRecord(
            tasks={str(name): dict(one) for name, one in noted["tasks"].items() if name in tasks()},
            archives={str(name): str(digest) for name, digest in noted["archives"].items()},
            weights={str(name): {str(k): str(v) for k, v in one.items()} for name, one in noted["weights"].items()},
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return TaskRecord()


def _missing(task: Task, replace: bool) -> list[Weights]:
    """Return the models that have to be fetched."""
    numbers = {}
    for part in parts_needed(task):
        folder = training_folder(part)
        is_own = folder is not None and folder.is_relative_to(own_folder())
        if folder is None or (replace and is_own):
            numbers[part.number] = weights_of(part.number)
    return list(numbers.values())


def _total_bytes(missing: list[Weights]) -> int:
    """Return the bytes of all zips; 0 if one is unknown."""
    sizes = [weights.size_bytes for weights in missing]
    return sum(size or 0 for size in sizes) if all(sizes) else 0


def _fetch(weights: Weights, needed: list[Part], part: Path, report: Any) -> int:
    """Fetch a model into the store, and return the size of its zip."""
    record = read_task_record()
    partials, files, archive = part / "partial", part / "files", part / f"{weights.folder}.zip"
    partials.mkdir(exist_ok=True)
    shutil.rmtree(files, ignore_errors=True)
    noted = record.archives.get(weights.folder)
    try:
        download(RemoteFile(weights.url, digest=Digest("sha256", noted) if noted else None), archive, partials, report)
    except DownloadError as error:
        if error.code != "download.no_network":
            raise
        text = f"or, where there is a connection, download {weights.url}, and unzip it here in {own_folder()}"
        raise DownloadError(error.code, f"{error.message}; {text}") from error
    size = archive.stat().st_size
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        unzip(archive, files)
        root = files / weights.folder
        _remove_noise(root)
        for one in needed:
            training = f"{one.trainer}__{one.plans}__{one.configuration}"
            if not (root / training / "plans.json").is_file() or not has_weights(root / training, one.folds):
                text = f"{archive.name} holds no {weights.folder}/{training} with plans.json and weights"
                raise StoreError("store.no_bundle", f"{text}; it is another model than expected")
    except (StoreError, InputError):  # what was fetched is of no use
        archive.unlink(missing_ok=True)
        raise
    digests = digests_of(root)
    own_folder().mkdir(parents=True, exist_ok=True)
    move(root, own_folder() / weights.folder, part)
    record.archives[weights.folder], record.weights[weights.folder] = digest, digests
    _write(record)
    archive.unlink()
    return size


def _remove_noise(root: Path) -> None:
    """Remove what macOS adds to zips."""
    for path in sorted(root.rglob("*")):
        if path.name == "__MACOSX" and path.is_dir():
            shutil.rmtree(path)
        elif path.name == ".DS_Store" or path.name.startswith("._"):
            with suppress(OSError):
                path.unlink()


def _folders_of(task: Task) -> list[Path]:
    """Return the folders in the store of all models that a task needs."""
    numbers = dict.fromkeys(part.number for part in parts_needed(task))
    folders = [own_folder() / weights_of(number).folder for number in numbers]
    return [folder for folder in folders if folder.is_dir()]


def _shares(task: Task, other: Task) -> bool:
    """Return whether two tasks need a model together."""
    return bool({part.number for part in parts_needed(task)} & {part.number for part in parts_needed(other)})


def _unknown(task: Task, others: list[str] | None = None) -> StoreError:
    if others:
        names = ", ".join(PREFIX + one for one in others)
        text = f"{PREFIX}{task.name} was not installed by itself; its models belong to {names}"
        return StoreError("store.unknown", f"{text}, and are removed with the last of them")
    text = f"no model of {PREFIX}{task.name} is installed in {own_folder()}"
    return StoreError("store.unknown", f"{text}; napari-seg changes no other folder")


def _record_file() -> Path:
    return own_folder() / "record.json"


def _write(record: TaskRecord) -> None:
    own_folder().mkdir(parents=True, exist_ok=True)
    atomic_write(_record_file(), json.dumps(asdict(record), indent=2))
