"""`napari-seg models show totalsegmentator:TASK`: a task and its models, whether they are on this machine or not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from napari_seg.cli.exit_codes import ExitCode
from napari_seg.errors import one_line

if TYPE_CHECKING:
    from napari_seg.bundles.totalsegmentator.task import Part

_MAX_LINE = 2000


def show_task(name: str, as_json: bool) -> int:
    """Print a task, and return the exit status.

    Args:
        name: such as "totalsegmentator:total".
        as_json: print an object instead of text.

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
    """
    card = task_card(name)
    if as_json:
        print(json.dumps(card, indent=2))
        return ExitCode.DONE
    print(f"{card['title']}  {card['version']}   {card['modality']}   {'' if card['installed'] else 'not '}installed")
    print(f"  {card['description']}")
    print("  structures: " + one_line(", ".join(one["name"] for one in card["segments"]), _MAX_LINE))
    print(f"  licence: {card['licence']} ({card['licence_kind']})")
    if card["note"]:
        print(f"  note: {card['note']}")
    if card["looks_in"]:
        print(f"  looks at: {', '.join(card['looks_in']['structures'])}, found by {card['looks_in']['task']}")
    for model in card["models"]:
        size = "size unknown" if model["size_bytes"] is None else f"{model['size_bytes'] / 1e6:.0f} MB"
        print(f"  model {model['number']}: {model['folder']} ({size}); {model['trainer']}, {model['plans']}")
        print("    " + (one_line(model["found"], _MAX_LINE) if model["found"] else "missing"))
    print("  weights are looked for in: " + one_line(", ".join(card["looked_in"]), _MAX_LINE))
    print(f"  {card['advice']}")
    return ExitCode.DONE


def task_card(name: str) -> dict[str, Any]:
    """Return everything about a task as plain values.

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
    """
    from napari_seg.bundles.totalsegmentator.table import (
        VERSION,
        described,
        licensed_download,
        note_of,
        parts_needed,
        structures_of,
        task_of,
        title_of,
    )
    from napari_seg.bundles.totalsegmentator.task import PREFIX
    from napari_seg.bundles.totalsegmentator.weights import weight_folders

    task = task_of(name)
    models = [_model(part) for part in parts_needed(task)]
    missing = [model["number"] for model in models if model["found"] is None]
    command = f"napari-seg models add {PREFIX}{task.name}"
    if not missing:
        advice = f"use it with --model {PREFIX}{task.name}"
    elif task.licence_kind == "licensed":
        advice = f"its weights need a licence; with one, {licensed_download(task)}"
    else:
        advice = f"'{command}' fetches what is missing"
    return {
        "name": PREFIX + task.name,
        "title": title_of(task),
        "version": VERSION,
        "description": described(task),
        "modality": task.modality,
        "spacing_mm": task.spacing_mm,
        "segments": [{"label": one.label, "name": one.name} for one in structures_of(task)],
        "licence": task.licence,
        "licence_kind": task.licence_kind,
        "note": note_of(task),
        "looks_in": {"task": task.crop.task, "structures": list(task.crop.structures)} if task.crop else None,
        "models": models,
        "installed": not missing,
        "looked_in": [str(folder) for folder in weight_folders()],
        "advice": advice,
    }


def _model(part: Part) -> dict[str, Any]:
    from napari_seg.bundles.totalsegmentator.table import weights_of
    from napari_seg.bundles.totalsegmentator.weights import training_folder

    weights, folder = weights_of(part.number), training_folder(part)
    return {
        "number": part.number,
        "folder": weights.folder,
        "trainer": part.trainer,
        "plans": part.plans,
        "configuration": part.configuration,
        "folds": list(part.folds),
        "url": weights.url,
        "size_bytes": weights.size_bytes,
        "found": None if folder is None else str(folder),
    }
