"""Check a bundle: what is missing or wrong, in which file and entry, and how to mend it. Nothing of the bundle runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from napari_seg.bundles.config.read import inference_config, read_config
from napari_seg.bundles.content import code_lines
from napari_seg.bundles.metadata import MAX_METADATA_BYTES
from napari_seg.bundles.nnunet.folder import find_trainings, folds_in_words
from napari_seg.bundles.nnunet.read import read_training
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA, Bundle, EnsembleBundle
from napari_seg.bundles.store.licence import read_licence
from napari_seg.bundles.trust import check_runnable
from napari_seg.bundles.ways import WayKind, resolver_of, way_of
from napari_seg.bundles.weights.files import inspect_weights
from napari_seg.bundles.weights.find import find_weights, weight_files
from napari_seg.bundles.weights.links import how_to_get
from napari_seg.errors import BundleError, one_line

Level = Literal["error", "warning", "note"]

_EXPECTED = {
    "version": "the version of the bundle, such as 0.1.0",
    "name": "a short title",
    "description": "one sentence on what the bundle segments",
    "authors": "who made it",
    "copyright": "whose it is",
    "monai_version": "the version of MONAI that it was made with",
}
"""Entries of the metadata that users and MONAI look for, and what they hold."""

_WAYS: dict[WayKind, tuple[Level, str, str]] = {
    "refused": ("error", "it can't be used for segmentation", "choose another model"),
    "workflow": ("warning", "it needs your consent; MONAI runs it", "use steps that napari-seg supports, if possible"),
    "engine": ("note", "it needs your consent", ""),
}
"""What the way of a bundle means: level, meaning and what to do."""

WEIGHTS = "models/model.pt"
"""Usual file of the weights."""

_MAX_LINES = 5


@dataclass(frozen=True)
class Finding:
    """Something in a bundle that is missing, wrong or worth knowing.

    Attributes:
        level: "error", the bundle can't be used; "warning", something about it is lost or doubtful; "note".
        file: path in the bundle.
        key: entry of the file, or line; "" for the whole file.
        found: what was found, and what was expected.
        mend: what to do; "" for a note.
    """

    level: Level
    file: str
    key: str
    found: str
    mend: str = ""


def check(root: Path) -> list[Finding]:
    """Return what is to be said of a bundle: errors first, each level in the order of the files.

    Args:
        root: the bundle's folder.
    """
    if not (root / METADATA).is_file() and (trainings := find_trainings(root)):
        findings = [finding for training in trainings for finding in _of_training(root, training)]
    else:
        findings = _of_bundle(root)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda one: order[one.level])


def _of_training(root: Path, training: Path) -> Iterator[Finding]:
    """Yield what is to be said of a model of nnU-Net; its weights are compared with the network of its plans."""
    import torch

    from napari_seg.bundles.nnunet.load import load_nnunet

    folder = training.relative_to(root).as_posix()
    try:
        bundle = read_training(training)
        check_runnable(bundle)
        load_nnunet(bundle, torch.device("cpu"), torch.float32)
    except BundleError as error:
        mend = "copy or export the model again, as nnU-Net wrote it"
        yield Finding("error", folder, "", error.message, mend)
        return
    folds = folds_in_words(bundle.folds)
    yield Finding("note", folder, "", f"nnU-Net model {bundle.name!r}; its weights fit its network; {folds}")
    if not read_licence(training, bundle.name).text:
        text = "there is none, as nnU-Net writes none, so nobody knows what they may do with the weights"
        mend = "add the licence of the weights before you pass the model on, or ask those who trained it"
        yield Finding("warning", f"{folder}/LICENSE".removeprefix("./"), "", text, mend)


def _of_bundle(root: Path) -> list[Finding]:
    findings = [*_of_metadata(root)]
    bundle = None
    try:
        bundle = read_bundle(root)
    except BundleError as error:
        if not any(one.level == "error" for one in findings):
            findings.append(Finding("error", METADATA.as_posix(), "", error.message, "correct it"))
    else:
        models = bundle.members if isinstance(bundle, EnsembleBundle) else filter(None, (bundle.previous,))
        folders = [(one.root, one.root.relative_to(bundle.root.resolve()).as_posix()) for one in models]
        findings += [replace(one, file=f"{name}/{one.file}") for folder, name in folders for one in _of_bundle(folder)]
        if isinstance(bundle, EnsembleBundle):
            return [*findings, *_of_licence(root)]
        findings += _of_config(bundle)
    return [*findings, *_of_weights(root, bundle), *_of_licence(root)]


def _of_metadata(root: Path) -> Iterator[Finding]:
    file = METADATA.as_posix()
    try:
        metadata = read_config(root / METADATA, MAX_METADATA_BYTES)
    except FileNotFoundError:
        yield Finding("error", file, "", "there is no such file", "write one; 'napari-seg models new' shows its form")
        return
    except Exception as error:  # a damaged file can raise anything
        yield Finding("error", file, "", f"it can't be read: {_cause(error)}", "correct it; expected JSON")
        return
    for key, meaning in _EXPECTED.items():
        if not str(metadata.get(key) or "").strip():
            yield Finding("warning", file, key, f"it is missing; expected {meaning}", f"add {key}")
    data_format = metadata.get("network_data_format")
    for kind, usual in (("inputs", "image"), ("outputs", "pred")):
        key = f"network_data_format.{kind}"
        entries = data_format.get(kind) if isinstance(data_format, dict) else None
        if not isinstance(entries, dict) or not entries:
            yield Finding("error", file, key, f"it is missing; expected an entry {usual!r}", "describe it there")
            continue
        name = usual if usual in entries else next(iter(entries))
        one = entries[name] if isinstance(entries[name], dict) else {}
        key = f"{key}.{one_line(name, 80)}"
        if not isinstance(one.get("num_channels"), int):
            yield Finding("error", file, f"{key}.num_channels", "it is no number", "give the number of channels")
        yield from _of_input(file, key, one) if kind == "inputs" else _of_output(file, key, one)
    yield from _of_packages(file, metadata)


def _of_input(file: str, key: str, image: dict[str, Any]) -> Iterator[Finding]:
    if not image.get("modality"):
        text = "it is missing, so a scan of another modality is not noticed; expected CT, MR, ..."
        yield Finding("warning", file, f"{key}.modality", text, "add the modality of the training images")
    channels, names = image.get("num_channels"), image.get("channel_def") or {}
    if isinstance(channels, int) and channels > 1 and len(names) != channels:
        text = f"it names {len(names)} of {channels} channels, so images can't be told apart by name"
        yield Finding("warning", file, f"{key}.channel_def", text, "name each channel, such as T1 or FLAIR")


def _of_output(file: str, key: str, pred: dict[str, Any]) -> Iterator[Finding]:
    channels, names = pred.get("num_channels"), pred.get("channel_def") or pred.get("label_def") or {}
    if not isinstance(names, dict) or not names:
        text = "it is missing, so the structures have no names"
        yield Finding("warning", file, f"{key}.channel_def", text, "name each channel, background included")
    elif isinstance(channels, int) and channels != len(names):
        text = f"it names {len(names)} of {channels} channels"
        yield Finding("warning", file, f"{key}.channel_def", text, "name each channel, background included")


def _of_packages(file: str, metadata: dict[str, Any]) -> Iterator[Finding]:
    for key, level in (("required_packages_version", "warning"), ("optional_packages_version", "note")):
        packages = metadata.get(key)
        for package in packages if isinstance(packages, dict) else ():
            name = one_line(package, 80)
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                yield Finding("warning", file, key, f"{name!r} is no name of a package", "correct it")
                continue
            try:
                version(name)
            except PackageNotFoundError:
                text = f"the package {name} is not installed"
                yield Finding(level, file, key, text, f"if the bundle needs it: pip install {name}")  # type: ignore[arg-type]


def _of_config(bundle: Bundle) -> Iterator[Finding]:
    try:
        path = inference_config(bundle.root)
    except BundleError as error:
        yield Finding("error", "configs/inference.yaml", "", error.message, "write one; 'models new' shows its form")
        return
    file = f"configs/{path.name}"
    try:
        way = way_of(bundle)
    except BundleError as error:
        yield Finding("error", file, "", error.message, "correct it")
        return
    if bundle.trusted:
        return
    level, meaning, mend = _WAYS[way.kind]
    for reason in way.reasons:
        text = reason.removeprefix(f"{file}: ")
        found = re.fullmatch(r"(\S+\._target_) (.+)", text)
        key, text = (found[1], found[2]) if found else ("", text)
        yield Finding(level, file, key, f"{text}; {meaning}", mend)
    if way.needs_consent:
        yield from _of_code(bundle)


def _of_code(bundle: Bundle) -> Iterator[Finding]:
    try:
        lines = code_lines(bundle)
    except BundleError as error:
        yield Finding("error", ".", "", error.message, "correct it")
        return
    for line in lines[:_MAX_LINES]:
        key = f"line {line.line}" if line.line else ""
        yield Finding("note", line.file, key, f"{line.why}: {line.text}")
    if len(lines) > _MAX_LINES:
        yield Finding("note", ".", "", f"{len(lines) - _MAX_LINES} more lines of code")


def _of_weights(root: Path, bundle: Bundle | None) -> Iterator[Finding]:
    files = weight_files(root)
    if not files:
        mend = how_to_get(root, WEIGHTS)
        yield Finding("warning", WEIGHTS, "", "there are no weights yet; it can't be used until they are there", mend)
    elif bundle is not None:
        try:
            find_weights(resolver_of(bundle))
        except BundleError as error:
            if error.code == "bundle.weights":
                yield Finding("error", "models", "", error.message, "rename the file, or correct the config")
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            content = inspect_weights(path) if path.suffix != ".safetensors" else None
        except OSError as error:
            yield Finding("error", name, "", f"it can't be read: {error.strerror}", "copy it again")
            continue
        if content is not None and content.kind == "pickle":
            text = f"it calls {', '.join(content.calls[:3])} as it is loaded; expected a state dictionary of tensors"
            yield Finding("error", name, "", text, "save network.state_dict() alone, or as safetensors")
        elif content is not None and content.kind == "unknown":
            yield Finding("error", name, "", "it is no file of torch, or is cut short", "copy or download it again")


def _of_licence(root: Path) -> Iterator[Finding]:
    licence = read_licence(root, root.name)
    if not licence.text:
        text = "there is none, so nobody knows what they may do with the weights"
        yield Finding("warning", "LICENSE", "", text, "add the licence of the weights")
    elif licence.kind != "open":
        yield Finding("note", "LICENSE", "", f"its class is {licence.kind}")


def _cause(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)
