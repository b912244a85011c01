"""Rows of the window *Models…*: the models on this machine and those of the catalogue. Without Qt; nothing runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from napari_seg.errors import BundleError, listed, one_line
from napari_seg.plugin.messages import gui_text_of
from napari_seg.plugin.models.permission import Permission

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.bundles.store.catalogue import Entry
    from napari_seg.bundles.store.licence import LicenceKind
    from napari_seg.bundles.totalsegmentator.task import TaskBundle

WAYS = {
    "at once": "Runs at once",
    "after consent": "Needs your consent",
    "refused": "Can't be used",
    "unknown": "Known once installed",
}
"""How a model runs, with titles."""

LICENCE_KINDS: dict[LicenceKind, str] = {
    "open": "Open",
    "non-commercial": "Non-commercial",
    "research": "Research only",
    "unknown": "Not known",
}
"""Classes of licences, with titles."""

Place = Literal["installed", "shipped", "elsewhere", "catalogue", "combined"]

_MAX_NAMES = 25
_MAX_TEXT = 2000


@dataclass(frozen=True)
class ModelRow:
    """One model of the list.

    Attributes:
        name: its name in the store or in the catalogue.
        title: its name for a person.
        finds: what it segments, the first of many.
        modality: of the images that it takes.
        size_bytes: size on disk, or of the download; 0 if unknown.
        licence: name of its licence; "" if unknown.
        licence_kind: class of its licence.
        place: "installed", in the store; "shipped", with napari-seg; "elsewhere", in a folder of the user;
            "catalogue", not on this machine; "combined", a task with an improved model, which has a row of its own.
        source: where it is, or where it comes from.
        description: one sentence on it.
        data: its training data.
        bundle: what is read of it; None if it is not on this machine, or can't be read.
        permission: whether it may run; None until it is known.
        structures: names of everything that it segments.
        listed_way: how it runs by the catalogue, a key of `WAYS`; "" if that does not say.
    """

    name: str
    title: str
    finds: str = ""
    modality: str = ""
    size_bytes: int = 0
    licence: str = ""
    licence_kind: LicenceKind = "unknown"
    place: Place = "installed"
    source: str = ""
    description: str = ""
    data: str = ""
    bundle: Bundle | None = None
    permission: Permission | None = None
    listed_way: str = ""
    structures: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Key that only this row has."""
        return self.name, self.source

    @property
    def way(self) -> str:
        """How it runs, a key of `WAYS`."""
        if self.permission is None:
            return self.listed_way or "unknown"
        if self.permission.kind == "refused":
            return "refused"
        return "at once" if self.permission.kind == "not needed" else "after consent"

    @property
    def way_title(self) -> str:
        """How it runs, as text for the user."""
        if self.permission is None:
            return WAYS.get(self.listed_way, "") if self.bundle is None else "…"
        return "Consent given" if self.permission.kind == "given" else WAYS[self.way]

    @property
    def details(self) -> str:
        """Everything about it that the list has no room for, as lines of text."""
        places = {
            "installed": "Installed",
            "shipped": "Comes with napari-seg",
            "elsewhere": "In a folder outside the store",
            "catalogue": "Not installed",
            "combined": "A task with an improved model",
        }
        lines = [
            self.permission.sentence if self.permission else "",
            self.description,
            f"Finds: {self.finds}" if self.finds else "",
            f"Trained on: {self.data}" if self.data else "",
            f"Licence: {self.licence or 'not stated'} ({LICENCE_KINDS[self.licence_kind].lower()})",
            f"{places[self.place]}: {one_line(self.source, _MAX_TEXT)}",
        ]
        return "\n".join(line for line in lines if line)


def find_rows(folders: Sequence[Path]) -> list[ModelRow]:
    """Return the models on this machine and those of the catalogue; opens no connection.

    Args:
        folders: bundles outside the store, and folders of such.
    """
    from napari_seg.bundles.places import store_root
    from napari_seg.bundles.read import find_bundles, read_bundle
    from napari_seg.bundles.store.catalogue import entries
    from napari_seg.bundles.store.installed import disk_use
    from napari_seg.bundles.totalsegmentator.table import is_task_name
    from napari_seg.bundles.totalsegmentator.weights import own_folder

    store, use = store_root().resolve(), disk_use()
    bundles, _ = find_bundles(folders)  # the panel shows the faults
    rows = [_row_of(bundle, store, use) for bundle in bundles]
    readable = {row.name.partition(":")[0] for row in rows if row.place == "installed"}
    for name in sorted(set(use) - readable - {own_folder().name}):
        if name.startswith("."):  # the store's own folders
            continue
        try:
            rows.append(_row_of(read_bundle(store / name), store, use))
        except BundleError as error:
            fault = Permission("refused", (gui_text_of(error),))
            rows.append(
                ModelRow(
                    name, one_line(name, _MAX_TEXT), size_bytes=use[name], source=str(store / name), permission=fault
                )
            )
    here = {row.name.lower() for row in rows if row.place == "installed" or is_task_name(row.name)}
    others = [entry for entry in entries() if not entry.is_licensed and entry.name.lower() not in here]
    return rows + [_row_of_entry(entry) for entry in others]


