"""Fetch the files of a model into a folder: copied, unpacked or downloaded, within limits.

A bundle may name further files in `large_files.yml`, as those of the zoo's git repository do; they are downloaded too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.nnunet.folder import CHECKPOINTS, find_trainings, is_training
from napari_seg.bundles.nnunet.plans import DATASET, PLANS
from napari_seg.bundles.spec import METADATA
from napari_seg.bundles.store.catalogue import NGC_URL, entry_of
from napari_seg.bundles.store.download import MIN_FREE_BYTES, Digest, RemoteFile, download
from napari_seg.bundles.store.hub import fetch_repository
from napari_seg.bundles.store.licence import Licence, is_licence_file, read_licence
from napari_seg.bundles.store.limits import MAX_BYTES, MAX_FILES, check_name, is_spare, too_large
from napari_seg.bundles.store.remote_zip import licence_in_zip
from napari_seg.bundles.store.sources import Source
from napari_seg.bundles.weights.links import listing_of
from napari_seg.errors import DownloadError, OutputError, StoreError, one_line
from napari_seg.formats.archive import names_in_zip, path_inside, size_of_zip, unpack
from napari_seg.progress import Progress

MAX_RATIO = 200
"""Limit of a zip's unpacked size in units of its own size, where it unpacks to more than `FREE_RATIO_BYTES`."""

FREE_RATIO_BYTES = 2**28

_OF_NNUNET = frozenset({PLANS, DATASET, "dataset_fingerprint.json", "postprocessing.json", *CHECKPOINTS})
"""Files of an nnU-Net model that are copied, next to its licence. The others hold results and paths of its training."""

_NOT_COPIED = {"__pycache__", ".git", ".cache", ".DS_Store", "__MACOSX"}


def fetch(
    source: Source, part: Path, ask: Callable[[Licence], None], progress: Progress, *, offline: bool = False
) -> tuple[Path, Licence, str]:
    """Bring the files of a source into a folder; return the bundle's folder, its licence and its revision.

    The revision is the version by which the source names these files; "" if it has none.

    Args:
        source: where they are.
        part: existing folder, kept apart from the installed models.
        ask: called with the licence before the first byte of weights is downloaded, and with that in the download; it
            raises if the user declines.
        progress: called with the bytes done and in all (0 if unknown).
        offline: do not download the weights that a bundle on this machine lacks.

    Raises:
        StoreError: `store.no_bundle`, the source holds none; `store.unsafe`, it holds links, devices or names that lead
            out of it; `store.too_large`; or what `ask` raises.
        InputError: the zip is damaged, or not to be trusted (`archive.*`, `file.*`).
        DownloadError: see `download.download`.
    """
    files, partials, revision = part / "files", part / "partial", source.version
    partials.mkdir(exist_ok=True)
    if source.kind == "hf":
        with _advice_without_network(source):
            revision = fetch_repository(source.place, source.version or "main", files, partials, ask, progress)
    else:
        shutil.rmtree(files, ignore_errors=True)
        if source.kind == "folder":
            place = Path(source.place)
            found = bundle_in(place, place.name)
            # nnU-Net's names of folders say which data set and configuration they hold
            target = files / found.parent.name / found.name if is_training(found) else files
            _copy(found, target, progress, is_nnunet=bool(find_trainings(found)))
        elif source.kind == "zip":
            unzip(Path(source.place), files)
        else:
            remote, version = _archive_of(source)
            revision = version
            archive = part / f"{source.name}.zip"
            with _advice_without_network(source):
                ask(licence_in_zip(remote.url, source.name) or _listed_licence(source))
                download(remote, archive, partials, lambda done, total: progress("downloading", done, total))
            unzip(archive, files)
    root = bundle_in(files, Path(source.place).name if source.kind == "zip" else str(source))
    licence = read_licence(root, source.name)
    if licence.text and source.kind not in ("folder", "zip"):  # it may differ from what could be read before
        ask(licence)
    if not (offline and source.kind in ("folder", "zip")):
        _fetch_large_files(root, source.name, partials, ask, progress)
    return root, licence, revision


@contextmanager
def _advice_without_network(source: Source) -> Iterator[None]:
    """Add to an error that the network is missing how to bring the model here by other means."""
    try:
        yield
    except DownloadError as error:
        if error.code != "download.no_network":
            raise
        entry = entry_of(source.name)
        places = [f"https://huggingface.co/{source.place} as a folder"] if source.kind == "hf" else []
        is_listed = entry is not None and (source.kind == "ngc" or entry.source == f"hf:{source.place}")
        places += [f"{entry.archive_url} as a zip"] if entry and is_listed else []
        places = places or ["it"]
        text = f"or, where there is a connection, download {' or '.join(places)}, copy it here and give"
        raise DownloadError(error.code, f"{error.message}; {text} 'napari-seg models add FOLDER_OR_ZIP'") from error


def _listed_licence(source: Source) -> Licence:
    """Return the licence as the catalogue names it, of a zip that can't be looked into before the download."""
    entry = entry_of(source.place) if source.kind == "ngc" else None
    return Licence(source.name, entry.licence, entry.licence_kind) if entry else Licence(source.name)


def _archive_of(source: Source) -> tuple[RemoteFile, str]:
    """Return the zip of a source, and its version."""
    if source.kind == "url":
        return RemoteFile(source.place), ""
    entry = entry_of(source.place)
    version = source.version or (entry.version if entry else "")
    if not version:
        text = f"the catalogue does not list {source.place!r}; expected its version too: ngc:{source.place}@VERSION"
        raise StoreError("store.source", text)
    is_listed = entry is not None and entry.version == version
    url = NGC_URL.format(name=quote(source.place), version=quote(version))
    return RemoteFile(url, digest=entry.archive_digest if entry and is_listed else None), version


