"""Digest of a model: everything that decides its labels, weights included, so that a result names what made it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from napari_seg.bundles.content import content_hash, files_of
from napari_seg.bundles.parts import nnunet_models
from napari_seg.bundles.read import read_coarse
from napari_seg.bundles.spec import WEIGHTS, Bundle
from napari_seg.errors import BundleError


def model_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of a model's weights, configs and code, as 64 hexadecimal digits; nothing of it runs.

    Raises:
        BundleError: `bundle.unreadable`, a file can't be read; and as for `content_hash`.
    """
    digest = hashlib.sha256()
    models = nnunet_models(bundle)
    for model in models:
        names = ["plans.json", "dataset.json", *(f"{fold}/{model.checkpoint}" for fold in model.folds)]
        for name in names:
            digest.update(f"{name} {_sha256(model, model.root / name)}\n".encode())
    if not models:
        digest.update(content_hash(bundle).encode())
        folder = f"{WEIGHTS.parent.as_posix()}/"
        for file in files_of(bundle.root):
            if file.is_data and file.name.startswith(folder) and file.path.is_file():
                digest.update(f"{file.name} {_sha256(bundle, file.path)}\n".encode())
    digest.update(bundle.reference.encode() if bundle.kind == "totalsegmentator" else b"")
    if bundle.coarse is not None:
        digest.update(model_digest(read_coarse(bundle)).encode())
    return digest.hexdigest()


def _sha256(bundle: Bundle, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        text = f"{path.name} of model {bundle.root.name!r} can't be read ({error.strerror}); expected a readable file"
        raise BundleError("bundle.unreadable", text) from error
