"""State of the window *Models…*, without Qt: list, filter, install, check and remove models. Nothing of one runs here.

Files are read and written in jobs. Nothing opens a connection before the user downloads a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from psygnal import Signal

from napari_seg.errors import BundleError, listed
from napari_seg.plugin.job import NETWORK_WORKER, Job, Jobs
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.models.permission import Permission, permission_of
from napari_seg.plugin.models.rows import ModelRow, find_rows, key_of, size_text

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.bundles.store.folders import Damage
    from napari_seg.bundles.store.licence import Licence

SIZES = {0: "Any size", 50_000_000: "Up to 50 MB", 250_000_000: "Up to 250 MB", 1_000_000_000: "Up to 1 GB"}
"""Size limits in bytes that the window offers, with titles."""

Action = Literal["download", "check", "convert", "remove", "use"]
"""What the user can do with the selected model."""

_LICENCE_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ModelFilter:
    """Which models the list shows.

    Attributes:
        words: all of them occur in the name, the structures, the modality, the description, the data or the licence.
        licence_kind: class of licence; "" for all.
        way: a key of `WAYS`; "" for all.
        max_bytes: size limit; 0 for none. A model of unknown size passes.
        only_here: leave out models that are not on this machine.
    """

    words: str = ""
    licence_kind: str = ""
    way: str = ""
    max_bytes: int = 0
    only_here: bool = False

    def passes(self, row: ModelRow) -> bool:
        """Return whether the list shows a model."""
        texts = (row.name, row.title, row.finds, *row.structures, row.modality, row.description, row.data, row.licence)
        text = " ".join(texts).lower().replace("_", " ")
        return (
            all(word in text for word in self.words.lower().replace("_", " ").split())
            and self.licence_kind in ("", row.licence_kind)
            and self.way in ("", row.way)
            and (not self.max_bytes or row.size_bytes <= self.max_bytes)
            and not (self.only_here and row.place == "catalogue")
        )


class LicenceQuestion:
    """A licence that a download waits for.

    Attributes:
        licence: the licence.
    """

    def __init__(self, licence: Licence) -> None:
        self.licence = licence
        self._is_answered = threading.Event()
        self._is_accepted = False

    def answer(self, accepts: bool) -> None:
        """Answer it; the first answer counts."""
        if not self._is_answered.is_set():
            self._is_accepted = accepts
            self._is_answered.set()

    def wait(self, job: Job) -> bool:
        """Return the answer; called in the thread of a job.

        Raises:
            Cancelled: the job was stopped meanwhile.
        """
        while not self._is_answered.wait(_LICENCE_POLL_SECONDS):
            job.check()
        return self._is_accepted


class ModelsModel:
    """State of the window *Models…* of one viewer.

    Args:
        jobs: long work of the viewer.
        folders: returns the bundles outside the store that the user lists, and folders of such.

    Attributes:
        changed: emitted after every change that the window shows.
        jobs: long work of the viewer.
        folder_listed: emitted with the folder of a bundle that the user lists where it is.
        installed_changed: emitted with the reference of a model that was installed, or with None if one was removed.
        licence_asked: emitted with a `LicenceQuestion` that a download waits for.
        rows: all models.
        filter: which of them are listed.
        selected: key of the selected row; None if there is none.
        job: the running installation, check or removal; None if there is none.
        message: result of the last action; None if there is none.
        store_bytes: bytes that the installed models take.
        left_bytes: bytes of them that unfinished downloads take.
    """

    changed = Signal()
    folder_listed = Signal(Path)
    installed_changed = Signal(object)
    licence_asked = Signal(object)

    def __init__(self, jobs: Jobs, folders: Callable[[], Sequence[Path]] = tuple) -> None:
        self.jobs = jobs
        self._folders = folders
        self.rows: list[ModelRow] = []
        self.filter = ModelFilter()
        self.selected: tuple[str, str] | None = None
        self.job: Job | None = None
        self.message: Message | None = None
        self.store_bytes = 0
        self.left_bytes = 0
        self._reading: Job | None = None

    # the list

    @property
    def shown(self) -> list[ModelRow]:
        """Rows that the list shows: those on this machine first, those that can't be used last, then by title."""
        rows = filter(self.filter.passes, self.rows)
        return sorted(rows, key=lambda row: (row.place == "catalogue", row.way == "refused", row.title.lower()))

    @property
    def selected_row(self) -> ModelRow | None:
        """The selected row, if the list shows it."""
        return next((row for row in self.shown if row.key == self.selected), None)

    def filter_by(self, **changes: object) -> None:
        """Change the filter, and select the first row if the selected one is no longer listed."""
        self.filter = replace(self.filter, **changes)  # type: ignore[arg-type]
        self._keep_selection()
        self.changed.emit()

    def select(self, row: ModelRow | None) -> None:
        """Select a row."""
        self.selected = None if row is None else row.key
        self.changed.emit()

    def refresh(self) -> None:
        """Read, in a background job, which models there are and how each of them runs."""
        if self._reading is not None:
            self._reading.abandon()
        self._reading = self.jobs.start(
            partial(self._read, tuple(self._folders())),
            on_error=lambda error: self._show(message_of(error)),
        )

    def _read(self, folders: Sequence[Path], job: Job) -> None:
        """List the models, then how each runs, which takes longer; in the thread of the job."""
        from napari_seg.bundles.store.installed import disk_use

        rows = find_rows(folders)
        job.post(self._on_rows, rows, disk_use())
        for row in rows:
            if row.bundle is not None:
                job.check()
                job.post(self._on_permission, row.key, permission_of(row.bundle))

    def _on_rows(self, rows: list[ModelRow], use: dict[str, int]) -> None:
        known = {row.key: row.permission for row in self.rows}
        self.rows = [row if row.permission else replace(row, permission=known.get(row.key)) for row in rows]
        self.store_bytes, self.left_bytes = sum(use.values()), use.get(".part", 0)
        self._keep_selection()
        self.changed.emit()

    def _on_permission(self, key: tuple[str, str], permission: Permission) -> None:
        self.rows = [replace(row, permission=permission) if row.key == key else row for row in self.rows]
        self.changed.emit()

    def _keep_selection(self) -> None:
        shown = self.shown
        if self.selected not in [row.key for row in shown]:
            self.selected = shown[0].key if shown else None

    # actions on models

    def obstacle_to(self, action: Action) -> str:
        """Return why an action on the selected row is disabled, as text for the user; "" if it is enabled."""
        row = self.selected_row
        if row is None:
            return "Select a model first."
        if action == "use":
            return "" if row.bundle is not None else "Install this model first."
        if self.job is not None:
            return "Wait until the current work has ended, or cancel it."
        if action == "download":
            if row.way == "refused" and row.place == "catalogue":
                return row.permission.sentence if row.permission else ""
            return "" if row.place == "catalogue" else "This model is on this computer."
        if action == "convert":
            is_nnunet = row.bundle is not None and row.bundle.kind == "nnunet"
            return "" if is_nnunet else "Only a model of nnU-Net can be converted."
        if row.place == "catalogue":
            return "This model is not installed."
        if row.place == "shipped":
            return "This model comes with napari-seg."
        if row.place == "combined":
            return "This is a task with an improved model; select that model or the task."
        return "" if row.place == "installed" else "This model lies outside the store; napari-seg does not change it."

    def add(self, source: str | Path) -> None:
        """Install a model from a folder, a zip or an address."""
        self._start(partial(self._add, source), on_result=self._on_added)

    def list_folder(self, folder: Path) -> None:
        """Add a bundle to the list and leave it where it is; nothing is copied."""
        from napari_seg.bundles.read import read_bundle

        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            self._show(message_of(error))
            return
        self.folder_listed.emit(bundle.root)
        self.filter = ModelFilter()
        self.selected = key_of(bundle)
        self._show(Message("info", f"{bundle.name} is listed; it stays in its folder."))
        self.refresh()

    def download(self) -> None:
        """Install the selected model of the catalogue."""
        row = self.selected_row
        assert row is not None
        self.add(row.source)

    def check(self) -> None:
        """Compare the files of the selected model with those that were installed."""
        from napari_seg.bundles.store.installed import verify

        row = self.selected_row
        assert row is not None
        self._start(lambda job: self._quietly(job, "checking", verify, row.name), partial(self._on_checked, row.title))

    def convert(self, folder: Path) -> None:
        """Write the selected model of nnU-Net into an empty folder, as a MONAI bundle that runs without napari-seg."""
        row = self.selected_row
        assert row is not None
        assert row.bundle is not None
        self._start(partial(self._convert, row.bundle, folder), partial(self._on_converted, row.title, folder))

    def remove(self) -> None:
        """Remove the selected model, and forget the consent to its code."""
        from napari_seg.bundles.store.installed import remove

        row = self.selected_row
        assert row is not None
        self._start(lambda job: self._quietly(job, "removing", remove, row.name), partial(self._on_removed, row.title))

    def stop(self) -> None:
        """Stop the current action; what was downloaded stays for the next attempt."""
        if self.job is not None:
            self.job.stop()

    @property
    def progress_text(self) -> str:
        """Return the progress of the current action, as text for the user; "" if there is none."""
        if self.job is None:
            return ""
        progress = self.job.progress
        if self.job.is_stopping:
            return "Stopping …"
        if not progress.total:
            return f"{progress.stage} …"
        text = f"{progress.stage}: {size_text(progress.done)} of {size_text(progress.total)}"
        return f"{text}, {progress.time_left}" if progress.time_left else text

    def _start(self, work: Callable[[Job], object], on_result: Callable[..., object]) -> None:
        assert self.job is None
        self.message = None
        self.job = self.jobs.start(
            work, on_result=on_result, on_error=lambda error: self._show(message_of(error)), on_end=self._on_end
        )
        self.changed.emit()

    def _add(self, source: str | Path, job: Job) -> Bundle:
        from napari_seg.bundles.store.installed import add

        def accept(licence: Licence) -> bool:
            question = LicenceQuestion(licence)
            job.post(self.licence_asked.emit, question)
            return question.wait(job)

        job.report("preparing")
        return add(source, accept_licence=accept, progress=job.report)

    def _quietly(self, job: Job, stage: str, function: Callable[..., object], *args: object) -> object:
        job.report(stage)
        return function(*args)

    def _convert(self, bundle: Bundle, folder: Path, job: Job) -> None:
        from napari_seg.bundles.nnunet.convert import convert

        job.call(NETWORK_WORKER, convert, bundle, folder, ends_between_steps=True, stage="Converting")

    def _on_added(self, bundle: Bundle) -> None:
        self.filter = ModelFilter()  # otherwise the new model may not be listed
        self.selected = key_of(bundle)
        self._show(Message("info", f"{bundle.name} is installed."))
        self.installed_changed.emit(bundle.reference)
        self.refresh()

    def _on_checked(self, title: str, damages: list[Damage]) -> None:
        if not damages:
            self._show(Message("info", f"{title}: all files are as they were installed."))
            return
        shown = listed([f"{damage.file} ({damage.fault})" for damage in damages])
        text = f"{title}: these files are not as they were installed: {shown}. Remove the model and add it again."
        self._show(Message("error", text))

    def _on_converted(self, title: str, folder: Path, _: None) -> None:
        self._show(
            Message("info", f"{title} is written as a MONAI bundle; {folder}/docs/README.md says how to run it.")
        )

    def _on_removed(self, title: str, freed: int) -> None:
        self._show(Message("info", f"{title} was removed; {size_text(freed)} are free again."))
        self.installed_changed.emit(None)
        self.refresh()

    def _on_end(self) -> None:
        assert self.job is not None
        was_stopped, self.job = self.job.is_stopping, None
        if was_stopped and self.message is None:
            self._show(Message("info", "Stopped. If it was a download, the next one goes on from there."))
            self.refresh()
        self.changed.emit()

    def _show(self, message: Message) -> None:
        self.message = message
        self.changed.emit()
