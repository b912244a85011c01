"""A folder of small scans, segmented by one run, by a process for each scan, and by nnU-Net, with the same weights."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from benchmarks.learning import Training, learnt_weights
from benchmarks.measuring import NAPARI_SEG, SPAWN, compare, machine, spread, watch
from benchmarks.networks import Standard, make_nnunet_model
from benchmarks.predict import PEER_VERSIONS, VERSIONS, dice, versions_in
from benchmarks.report import describe_machine, describe_spread, paragraph, table
from numpy.typing import NDArray

RUNS = {
    "fast": "napari-seg, the folder, `--match fast`",
    "bfloat16": "napari-seg, the folder, `--match fast --precision bfloat16`",
    "labels": "napari-seg, the folder, `--match fast --precision bfloat16 --no-preview`: labels alone, as nnU-Net",
    "exact": "napari-seg, the folder, `--match exact --tta none`",
    "each": "napari-seg, a process for each scan, `--match fast`",
    "nnunet": "nnU-Net, the folder, `-npp 2 -nps 2 --disable_tta`",
}
_FAST = ("--match", "fast")
OPTIONS = {
    "fast": _FAST,
    "bfloat16": (*_FAST, "--precision", "bfloat16"),
    "labels": (*_FAST, "--precision", "bfloat16", "--no-preview"),
    "exact": ("--match", "exact", "--tta", "none"),
    "each": _FAST,
}
PHASES = ("read", "network", "write")


def cohort(args: argparse.Namespace) -> dict[str, object]:
    """Return scans a minute, seconds to the first result, processor time and memory of each program."""
    about = machine(VERSIONS)
    about["versions"] |= versions_in(args.peer, PEER_VERSIONS)
    work = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    scans = link_scans(args.folder, work / "cohort_scans", args.cases)
    network = Standard(args.classes, tuple(args.features), max(args.windows))
    training = Training(args.training_steps, min(args.windows))
    model = work / "_".join(map(str, ["cohort_model", *args.windows, "of", *args.features]))
    if not model.exists():
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            pool.submit(make_model, scans[0], model, network, training, args.windows).result()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.only or RUNS}
    for n in range(args.rounds):
        for name in runs if n % 2 == 0 else reversed(runs):
            chosen = scans[: args.sample] if name == "each" else scans
            runs[name].append(run(name, chosen, model, work / "cohort_runs" / name, args.peer))
            print(f"round {n + 1} of {args.rounds}: {name} {runs[name][-1]}", file=sys.stderr, flush=True)
    return {
        "machine": about,
        "scans": len(scans),
        "sample": min(args.sample, len(scans)),
        "rounds": args.rounds,
        "network": asdict(network),
        "windows": list(args.windows),
        "runs": summary(runs, {name: labels(work / "cohort_runs" / name / "labels", scans) for name in runs}),
    }


def link_scans(folder: Path, links: Path, count: int | None) -> list[Path]:
    """Return the scans of a folder, under the names that nnU-Net expects."""
    found = sorted(path for path in folder.glob("*.nii.gz") if not path.name.startswith("."))[:count]
    if not found:
        raise SystemExit(f"found no *.nii.gz in {folder}")
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    scans = [links / f"{path.name.removesuffix('.nii.gz')}_0000.nii.gz" for path in found]
    for scan, path in zip(scans, found, strict=True):
        shutil.copy(path, scan)
    return scans


def make_model(scan: Path, root: Path, network: Standard, training: Training, windows: Sequence[int]) -> None:
    """Write a model of nnU-Net that has learnt a rule on one of the scans; `windows` is the size of its windows."""
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.with_name(f"part_{root.name}")
    learnt = learnt_weights(root.with_name(f"{root.name}.pt"), scan, network, training)
    make_nnunet_model(part, network, learnt["model"])
    plans = json.loads((part / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = list(windows)
    (part / "plans.json").write_text(json.dumps(plans, indent=1))
    part.rename(root)


def run(name: str, scans: Sequence[Path], model: Path, folder: Path, peer: Path) -> dict[str, float]:
    """Segment scans in one way, and return what it took."""
    shutil.rmtree(folder, ignore_errors=True)
    output = folder / "labels"
    if name == "nnunet":
        program = peer.with_name("nnUNetv2_predict_from_modelfolder")
        words: list[object] = [program, "-i", scans[0].parent, "-o", output, "-m", model, "-f", "0", "-device", "cpu"]
        commands = [[*words, "-npp", "2", "-nps", "2", "--disable_tta"]]
    else:
        inputs = scans if name == "each" else [scans[0].parent]
        options = ("-o", output, "--model", model, "--device", "cpu", *OPTIONS[name])
        commands = [[*NAPARI_SEG, "predict", one, *options] for one in inputs]
    processor, start = _processor_seconds(), time.time()
    watched = [watch(command, folder) for command in commands]
    ended = sorted(path.stat().st_mtime for path in label_files(output))
    if len(ended) != len(scans):
        raise SystemExit(f"{name} wrote {len(ended)} label maps of {len(scans)} scans; {folder} tells more")
    seconds = sum(one.seconds for one in watched)
    figures = {
        "seconds": seconds,
        "per_minute": 60 * len(scans) / seconds,
        "processor_seconds": _processor_seconds() - processor,
        "first_seconds": ended[0] - start,
        "peak_gib": max(one.peak_bytes for one in watched) / 2**30,
    }
    return figures | ({} if name == "nnunet" else phases(output))


def _processor_seconds() -> float:
    """Return the processor time of all processes that this one has waited for, and of those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def phases(output: Path) -> dict[str, float]:
    """Return the fraction of the workers' time that each phase took, from the manifest."""
    from napari_seg.cohort.manifest import Manifest

    with Manifest.open(output, read_only=True) as manifest:
        rows = list(manifest.rows(("done",)))
    total = sum(row.seconds for row in rows)
    return {phase: sum(getattr(row, f"{phase}_seconds") for row in rows) / total for phase in PHASES}