def key_of(bundle: Bundle) -> tuple[str, str]:
    """Return the key of a bundle's row: its name, and where it lies."""
    from napari_seg.bundles.store.installed import installed_as

    if bundle.kind == "nnunet":
        return installed_as(bundle) or bundle.name, str(bundle.root.resolve())
    if bundle.reference == str(bundle.root):
        return bundle.root.name, str(bundle.root.resolve())
    return bundle.reference, str(bundle.root.parent.resolve())


def _row_of(bundle: Bundle, store: Path, use: dict[str, int]) -> ModelRow:
    from napari_seg.bundles.read import shipped_root
    from napari_seg.bundles.store.installed import installed_as
    from napari_seg.bundles.store.licence import kind_of, name_of, read_licence
    from napari_seg.bundles.totalsegmentator.task import TaskBundle

    if isinstance(bundle, TaskBundle):
        return _row_of_task(bundle)
    name, source = key_of(bundle)
    is_installed = installed_as(bundle) != ""
    licence = read_licence(bundle.root, bundle.name)
    stated = bundle.licence
    return ModelRow(
        name=name,
        title=bundle.name,
        finds=listed([segment.name for segment in bundle.segments], _MAX_NAMES),
        modality=bundle.modality,
        size_bytes=use.get(name.partition(":")[0], 0) if is_installed else 0,
        licence=licence.name or name_of(stated) or stated,
        licence_kind=licence.kind if licence.kind != "unknown" else kind_of(stated),
        place="installed" if is_installed else "shipped" if bundle.root == shipped_root() else "elsewhere",
        source=source,
        description=bundle.description,
        bundle=bundle,
        structures=tuple(segment.name for segment in bundle.segments),
    )


def _row_of_task(bundle: TaskBundle) -> ModelRow:
    from napari_seg.bundles.store.folders import size_of
    from napari_seg.bundles.totalsegmentator.weights import own_folder

    name, source = key_of(bundle)
    is_in_store = bundle.root.is_relative_to(own_folder().resolve())
    return ModelRow(
        name=name,
        title=bundle.name,
        finds=listed([segment.name for segment in bundle.segments], _MAX_NAMES),
        modality=bundle.modality,
        size_bytes=sum(size_of(part.root) for part in bundle.parts),
        licence=bundle.licence,
        licence_kind="open" if bundle.task.licence_kind == "open" else "non-commercial",
        place="combined" if bundle.improved else "installed" if is_in_store else "elsewhere",
        source=source,
        description="; ".join(filter(None, (bundle.description, bundle.images))),
        bundle=bundle,
        structures=tuple(segment.name for segment in bundle.segments),
    )


def _row_of_entry(entry: Entry) -> ModelRow:
    channels = f"{len(entry.channels)} images: {', '.join(entry.channels)}" if entry.channels else ""
    return ModelRow(
        name=entry.name,
        title=entry.title,
        finds=listed(entry.finds, _MAX_NAMES),
        modality=entry.modality,
        size_bytes=entry.size_bytes or 0,
        licence=entry.licence,
        licence_kind=entry.licence_kind,
        place="catalogue",
        source=entry.source,
        description="; ".join(
            filter(None, (f"{entry.name} {entry.version}", f"one case has {channels}" if channels else "", entry.note))
        ),
        data="; ".join(filter(None, (entry.data, entry.data_licence))),
        permission=Permission("refused", (entry.reason,)) if entry.refused else None,
        structures=entry.finds,
        listed_way="after consent" if entry.needs_consent else "refused" if entry.refused else "at once",
    )


def size_text(size: int) -> str:
    """Return a size as text for the user, such as "12 kB", "0.4 MB" or "1.2 GB"."""
    if size < 1e5:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
