"""Consent to run a bundle's code, and checks before a bundle runs. Nothing of the bundle runs here.

Consent holds for one `consent_hash` (see `content.py`) and is remembered in `trust.json` of the store. If anything in
the bundle that can act changes, consent is asked again. A consent that an earlier version remembered, for a
`content_hash`, holds if all files that this hash knows by name only are plain data. A bundle that a program read with
`read_bundle(..., trust=True)`, and the shipped bundle, need no hash.
"""

from __future__ import annotations

import json
import logging
import shlex
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import inference_config, read_config
from napari_seg.bundles.content import Cause, CodeLine, code_lines, consent_hash, content_hash, files_of
from napari_seg.bundles.output import Output
from napari_seg.bundles.parts import nnunet_models
from napari_seg.bundles.places import store_root
from napari_seg.bundles.postprocessing import read_output
from napari_seg.bundles.read import inner_bundles, read_bundle
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.bundles.ways import resolver_of, way_of
from napari_seg.bundles.weights.files import inspect_weights
from napari_seg.bundles.weights.find import find_weights
from napari_seg.bundles.workflow_plan import plan_workflow
from napari_seg.errors import BundleError, one_line
from napari_seg.formats.atomic import atomic_write

log = logging.getLogger(__name__)

_MAX_TRUST_BYTES = 2**22
_SHOWN_LINES = 2

_CODES: dict[Cause, str] = {
    "module": "bundle.untrusted",
    "compiled": "bundle.untrusted",
    "expression": "bundle.foreign_expression",
    "target": "bundle.foreign_target",
    "program": "bundle.torchscript",
    "pickle": "bundle.weights_unsafe",
    "link": "bundle.link",
}
"""Cause -> code of the refusal; the first one that a bundle has counts."""


def is_trusted(bundle: Bundle) -> bool:
    """Return whether a bundle's code may run: its content was consented to, and has not changed."""
    if bundle.trusted:
        return True
    consents = _read_consents()
    try:
        return bool(consents) and (consent_hash(bundle) in consents or _unchecked(bundle, consents) == [])
    except BundleError:
        return False


def remember(bundle: Bundle) -> str:
    """Remember the consent to a bundle's present content, and to the bundles inside it that it runs; return its hash.

    Raises:
        BundleError: as for `consent_hash`.
        OSError: the store can't be written.
    """
    for inner in _inner(bundle):
        _remember(inner)
    return _remember(bundle)


def _inner(bundle: Bundle) -> tuple[Bundle, ...]:
    """Return the bundles inside a bundle that it runs, with those inside them."""
    if isinstance(bundle, EnsembleBundle):
        found = bundle.members if way_of(bundle).needs_consent else ()
    else:
        found = inner_bundles(bundle)
    return tuple(one for inner in found for one in (*_inner(inner), inner))


def _remember(bundle: Bundle) -> str:
    digest, folder = consent_hash(bundle), str(bundle.root.resolve())
    consents = {key: entry for key, entry in _read_consents().items() if entry.get("folder") != folder}
    consents[digest] = {"name": bundle.name, "folder": folder, "since": datetime.now(UTC).isoformat(timespec="seconds")}
    _write_consents(consents)
    return digest


def _unchecked(bundle: Bundle, consents: dict[str, dict[str, Any]]) -> list[str] | None:
    """Return the files whose content an earlier version's consent to a bundle does not cover; None without one."""
    if content_hash(bundle) not in consents:
        return None
    return [file.name for file in files_of(bundle.root) if file.is_data and not file.may_change]


def forget(root: Path) -> None:
    """Forget the consent to the bundle in a folder and to those inside it, whatever their content is now.

    Raises:
        OSError: the store can't be written.
    """
    digests = set()
    with suppress(BundleError):  # the folder tells which consents are meant, too
        bundle = read_bundle(root)
        for each in (bundle, *_inner(bundle)):
            digests |= {consent_hash(each), content_hash(each)}
    consents, folder = _read_consents(), root.resolve()
    kept = {
        key: entry
        for key, entry in consents.items()
        if key not in digests and not Path(str(entry.get("folder", ""))).is_relative_to(folder)
    }
    if kept != consents:
        _write_consents(kept)


def check_consent(bundle: Bundle) -> None:
    """Check that a bundle's code may run, from its content at this moment.

    Raises:
        BundleError: `bundle.trust_changed`, the content changed since the user's consent, or an earlier version did not
            check all of it; `bundle.untrusted`, the bundle contains code; `bundle.foreign_expression` or
            `bundle.foreign_target`, a config does; `bundle.torchscript` or `bundle.weights_unsafe`, its weights do;
            `bundle.link`, it leads to other folders.
    """
    if bundle.trusted:
        return
    needs_consent = way_of(bundle).needs_consent
    links = [file for file in files_of(bundle.root) if file.leads_out]
    if not (needs_consent or links):
        return
    consents = _read_consents()
    if consent_hash(bundle) in consents:
        return
    unchecked = _unchecked(bundle, consents)
    if unchecked == []:
        with suppress(OSError):  # a store that can't be written
            _remember(bundle)
        return
    name, folder = one_line(bundle.root.name, 120), str(bundle.root.resolve())
    if not needs_consent:
        found = f"{links[0].name} of bundle {name!r} is a link to {one_line(links[0].target, 200)}, outside the bundle"
        raise BundleError("bundle.link", _refusal(found, []))
    lines = code_lines(bundle)
    if unchecked:
        found = f"you trusted bundle {name!r} in a version that knew a file by name only; its content counts now: "
        found += one_line(unchecked[0], 120) + f" and {len(unchecked) - 1} more" * (len(unchecked) > 1)
        raise BundleError("bundle.trust_changed", _refusal(found, lines))
    if any(entry.get("folder") == folder for entry in consents.values()):
        found = f"bundle {name!r} changed since you trusted it: its code, or a file that its code can read"
        raise BundleError("bundle.trust_changed", _refusal(found, lines))
    found = f"loading bundle {name!r} runs code that comes with it"
    code = next((_CODES[line.cause] for line in lines if line.cause in _CODES), "bundle.untrusted")
    raise BundleError(code, _refusal(found, lines))


