#!/usr/bin/env python3
"""Write the tables of TotalSegmentator's tasks and structures from an installed TotalSegmentator.

pip install TotalSegmentator==2.18.0
python scripts/totalsegmentator_tasks.py

It writes `tasks.json` and `structures.json` in napari_seg/bundles/totalsegmentator/. Only facts are taken: numbers and
names of models, settings, label maps, codes of SNOMED CT and colours. Nothing of TotalSegmentator runs.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parents[1] / "napari_seg" / "bundles" / "totalsegmentator"

SOURCE = "https://github.com/wasserth/TotalSegmentator"
LICENCE = "Apache-2.0"

PLANS, SMALL_PLANS = "nnUNetPlans", "nnUNetResEncUNetLPlans_8"

LEFT_OUT = {"test", "total_highres_test"}
"""Tasks whose weights are not published."""

NON_COMMERCIAL = {"brain_aneurysm": "CC-BY-NC-4.0"}
"""Licences of weights that are open to look at but not for commercial use, as TotalSegmentator's README says."""

LICENSED = (
    "TotalSegmentator licence, https://backend.totalsegmentator.com/license-academic/ (free for non-commercial use)"
)

MR_TASKS = {"brain_aneurysm"}
"""Tasks of MR images whose names do not end in "_mr"."""

NOTES = {"brain_aneurysm": "it works with time-of-flight MR images only"}

MARGIN_MM = 20
"""Margin of a rough crop that TotalSegmentator sets in place of the task's own, unless a task has a model for it."""

STEPS = {
    "vertebrae_pp": ["vertebrae_pp"],
    "vertebrae_pp_refined": ["vertebrae_pp", "vertebrae_pp_refined"],
}
"""Steps on the label map that belong to one task."""

MASK = {"number": 305, "trainer": "nnUNetTrainer_DASegOrd0"}
"""Model of the vertebral bodies, which limits the result of vertebrae_pp_refined; it labels nothing."""

SIZES_MB = {291: 234, 292: 234, 293: 234, 294: 234, 295: 234, 297: 135, 298: 135, 299: 233, 300: 124} | {
    831: 435, 832: 334, 833: 334, 834: 334, 835: 334, 836: 242, 837: 132
}  # fmt: skip
"""Sizes of the published zips in MB, where they are known."""


def installed_folder() -> Path:
    """Return the folder of the installed TotalSegmentator."""
    found = importlib.util.find_spec("totalsegmentator")
    if found is None or not found.submodule_search_locations:
        sys.exit("TotalSegmentator is not installed; expected pip install TotalSegmentator==2.18.0")
    return Path(found.submodule_search_locations[0])


def module_at(path: Path) -> SimpleNamespace:
    """Return the values in a module of plain data."""
    return SimpleNamespace(**runpy.run_path(str(path)))


