"""Digest of a model: everything that decides its labels, weights included, so that a result names what made it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from napari_seg.bundles.content import WEIGHTS_ENDINGS, content_hash, files_of, is_output
from napari_seg.bundles.nnunet.postprocessing import POSTPROCESSING
from napari_seg.bundles.parts import nnunet_models
from napari_seg.bundles.read import read_coarse
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.totalsegmentator.task import PREFIX, ImprovedPart, TaskBundle
from napari_seg.errors import BundleError
from napari_seg.formats.endings import IMAGE2D_ENDINGS, has_ending


def model_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of a model's weights, configs and code, as 64 hexadecimal digits; nothing of it runs.

    Raises:
        BundleError: `bundle.unreadable`, a file can't be read; and as for `content_hash`.
    """
    digest = hashlib.sha256()
    for owner, path in _files(bundle):
        digest.update(f"{path.relative_to(owner.root).as_posix()} {_sha256(owner, path)}\n".encode())
    models = nnunet_models(bundle)
    for one in (model.bundle for model in models if isinstance(model, ImprovedPart)) if models else (bundle,):
        digest.update(content_hash(one).encode())
    if isinstance(bundle, TaskBundle):
        digest.update(f"{PREFIX}{bundle.task.name}".encode())
    if bundle.coarse is not None:
        digest.update(model_digest(read_coarse(bundle)).encode())
    return digest.hexdigest()


def model_stamp(bundle: Bundle) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of the files of a model: a quick way to see that it was replaced."""
    found = []
    for _, path in _files(bundle):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _files(bundle: Bundle) -> Iterator[tuple[Bundle, Path]]:
    """Yield the files that decide labels and that `content_hash` knows by name only, each with the model it belongs to.

    They are weights, images such as a template, and the plans of a model of nnU-Net.
    """
    models = nnunet_models(bundle)
    for model in models:
        if isinstance(model, ImprovedPart):
            yield from _files(model.bundle)
            continue
        for name in ("plans.json", "dataset.json", *(f"{fold}/{model.checkpoint}" for fold in model.folds)):
            yield model, model.root / name
    if models:
        for path in sorted(bundle.root.rglob(POSTPROCESSING)):
            yield bundle, path
        return
    for file in files_of(bundle.root):
        is_weights = file.path.suffix.lower() in (*WEIGHTS_ENDINGS, ".safetensors")
        decides = is_weights or not (is_output(file.name) or _is_figure(file.name))
        if file.is_data and decides and file.path.is_file():
            yield bundle, file.path


def _is_figure(name: str) -> bool:
    return name.startswith("docs/") and has_ending(Path(name), IMAGE2D_ENDINGS)


def _sha256(bundle: Bundle, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        text = f"{path.name} of model {bundle.root.name!r} can't be read ({error.strerror}); expected a readable file"
        raise BundleError("bundle.unreadable", text) from error
