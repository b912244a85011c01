"""Digest of a model: everything that decides its labels, weights included, so that a result names what made it.

All files of a bundle count. Only in the shipped bundle, whose training changes with every release, files that change no
label do not: `_TRAINING` lists them, and a test compares the list with what the inference imports. The code of other
bundles may read any of their files. In earlier versions these files counted, too (`earlier_digest`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.content import WEIGHTS_ENDINGS, content_hash, files_of, is_output
from napari_seg.bundles.metadata import MAX_METADATA_BYTES
from napari_seg.bundles.nnunet.postprocessing import POSTPROCESSING
from napari_seg.bundles.parts import nnunet_models
from napari_seg.bundles.read import inner_bundles, shipped_root
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.totalsegmentator.task import PREFIX, ImprovedPart, TaskBundle
from napari_seg.errors import BundleError
from napari_seg.formats.endings import IMAGE2D_ENDINGS, has_ending

_TRAINING = re.compile(
    r"LICENSE|docs/.+|configs/(?!(inference|metadata)\.)[^/]+\.(yaml|conf)|segnets/(data|training)/.+\.py|"
    r"segnets/(annotation|cascade|decide|files|inferers|losses|metrics|nnunet_preprocessing)\.py"
)
"""Files of the shipped bundle that change no label: documents, and configs and modules of its training."""

_DESCRIPTIONS = (
    *("authors", "changelog", "copyright", "data_source", "description", "eval_metrics", "intended_use", "license"),
    *("references", "schema", "task"),
    *("monai_version", "numpy_version", "pytorch_version", "required_packages_version"),
)
"""Keys of its metadata that change no label."""


def model_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of a model's weights, configs and code, as 64 hexadecimal digits; nothing of it runs.

    Raises:
        BundleError: `bundle.unreadable`, a file can't be read; and as for `content_hash`.
    """
    return _digest(bundle)


def earlier_digest(bundle: Bundle) -> str:
    """Return the digest that earlier versions computed, for which all files of a bundle count; see `model_digest`."""
    return _digest(bundle, of_all=True)


def has_digest(bundle: Bundle, digest: str) -> bool:
    """Return whether a digest is that of a model, or was in earlier versions."""
    return digest == model_digest(bundle) or digest == earlier_digest(bundle)


def _digest(bundle: Bundle, *, of_all: bool = False) -> str:
    digest = hashlib.sha256()
    for owner, path in _files(bundle):
        digest.update(f"{path.relative_to(owner.root).as_posix()} {_sha256(owner, path)}\n".encode())
    models = nnunet_models(bundle)
    for one in (model.bundle for model in models if isinstance(model, ImprovedPart)) if models else (bundle,):
        if of_all or one.root.resolve() != shipped_root().resolve():
            digest.update(content_hash(one).encode())
        else:
            metadata = read_config(one.root / METADATA, MAX_METADATA_BYTES)
            deciding = {key: value for key, value in metadata.items() if key not in _DESCRIPTIONS}
            digest.update(json.dumps(deciding, sort_keys=True).encode())
            left_out = {file.name for file in files_of(one.root) if _TRAINING.fullmatch(file.name)}
            digest.update(content_hash(one, {*left_out, METADATA.as_posix()}).encode())
    if isinstance(bundle, TaskBundle):
        digest.update(f"{PREFIX}{bundle.task.name}".encode())
    for inner in inner_bundles(bundle):
        digest.update(_digest(inner, of_all=of_all).encode())
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