def variants(name: str, given: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """Return name, settings and plans of a task and of its faster and smaller forms."""
    modes = given.get("sub_modes")
    if not modes:
        return [(name, given, PLANS)]
    found = []
    for mode in ("default", "fast", "fastest"):
        if mode in modes:
            found.append((name if mode == "default" else f"{name}_{mode}", modes[mode], PLANS))
    if name == "total_v3":  # the only task with a second size; its 6 mm model has one size
        found += [(f"{name}_small", modes["default"], SMALL_PLANS), (f"{name}_small_fast", modes["fast"], SMALL_PLANS)]
    return found


def part_labels(number: int, base: str, maps: SimpleNamespace) -> list[int]:
    """Return the label in the result of each label of a network, from 1 on."""
    structures = maps.class_map[base]
    parts = {
        "total": (maps.map_taskid_to_partname_ct, maps.class_map_5_parts),
        "total_v3": (maps.map_taskid_to_partname_ct_v3, maps.class_map_5_parts_total_v3),
        "total_mr": (maps.map_taskid_to_partname_mr, maps.class_map_parts_mr),
        "headneck_muscles": (maps.map_taskid_to_partname_headneck_muscles, maps.class_map_parts_headneck_muscles),
    }
    names, classes = parts.get(base, ({}, {}))
    if number not in names:
        labels = {*structures, *maps.class_map.get(f"{base}_auxiliary", {})}
        return [label if label in labels else 0 for label in range(1, max(labels) + 1)]
    labels_of = {name: label for label, name in structures.items()}
    part = classes[names[number]]
    return [labels_of[part[label]] if label in part else 0 for label in range(1, max(part) + 1)]


def crop_of(base: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return where a task looks; None: at the whole scan."""
    structures = settings.get("crop")
    if not structures:
        return None
    if model := settings.get("crop_model"):
        return {"task": model, "structures": structures, "margin_mm": settings["crop_addon"]}
    if {"body_trunc", "body_extremities"} & set(structures):
        task = "body_fast"
    elif base.endswith("_mr"):
        task = "total_mr_fast"
    else:
        task = "total_fast" if settings.get("robust_crop") else "total_fastest"
    return {"task": task, "structures": structures, "margin_mm": [MARGIN_MM] * 3}


def task_of(name: str, base: str, settings: dict[str, Any], plans: str, maps: SimpleNamespace) -> dict[str, Any]:
    """Return a task as `tasks.json` has it."""
    settings = {"resample": None, "model": "3d_fullres", "folds": [0]} | settings
    modality = "MR" if base.endswith("_mr") or base in MR_TASKS else "CT"
    spacing, numbers = settings["resample"], settings["task_id"]
    shared = {"plans": plans, "configuration": settings["model"], "folds": settings["folds"] or []}
    parts = [
        {"number": number, "trainer": settings["trainer"]} | shared | {"labels": part_labels(number, base, maps)}
        for number in (numbers if isinstance(numbers, list) else [numbers])
    ]
    if base == "vertebrae_pp_refined":
        parts.append(MASK | shared | {"labels": []})
    crop = crop_of(base, settings)
    is_total = base in ("total", "total_v3", "total_mr")
    licensed = base in maps.commercial_models
    return {
        "name": name,
        "modality": modality,
        "spacing_mm": [spacing] * 3 if isinstance(spacing, float) else spacing,
        "structures": base,
        "parts": parts,
        "overlap": 0.2 if is_total else 0.5,
        "crop": crop,
        "subset_task": ("total_mr_fast" if base == "total_mr" else "total_fastest") if is_total else "",
        "auxiliary": sorted(maps.class_map.get(f"{base}_auxiliary", {})),
        "body": base == "body",
        "steps": STEPS.get(base, []),
        "remove_outside": settings.get("remove_outside") or [],
        "remove_outside_mm": settings.get("remove_outside_dilation") or 0,
        "licence": LICENSED if licensed else NON_COMMERCIAL.get(base, LICENCE),
        "licence_kind": "licensed" if licensed else "non-commercial" if base in NON_COMMERCIAL else "open",
        "note": NOTES.get(base, ""),
    }


def structure_of(row: dict[str, str]) -> dict[str, Any]:
    """Return the codes and the colour of a structure."""
    found: dict[str, Any] = {}
    for key, column in (("category", "Category"), ("type", "Type"), ("modifier", "TypeModifier")):
        start = f"SegmentedProperty{column}CodeSequence."
        code = [row[start + end] for end in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
        if all(code):
            found[key] = code
    if row["DicomRGBColor"]:
        found["color"] = [int(one) for one in row["DicomRGBColor"].split(",")]
    return found


def main() -> None:
    """Write both tables."""
    folder = installed_folder()
    version = next(folder.parent.glob("[Tt]otal[Ss]egmentator-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    settings, maps = module_at(folder / "map_tasks_config.py"), module_at(folder / "map_to_binary.py")
    tasks = [
        task_of(name, base, given, plans, maps)
        for base, one in settings.TASK_CONFIGS.items()
        if base not in LEFT_OUT
        for name, given, plans in variants(base, one)
    ]
    numbers = {part["number"] for task in tasks for part in task["parts"]}
    weights = {}
    for number in sorted(numbers):
        one = settings.TASK_ID_WEIGHTS_CONFIGS[number]
        size = SIZES_MB.get(number)
        weights[str(number)] = {"folder": one["foldername"], "release": one.get("version", "")} | (
            {"size_bytes": size * 10**6} if size else {}
        )
    bases = dict.fromkeys(task["structures"] for task in tasks)
    structures = {base: {str(n): name for n, name in sorted(maps.class_map[base].items())} for base in bases}
    about = {"source": f"{SOURCE} {version}", "licence": LICENCE}
    lines = ",\n  ".join(json.dumps(task) for task in tasks)
    rows = [f'"{key}": {json.dumps(value)}' for key, value in about.items()]
    for key, table in (("weights", weights), ("structures", structures)):
        inner = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items())
        rows.append(f'"{key}": {{\n  {inner}\n }}')
    text = "{\n " + ",\n ".join([*rows, f'"tasks": [\n  {lines}\n ]']) + "\n}\n"
    (FOLDER / "tasks.json").write_text(text, encoding="utf-8")
    names = {name for base in bases for name in maps.class_map[base].values()}
    with (folder / "resources" / "totalsegmentator_snomed_mapping.csv").open(encoding="utf-8", newline="") as file:
        found = {row["Structure"]: structure_of(row) for row in csv.DictReader(file) if row["Structure"] in names}
    inner = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    rows = [f'"{key}": {json.dumps(value)}' for key, value in about.items()]
    text = "{\n " + ",\n ".join([*rows, f'"structures": {{\n  {inner}\n }}']) + "\n}\n"
    (FOLDER / "structures.json").write_text(text, encoding="utf-8")
    print(f"wrote {len(tasks)} tasks of {len(weights)} models, and {len(found)} structures with codes")


if __name__ == "__main__":
    main()