def _fetch_large_files(
    root: Path, model: str, partials: Path, ask: Callable[[Licence], None], progress: Progress
) -> None:
    """Download the files that a bundle names in `large_files.yml` and lacks: weights and configs."""
    listing = listing_of(root)
    if listing is None:
        return
    wanted: dict[str, RemoteFile] = {}
    try:
        for one in read_config(listing).get("large_files") or ():
            digest = Digest.parse(f"{one.get('hash_type')}:{one.get('hash_val')}")
            wanted[str(one["path"])] = RemoteFile(str(one["url"]), digest=digest)
    except Exception as error:  # a foreign file can hold anything
        cause = one_line(f"{type(error).__name__}: {error}", 200)
        text = f"{listing.name} can't be used ({cause}); expected large_files, a list of path and url"
        raise StoreError("store.large_files", text) from error
    for name in wanted:
        check_name(name)
    missing = {
        name: remote
        for name, remote in wanted.items()
        if name.startswith(("models/", "configs/")) and not (root / name).exists() and not is_spare(name, wanted)
    }
    if missing:
        ask(read_licence(root, model))
    for name, remote in missing.items():
        try:
            download(remote, root / name, partials, lambda done, total: progress("downloading", done, total))
        except DownloadError as error:
            entry = entry_of(model)
            other = f"; {entry.source} may have it" if entry else ""
            text = f"{error.message}{other}; --offline installs the bundle without {one_line(name, 200)}"
            raise DownloadError(error.code, text) from error


def bundle_in(folder: Path, shown: str) -> Path:
    """Return the folder of the only bundle in a folder: itself, or one directly in it; or that of models of nnU-Net.

    Args:
        folder: a folder.
        shown: its name for the user.

    Raises:
        StoreError: `store.no_bundle`, there is none, or more than one.
    """
    if (folder / METADATA).is_file():
        return folder
    found = [path for path in sorted(folder.iterdir()) if (path / METADATA).is_file() and path.name != "__MACOSX"]
    if len(found) == 1:
        return found[0]
    if not found and find_trainings(folder):
        return folder
    names = ", ".join(path.name for path in found[:5]) + ", ..." * (len(found) > 5)
    what = "no bundle" if not found else f"{len(found)} bundles ({names})"
    text = f"found {what} in {one_line(shown, 200)!r}; expected one folder with {METADATA.as_posix()}, or nnU-Net's"
    raise StoreError("store.no_bundle", text)


def _copy(folder: Path, files: Path, progress: Progress, *, is_nnunet: bool) -> None:
    """Copy a bundle's folder; links inside it become files, and links that lead out of it are refused.

    Args:
        folder: the bundle.
        files: where it is copied to.
        progress: called with the bytes done and in all.
        is_nnunet: copy only what a model of nnU-Net needs.
    """
    paths = [
        path for path in _files_in(folder) if not is_nnunet or path.name in _OF_NNUNET or is_licence_file(path.name)
    ]
    if len(paths) > MAX_FILES:
        raise too_large(folder.name)
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        raise too_large(folder.name)
    done = 0
    for path in paths:
        target = files / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        done += target.stat().st_size
        progress("copying", done, total)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a bundle's folder.

    Raises:
        StoreError: `store.unsafe`, it holds a link out of the folder or to a folder, a pipe or a device.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_COPIED)
        for name in (*folders, *sorted(set(names) - _NOT_COPIED)):
            path = Path(place, name)
            target = path.resolve()
            if path.is_symlink() and (not target.is_relative_to(folder.resolve()) or not target.is_file()):
                text = f"{path.relative_to(folder)} is a link out of the bundle, or to a folder; copy the file itself"
                raise StoreError("store.unsafe", text)
            if name in folders:
                continue
            if not target.is_file():
                raise StoreError("store.unsafe", f"{path.relative_to(folder)} is no file; remove it from the bundle")
            yield path


def unzip(archive: Path, files: Path) -> None:
    """Unpack a zip into a new folder, within limits; if an error is raised, nothing of it is left.

    Raises:
        StoreError: `store.unsafe`, it holds links, devices or names that are no names on every system;
            `store.too_large`.
        InputError: it is damaged, or not to be trusted (`archive.*`, `file.*`).
        OutputError: `output.disk_full`.
    """
    count, size = size_of_zip(archive)
    is_bomb = size > FREE_RATIO_BYTES and size > MAX_RATIO * archive.stat().st_size
    if is_bomb or size > MAX_BYTES or count > MAX_FILES:
        raise too_large(archive.name)
    for name in names_in_zip(archive):
        if path_inside(name) is not None:  # what leads out is refused as it is unpacked
            check_name(name.replace("\\", "/"))
    free, needed = shutil.disk_usage(files.parent).free, size + MIN_FREE_BYTES
    if free < needed:
        text = f"unpacking {archive.name} needs {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB free"
        raise OutputError("output.disk_full", f"{text}; free some space and run again")
    files.mkdir()
    try:
        if unpack(archive, files, MAX_FILES, size):
            raise StoreError("store.unsafe", f"{archive.name} holds links, pipes or devices; expected files alone")
    except BaseException:
        shutil.rmtree(files, ignore_errors=True)
        raise
