"""Measure interactive refinement with simulated clicks against reference labels.

A click is put into the largest connected error, at the voxel that is farthest (in mm) from the error's border: positive
where the structure is missing, negative where it is too large. All clicks so far are given to each refinement, together
with the label map before the first one.

    python scripts/simulate_clicks.py --ct FOLDER --random-walker 5 --out clicks.json
    python scripts/simulate_clicks.py --hippocampus FOLDER --model MODEL
    python scripts/simulate_clicks.py --hippocampus FOLDER --model MODEL --parts parts.json --cases 30

The second command corrects the results of a model of `napari-seg train` on the test part of its training, the third one
those on the cases that parts.json (see `simulate_learning.py`) names "validation".
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_seg import Grid, read, read_bundle, segment
from napari_seg.editing.evidence import probability_of
from napari_seg.editing.prompts import Prompts
from napari_seg.editing.refine import MARGIN_MM, refine, warm_up
from napari_seg.training.part import part_of

CT_STRUCTURES = {
    "liver": 5,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "stomach": 6,
    "aorta": 52,
    "vertebra L1": 31,
    "vena cava": 63,
    "left back muscle": 86,
}
"""Label in TotalSegmentator's table; the slab shows no heart."""

SHOWN = (1, 3, 5, 10)


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the Dice overlap of two masks; 1 if both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def next_click(
    result: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int, int], bool] | None:
    """Return the voxel in the centre of the largest error and whether it is missing; None if there is no error."""
    largest, missing = np.zeros_like(truth), False
    for error, is_missing in ((truth & ~result, True), (result & ~truth, False)):
        parts, count = ndimage.label(error, np.ones((3, 3, 3)))
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            if sizes.max() > largest.sum():
                largest, missing = parts == sizes.argmax() + 1, is_missing
    if not largest.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(largest, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
    return (int(i), int(j), int(k)), missing


def damaged(
    truth: NDArray[np.bool_], spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a structure with the errors of a bad result: a piece too much, a piece missing, and a rough border.

    The pieces are balls around voxels of its surface, 0.8 times as large as the largest ball in it.
    """
    depth = ndimage.distance_transform_edt(truth, sampling=spacing_mm)
    surface = np.argwhere(truth & ~ndimage.binary_erosion(truth))
    result = truth.copy()
    for is_added in (True, False):
        center = surface[random.integers(len(surface))]
        squares = [np.square((np.arange(n) - c) * s) for n, c, s in zip(truth.shape, center, spacing_mm, strict=True)]
        distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
        result[distance < 0.8 * depth.max()] = is_added
    noise = ndimage.gaussian_filter(random.normal(size=truth.shape), 1.5)
    border = ndimage.binary_dilation(result) & ~ndimage.binary_erosion(result)
    result[border] = (noise > 0)[border]
    return result


@dataclass(frozen=True)
class Task:
    """One structure of one scan.

    Attributes:
        group: what it belongs to in the summary.
        name: name of the scan or the structure.
        image: (I, J, K) intensities.
        grid: grid of the scan.
        truth: (I, J, K) reference.
        start: (I, J, K) the structure before the first click; empty for a new one.
        probability: (I, J, K) of a network, 0 to 255, or None.
        others: (I, J, K) labels of the other structures, from 2 up; None if there are none.
        may_replace: whether the structure may take voxels of the others.
    """

    group: str
    name: str
    image: NDArray
    grid: Grid
    truth: NDArray[np.bool_]
    start: NDArray[np.bool_]
    probability: NDArray[np.uint8] | None = None
    others: NDArray[np.uint8] | None = None
    may_replace: bool = False


class Method(Protocol):
    """A way to find a structure from prompts."""

    def __call__(self, task: Task, prompts: Prompts) -> NDArray[np.bool_]: ...


def by_refine(task: Task, prompts: Prompts) -> NDArray[np.bool_]:
    """Return what `refine` finds."""
    labels = np.zeros(task.truth.shape, np.uint8) if task.others is None else task.others.copy()
    labels[task.start] = 1
    overwrite = range(2, int(labels.max()) + 1) if task.may_replace else ()
    refine(labels, task.grid, 1, task.image, prompts, probability=task.probability, overwrite=overwrite).apply(labels)
    return labels == 1


def by_random_walker(task: Task, prompts: Prompts) -> NDArray[np.bool_]:
    """Return what scikit-image's random walker finds in the same region, with the walls of the region as background.

    Where there is a start, its voxels deeper than 2 voxel sizes inside and outside are seeds too.
    """
    from skimage.segmentation import random_walker

    spacing = np.array(task.grid.spacing_mm)
    voxels = np.concatenate([prompts.positive, prompts.negative])
    margin = np.ceil(MARGIN_MM / spacing).astype(int)
    starts = np.maximum(voxels.min(axis=0) - margin, 0)
    stops = np.minimum(voxels.max(axis=0) + margin + 1, task.truth.shape)
    box = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    seeds = np.zeros(task.truth[box].shape, np.uint8)
    start = task.start[box]
    if start.any():
        deep = 2 * float(np.prod(spacing)) ** (1 / 3)
        seeds[ndimage.distance_transform_edt(start, sampling=spacing) > deep] = 1
        seeds[ndimage.distance_transform_edt(~start, sampling=spacing) > deep] = 2
        for voxel in voxels - starts:  # the clicks contradict the start around them
            near = tuple(slice(max(0, v - 2), v + 3) for v in voxel)
            seeds[near] = 0
    else:
        for axis in range(3):
            walls = np.moveaxis(seeds, axis, 0)
            walls[0] = walls[-1] = 2
    seeds[tuple((prompts.positive - starts).T)] = 1
    seeds[tuple((prompts.negative - starts).T)] = 2
    image = np.asarray(task.image[box], np.float64)
    low, high = np.percentile(image, [1, 99])
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walked = random_walker(scaled, seeds, beta=1000, mode="cg_j", tol=1e-3, spacing=tuple(spacing))
    result = task.start.copy()
    result[box] = walked == 1
    return result


def run(task: Task, method: Method, clicks: int) -> dict[str, Any]:
    """Return Dice before the first and after each click, and the time of each click."""
    positive: list[tuple[int, int, int]] = []
    negative: list[tuple[int, int, int]] = []
    result = task.start
    scores, seconds, cpu = [dice(result, task.truth)], [], []
    for _ in range(clicks):
        click = next_click(result, task.truth, task.grid.spacing_mm)
        if click is not None:
            (positive if click[1] else negative).append(click[0])
            prompts = Prompts(np.array(positive), np.array(negative))
            started, started_cpu = perf_counter(), process_time()
            result = method(task, prompts)
            seconds.append(perf_counter() - started)
            cpu.append(process_time() - started_cpu)
        scores.append(dice(result, task.truth))
    return {"group": task.group, "name": task.name, "dice": scores, "seconds": seconds, "cpu_seconds": cpu}


def ct_tasks(folder: Path) -> Iterator[Task]:
    """Yield the structures of the CT slab: from nothing, from the fast model's labels, with synthetic errors."""
    scan = read(folder / "example_ct_sm.nii.gz")
    image, grid = np.ascontiguousarray(scan.array[0], dtype=np.float32), scan.grid
    labels, fast = (
        np.asarray(nibabel.load(folder / name).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
        for name in ("example_seg.nii.gz", "example_seg_fast.nii.gz")
    )
    for name, value in CT_STRUCTURES.items():
        truth = labels == value
        damaged_one = damaged(truth, grid.spacing_mm, np.random.default_rng(value))
        yield Task("CT, from nothing", name, image, grid, truth, np.zeros_like(truth))
        others = np.where((fast > 0) & (fast != value), fast + 1, 0).astype(np.uint8)
        of_model = Task("CT, from the fast model", name, image, grid, truth, fast == value, others=others)
        yield of_model
        yield replace(of_model, group="CT, from the fast model, may replace others", may_replace=True)
        yield Task("CT, from a reference with synthetic errors", name, image, grid, truth, damaged_one)


def unseen_cases(folder: Path, part: str, model: Path) -> list[dict[str, str]]:
    """Return cases of a data set that a model was not trained on.

    Args:
        folder: data set.
        part: part of the split that trained the model: "test" or "validation".
        model: a bundle of `napari-seg train`.
    """
    data = part_of(folder, part, model)  # type: ignore[arg-type]
    return [{"name": case.name, "image": str(case.scans[0]), "label": str(case.reference)} for case in data.compared]


def named_cases(folder: Path, names: list[str]) -> list[dict[str, str]]:
    """Return cases of the Medical Segmentation Decathlon by name."""
    files = {"image": "imagesTr", "label": "labelsTr"}
    return [{"name": n, **{key: str(folder / sub / f"{n}.nii.gz") for key, sub in files.items()}} for n in names]


def hippocampus_tasks(cases: list[dict[str, str]], model: Path) -> Iterator[Task]:
    """Yield both structures of cases, with a model's result and from nothing.

    Args:
        cases: for each case its name and the files of its image and its label map.
        model: a bundle.
    """
    bundle = read_bundle(model, trust=True)
    for case in cases:
        scan = read(Path(case["image"]))
        image = np.ascontiguousarray(scan.array[0], dtype=np.float32)
        truth = np.asarray(nibabel.load(case["label"]).dataobj)  # type: ignore[attr-defined]
        found = segment(scan, bundle, confidence_maps=True, device="cpu")
        assert found.confidence_maps is not None
        for label, name in ((1, "anterior"), (2, "posterior")):
            start = found.array == label
            chance = probability_of(found.array, label, found.confidence_maps.confidence)
            others = np.where((found.array > 0) & ~start, 2, 0).astype(np.uint8)
            one = Task("", f"{case['name']} {name}", image, scan.grid, truth == label, start, others=others)
            sure = replace(one, probability=chance)
            yield replace(sure, group="hippocampus, from the model and its confidence")
            yield replace(sure, group="hippocampus, the same, may replace the other part", may_replace=True)
            yield replace(one, group="hippocampus, from the model's labels")
            yield replace(one, group="hippocampus, from nothing", start=np.zeros_like(start), others=None)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the mean Dice of each group, and in the CT that of each structure, as Markdown."""
    head = [0, *(n for n in SHOWN if n < len(rows[0]["dice"]))]
    lines = [
        f"| | {' | '.join(f'{n} clicks' for n in head)} | s per click | CPU s per click | longest CPU s |",
        "|" + "---|" * (len(head) + 4),
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        parts = [(f"**{group}**, mean of {len(members)}", members)]
        if group.startswith("CT"):
            parts += [(f"{row['name']}", [row]) for row in members]
        for name, some in parts:
            means = [np.mean([row["dice"][n] for row in some]) for n in head]
            times = [np.concatenate([row[key] for row in some] or [[0.0]]) for key in ("seconds", "cpu_seconds")]
            numbers = [*means, times[0].mean(), times[1].mean(), times[1].max()]
            lines.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table for each method, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, help="folder of TotalSegmentator's example CT and its label maps")
    parser.add_argument("--hippocampus", type=Path, help="folder of Task04 of the Decathlon")
    parser.add_argument("--cases", type=int, default=20, help="number of hippocampus cases")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="part of the model's split")
    parser.add_argument("--model", type=Path, help="bundle whose results are corrected, with --hippocampus")
    parser.add_argument("--parts", type=Path, help='JSON: names of the cases "validation"; default: those of --part')
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--random-walker", type=int, default=0, metavar="CLICKS", help="also measure it, so far")
    parser.add_argument("--out", type=Path, default=Path("clicks.json"))
    arguments = parser.parse_args()
    if arguments.hippocampus and not arguments.model:
        parser.error("found --hippocampus without --model; the shipped model was trained on all of its cases")
    warm_up()
    tasks: list[Task] = []
    if arguments.ct:
        tasks += ct_tasks(arguments.ct)
    if arguments.hippocampus:
        folder, parts = arguments.hippocampus, arguments.parts
        names = json.loads(parts.read_text())["validation"] if parts else []
        cases = named_cases(folder, names) if parts else unseen_cases(folder, arguments.part, arguments.model)
        tasks += hippocampus_tasks(cases[: arguments.cases], arguments.model)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, method, clicks in (
        ("refine", by_refine, arguments.clicks),
        ("random walker", by_random_walker, arguments.random_walker),
    ):
        if clicks:
            results[name] = [run(task, method, clicks) for task in tasks]
            print(f"\n{name}\n\n{table(results[name])}", flush=True)
    arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