def label_files(output: Path) -> list[Path]:
    """Return the label maps that either program wrote into a folder."""
    return [path for path in output.glob("*.nii.gz") if not path.name.startswith(".")]


def labels(folder: Path, scans: Sequence[Path]) -> list[NDArray]:
    """Return the label map of each scan, in order; fewer if only the first ones were segmented."""
    import nibabel

    found = {path.name.split(".")[0].removesuffix("_seg").removesuffix("_0000"): path for path in label_files(folder)}
    names = [scan.name.removesuffix("_0000.nii.gz") for scan in scans]
    return [np.asarray(nibabel.load(found[name]).dataobj).astype(np.uint8) for name in names if name in found]


def summary(runs: dict[str, list[dict[str, float]]], found: dict[str, list[NDArray]]) -> dict[str, dict]:
    """Return the figures of each program, and how its speed and its labels compare with nnU-Net's."""
    rows: dict[str, dict] = {}
    for name, taken in runs.items():
        row: dict[str, object] = {key: spread([one[key] for one in taken]) for key in taken[0]}
        if "nnunet" in runs:
            for key in ("per_minute", "processor_seconds"):
                ours, theirs = ([[one[key]] for one in runs[one_name]] for one_name in (name, "nnunet"))
                if key == "per_minute" or len(found[name]) == len(found["nnunet"]):
                    row[f"{key}_ratio"] = compare(ours, theirs)
            pairs = list(zip(found[name], found["nnunet"], strict=False))
            mine, peer = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
            row |= {"equal": float(np.mean(mine == peer)), "dice": dice(mine[None], peer[None])}
        rows[name] = row
    return rows


def describe_cohort(figures: dict) -> str:
    """Return the section of benchmarks.md about a folder of small scans."""
    network = figures["network"]
    lines = ["## A folder of small scans", ""]
    lines += paragraph(
        f"{figures['scans']} scans in one folder and one model of nnU-Net",
        f"({len(network['features'])} stages of {', '.join(map(str, network['features']))} channels, windows of",
        f"{'×'.join(map(str, figures['windows']))}, {network['classes']} classes), which has learnt a rule on one",
        "of the scans: the table shows speed and agreement, not accuracy. Each run goes from the start of its process",
        f"to its end; runs take turns, and figures are medians of {figures['rounds']} rounds with minimum and maximum.",
        f'The row with a process for each scan is measured over {figures["sample"]} scans. "First" is the time to',
        "the first label map. Processor time and memory are those of all processes of a program together.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    head = ["program", "scans a minute", "times nnU-Net's", "first, s", "processor, s a scan", "memory, GiB"]
    head += ["read / network / write", "voxels equal to nnU-Net's", "Dice with nnU-Net, by label"]
    rows = []
    for name, row in figures["runs"].items():
        count = figures["sample"] if name == "each" else figures["scans"]
        shares = [f"{row[phase]['median']:.0%}" for phase in PHASES if phase in row]
        ratio = row.get("per_minute_ratio")
        rows.append(
            [
                RUNS[name],
                describe_spread(row["per_minute"]),
                describe_spread(ratio) if ratio else "",
                f"{row['first_seconds']['median']:.1f}",
                f"{row['processor_seconds']['median'] / count:.2f}",
                f"{row['peak_gib']['greatest']:.2f}",
                " / ".join(shares),
                f"{row['equal']:.3%}" if "equal" in row else "",
                " ".join("–" if one is None else f"{one:.4f}" for one in row.get("dice", [])),
            ]
        )
    return "\n".join([*lines, *table(head, rows), ""])
