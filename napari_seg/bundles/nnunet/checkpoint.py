"""Weights of nnU-Net: read from a checkpoint without running anything in it, and kept for the next time.

A checkpoint also holds the optimizer and the history of the training. After the first load the weights alone are kept
in the store as safetensors, by the digest of the checkpoint, so that later they are mapped from that file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from napari_seg.bundles.places import kept_folder
from napari_seg.bundles.weights.checkpoint import UnsafeCheckpoint, read_checkpoint
from napari_seg.errors import BundleError, one_line
from napari_seg.formats.atomic import atomic_file

log = logging.getLogger(__name__)

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that wrappers for several GPUs and for compiled networks put before names."""

_MAX_HEADER = 2**25


class Checkpoint:
    """Content of a checkpoint that a run needs.

    Attributes:
        weights: name in the network -> tensor.
        mirror_axes: axes along which the training mirrored images; mirror images may be averaged along these only.
        trainer: name of the trainer.
        configuration: name of the configuration; "" if the checkpoint has none.
        sha256: digest of the file that was read.
    """

    def __init__(self, weights: dict[str, torch.Tensor], facts: dict[str, Any], sha256: str) -> None:
        self.weights = weights
        self.sha256 = sha256
        self.mirror_axes = tuple(int(axis) for axis in facts.get("mirror_axes") or ())
        self.trainer = str(facts.get("trainer") or "")
        self.configuration = str(facts.get("configuration") or "")


def read_nnunet_checkpoint(path: Path) -> Checkpoint:
    """Return the weights of a checkpoint or of a state dictionary, on the CPU, and what else a run needs.

    Raises:
        BundleError: `bundle.weights`, it is missing, damaged or no checkpoint of nnU-Net, or was replaced meanwhile;
            `bundle.weights_unsafe`, it holds more than tensors and plain data.
    """
    try:
        sha256 = digest_of(path)
        kept = kept_folder() / f"{sha256}.safetensors"
        if kept.is_file():
            try:
                return _kept(kept)
            except Exception as error:  # damaged, or another's; it is written again
                log.info("%s can't be used (%s); the checkpoint is read", kept.name, type(error).__name__)
        content = read_checkpoint(path)
        checkpoint = _parsed(content, path.stat().st_size, sha256)
        is_same = digest_of(path) == sha256
    except UnsafeCheckpoint as error:
        text = f"{_shown(path)} was not loaded: {one_line(error, 200)}; expected a checkpoint that nnU-Net saved"
        raise BundleError("bundle.weights_unsafe", text) from None
    except Exception as error:  # a damaged file can raise anything
        cause = "it is missing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise BundleError(
            "bundle.weights", f"{_shown(path)} can't be used ({one_line(cause, 200)}); expected a checkpoint of nnU-Net"
        ) from error
    if not is_same:
        text = f"{_shown(path)} was replaced while it was read; wait until its training has ended, and start again"
        raise BundleError("bundle.weights", text)
    if "network_weights" in content:  # a file with the weights alone needs no other one
        _keep(checkpoint, kept)
    return checkpoint