def _refusal(found: str, lines: list[CodeLine]) -> str:
    shown = "; ".join(f"{line.place} {one_line(line.text, 160)!r}" for line in lines[:_SHOWN_LINES])
    more = f" and {len(lines) - _SHOWN_LINES} more" * (len(lines) > _SHOWN_LINES)
    return (
        f"{found}{f' ({shown}{more})' if shown else ''}; if you trust its source, allow that with --trust, or "
        "read_bundle(..., trust=True)"
    )


def _consents_file() -> Path:
    return store_root() / "trust.json"


def _read_consents() -> dict[str, dict[str, Any]]:
    """Return consent hash -> the consent to it; nothing if the file is missing or damaged."""
    try:
        with _consents_file().open("rb") as file:
            entries = json.loads(file.read(_MAX_TRUST_BYTES)).get("trusted")
        return {str(key): entry for key, entry in dict(entries or {}).items() if isinstance(entry, dict)}
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged file trusts nothing
        log.warning("%s can't be read (%s), so no consent is remembered", _consents_file(), type(error).__name__)
        return {}


def _write_consents(consents: dict[str, dict[str, Any]]) -> None:
    path = _consents_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({"trusted": consents}, indent=2) + "\n")


def check_runnable(bundle: Bundle) -> None:
    """Check that a bundle is trusted, complete and supported, before any long work and without running its code.

    Raises:
        BundleError: `bundle.task`, the bundle does not segment; as for `check_consent`, unless nothing of it runs;
            `bundle.weights`, they are missing; `bundle.postprocessing`, it has steps that are not recognised;
            `bundle.config`, the inference config can't be read.
    """
    if bundle.kind != "monai":
        for model in nnunet_models(bundle):
            for fold in model.folds:
                _check_weights(model, model.root / fold / model.checkpoint)
        if isinstance(bundle, EnsembleBundle):
            _check_members(bundle)
        return
    resolver = resolver_of(bundle)
    way = way_of(bundle, resolver)
    if way.kind == "refused":
        raise BundleError(
            "bundle.task",
            f"bundle {bundle.root.name!r} does not segment structures ({'; '.join(way.reasons)}); choose another one",
        )
    check_consent(bundle)
    path = inference_config(bundle.root)
    try:
        output = read_output(resolver.entries, bundle.out_channels, bundle.thresholds, bundle.background)
    except Exception as error:  # a damaged file can raise anything
        cause = one_line(f"{type(error).__name__}: {error}", 200)
        text = f"{path.name} of bundle {bundle.root.name!r} can't be read ({cause}); expected a MONAI config"
        raise BundleError("bundle.config", text) from error
    if way.kind == "workflow":
        try:
            plan_workflow(bundle)
            return
        except BundleError:
            if isinstance(output, Output):
                raise
    if not isinstance(output, Output):
        raise BundleError(
            "bundle.postprocessing",
            f"bundle {bundle.root.name!r} makes its labels by {', '.join(output)}, which napari-seg does not support "
            "yet; expected argmax, or sigmoid and a threshold, and MONAI's transforms of labels; run it with MONAI: "
            f"{command_of_monai(bundle)}",
        )
    _check_weights(bundle, find_weights(resolver).path)
    for inner in inner_bundles(bundle):
        check_runnable(inner)


def _check_members(bundle: EnsembleBundle) -> None:
    way = way_of(bundle)
    if way.kind == "refused":
        raise BundleError(
            "bundle.config",
            f"the members of {bundle.name!r} can't be averaged, because MONAI has to run one of them as it is written: "
            f"{'; '.join(way.reasons)}; choose one of the members",
        )
    check_consent(bundle)
    for member in bundle.members:
        check_runnable(member)


def _check_weights(bundle: Bundle, path: Path) -> None:
    """Check that a file of weights calls no functions; the engine loads no other file, whoever consented to it.

    Raises:
        BundleError: `bundle.weights_unsafe`.
    """
    try:
        status = path.stat()
        calls = _calls_in(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError:  # loading it says why
        return
    if calls:
        raise BundleError(
            "bundle.weights_unsafe",
            f"{path.name} of bundle {bundle.root.name!r} is a pickle that calls {one_line(', '.join(calls[:3]), 200)}; "
            "expected tensors alone; save the network's state dictionary with torch.save, or as safetensors",
        )


@lru_cache(maxsize=64)
def _calls_in(path: Path, status: tuple[int, ...]) -> tuple[str, ...]:
    """Return the functions that a file of weights calls; a file whose status changes is read again."""
    return inspect_weights(path).calls


def command_of_monai(bundle: Bundle) -> str:
    """Return the command that runs a bundle in MONAI; the user replaces the words in capitals."""
    path = inference_config(bundle.root)
    config = read_config(path)
    run_id = "inference " if "inference" in config else ""
    values = {"dataset_dir": "IMAGES", "output_dir": "RESULTS"}
    options = [f"--{name} {value}" for name, value in values.items() if name in config]
    return " ".join([f"python -m monai.bundle run {run_id}--config_file {shlex.quote(str(path))}", *options])