def load_weights(network: torch.nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Give a network the weights of a checkpoint; every weight must be there, with its shape, and no other.

    The state dictionary of nnU-Net's networks names some weights several times; each must occur by one of its names.

    Args:
        network: the network.
        checkpoint: its checkpoint.
        name: what to name in messages.

    Raises:
        BundleError: `bundle.weights`, they do not fit.
    """
    names: dict[int, list[str]] = {}
    expected = network.state_dict(keep_vars=True)
    for key, tensor in expected.items():
        names.setdefault(id(tensor), []).append(key)
    chosen, missing, wrong = {}, [], []
    for aliases in names.values():
        found = next((key for key in aliases if key in checkpoint.weights), None)
        if found is None:
            missing.append(aliases[0])
            continue
        value, wanted = checkpoint.weights[found], expected[aliases[0]]
        if value.shape != wanted.shape:
            wrong.append(f"{found} {tuple(value.shape)} for {tuple(wanted.shape)}")
        chosen[aliases[0]] = value.to(wanted.dtype)
    unknown = [key for key in checkpoint.weights if key not in expected]
    differences = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if keys
    ]
    if differences:
        trainer = f"; its trainer {checkpoint.trainer!r} may train another network" if checkpoint.trainer else ""
        raise BundleError(
            "bundle.weights",
            f"the weights of {name} do not fit the network that plans.json describes: "
            f"{one_line(', '.join(differences), 300)}{one_line(trainer, 150)}; expected nnU-Net's own networks",
        )
    network.load_state_dict(chosen, strict=False, assign=True)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; a file is read once, and again after it changed."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parsed(content: Any, size: int, sha256: str) -> Checkpoint:
    """Return what a run needs of a checkpoint's content.

    Args:
        content: what was read.
        size: bytes of the file.
        sha256: digest of the file.

    Raises:
        ValueError: it is no checkpoint of nnU-Net.
    """
    weights = content.get("network_weights", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(one, torch.Tensor) for one in weights.values()):
        raise ValueError("it has no network_weights, and is no state dictionary")
    named = {}
    for key, value in weights.items():
        if not isinstance(key, str):
            raise ValueError("its network_weights have keys that are no names")
        name = key
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name in named:
            raise ValueError(f"its network_weights name {one_line(name, 80)} twice")
        if value.layout is not torch.strided or value.is_meta or not (value.is_floating_point() or _is_count(value)):
            kind = "no data" if value.is_meta else f"{value.layout} {value.dtype} numbers"
            raise ValueError(f"its weight {one_line(name, 80)} has {kind}; expected dense floating-point numbers")
        named[name] = value
    if sum(tensor.nbytes for tensor in _each_once(named).values()) > size:  # by strides or views that repeat a few
        raise ValueError(f"its tensors claim more than the {size} bytes that the file has")
    arguments = content.get("init_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, list | tuple) or not all(isinstance(axis, int) for axis in axes):
        raise ValueError("inference_allowed_mirroring_axes holds no numbers of axes; expected axes from 0 to 2")
    if len({*axes}) != len(axes) or not {*axes} <= {0, 1, 2}:
        raise ValueError(f"inference_allowed_mirroring_axes is {str(axes)[:50]}; expected axes from 0 to 2")
    facts = {
        "mirror_axes": [int(axis) for axis in axes],
        "trainer": _text(content.get("trainer_name")),
        "configuration": _text(arguments.get("configuration")),
    }
    return Checkpoint(named, facts, sha256)


def _text(value: Any) -> str:
    """Return a name; "" for what is none, which may be lists that hold each other and have no end as text."""
    return one_line(value, 120) if isinstance(value, str) else ""


def _is_count(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is the number of batches that a normalisation has seen."""
    return tensor.ndim == 0 and tensor.dtype == torch.int64


def _each_once(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights without those that are the same tensor by another name."""
    places: dict[tuple, str] = {}
    for name, tensor in weights.items():
        places.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.numel() or name), name)
    return {name: weights[name] for name in places.values()}


def _kept(path: Path) -> Checkpoint:
    """Return what `_keep` wrote.

    Raises:
        Exception: the file is damaged, or was written for another checkpoint.
    """
    facts = _facts_in(path)
    if facts["checkpoint"] != path.stem or not {*facts["mirror_axes"]} <= {0, 1, 2}:
        raise ValueError("it was written for another checkpoint")
    return Checkpoint(read_checkpoint(path), facts, path.stem)


def _keep(checkpoint: Checkpoint, path: Path) -> None:
    """Write the weights to the store, each once; a store that takes no file is no reason to stop."""
    from safetensors.torch import save_file

    facts = {
        "checkpoint": path.stem,
        "mirror_axes": checkpoint.mirror_axes,
        "trainer": checkpoint.trainer,
        "configuration": checkpoint.configuration,
    }
    try:
        tensors = {name: tensor.contiguous() for name, tensor in _each_once(checkpoint.weights).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            save_file(tensors, partial, {"napari_seg": json.dumps(facts)})
    except Exception as error:
        log.info("the weights are not kept in %s (%s)", path.parent, type(error).__name__)


def _facts_in(path: Path) -> dict[str, Any]:
    """Return what `_keep` wrote beside the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _MAX_HEADER)))
    return json.loads(header["__metadata__"]["napari_seg"])


def _shown(path: Path) -> str:
    return f"{one_line(path.parent.name, 60)}/{one_line(path.name, 60)} of {one_line(path.parents[1].name, 120)!r}"
