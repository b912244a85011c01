"""A scan segmented with the same weights by nnU-Net, by MONAI and by napari-seg, each a process from file to file."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.learning import Training, learnt_weights
from benchmarks.measuring import NAPARI_SEG, SPAWN, Watched, compare, machine, spread, watch
from benchmarks.networks import Standard, make_bundle, make_nnunet_model, spacing_by_nnunet
from benchmarks.report import describe_machine, describe_spread, paragraph, table
from numpy.typing import NDArray

CONTENDERS = {
    "nnunet": "nnU-Net, `--disable_tta`",
    "nnunet-tta": "nnU-Net, default (eight mirror images)",
    "monai": "MONAI, overlap 0.25",
    "napari": "napari-seg, default",
    "napari-small": "napari-seg, `--memory 2GiB`",
    "napari-float32": "napari-seg, `--precision float32`",
    "napari-bfloat16": "napari-seg, `--precision bfloat16`",
    "napari-uncropped": "napari-seg, air too (`--no-crop`)",
    "napari-nnunet": "napari-seg, nnU-Net's windows",
    "napari-monai": "napari-seg, MONAI's windows",
    "napari-torch": "napari-seg, MONAI's windows, torch",
    "model": "napari-seg, nnU-Net's folder, `--match fast`",
    "model-float32": "napari-seg, nnU-Net's folder, `--match fast --precision float32`",
    "model-exact": "napari-seg, nnU-Net's folder, `--match exact --tta none`",
}
MONAI_OVERLAP, NNUNET_OVERLAP = 0.25, 0.5
AS_IN_BUNDLE = ("--windows", "bundle", "--no-crop")
OF_MODEL = {
    "model": ("--match", "fast"),
    "model-float32": ("--match", "fast", "--precision", "float32"),
    "model-exact": ("--match", "exact", "--tta", "none"),  # nnU-Net runs without mirror images too
}
VERSIONS = ("napari-seg", "torch", "openvino", "monai", "dynamic-network-architectures")
PEER_VERSIONS = ("nnunetv2", "torch")


@dataclass(frozen=True)
class Made:
    """What the contenders are given.

    Attributes:
        folder: where all this lies.
        dice: that the network reached on what it was trained on.
        peer: Python of the environment of nnU-Net.
    """

    folder: Path
    dice: float
    peer: Path = Path(sys.executable)

    @property
    def scan(self) -> Path:
        """As nnU-Net wants it called; everyone gets this file."""
        return self.folder / "scan" / "scan_0000.nii.gz"

    def bundle(self, overlap: float) -> Path:
        return self.folder / f"bundle_{overlap}"


def predict(args: argparse.Namespace) -> dict[str, object]:
    """Seconds and peak memory of each contender, and how far their label maps agree."""
    import torch

    from napari_seg.bundles.precision import has_bfloat16

    about = machine(VERSIONS)
    about["versions"] |= versions_in(args.peer, PEER_VERSIONS)
    network = Standard(args.classes, tuple(args.features), args.patch)
    has_half = has_bfloat16(torch.device("cpu"))
    training = Training(args.training_steps, args.training_patch, amp=args.training_amp and has_half)
    work = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    folder = work / f"predict_{fingerprint(args.scan, network, training)}"
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        made = replace(pool.submit(make, args.scan, folder, network, training).result(), peer=args.peer)
    left_out = {"nnunet-tta": not args.tta, "napari-float32": not has_half, "napari-bfloat16": not has_half}
    wanted = args.only or [key for key in CONTENDERS if not left_out.get(key)]
    runs = run_rounds(made, wanted, args.rounds, args.resume, about["versions"])
    if not runs:
        raise SystemExit("no contender has run")
    return {
        "machine": about,
        "scan": args.scan.name,
        "network": asdict(network),
        "training": asdict(training) | {"dice": made.dice},
        "rounds": args.rounds,
        **summary(runs, {key: read_labels(made, key) for key in runs}),
    }


def versions_in(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return "package of nnU-Net's environment" -> version; nothing for packages that are missing there."""
    code = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True)
    found = done.stdout.split()
    return {f"{name} (nnU-Net's)" if name == "torch" else name: one for name, one in zip(packages, found, strict=False)}


def fingerprint(scan: Path, network: Standard, training: Training) -> str:
    """Of all that is made for the contenders: the scan's files by name, size and time, and the settings."""
    files = sorted(path for path in scan.rglob("*") if path.is_file()) if scan.is_dir() else [scan]
    known = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((known, network, training)).encode()).hexdigest()[:12]


def make(scan: Path, folder: Path, network: Standard, training: Training) -> Made:
    """The scan as one file, the network's weights, and both in the form of each program; what is there stays."""
    made = Made(folder, 0.0)
    made.scan.parent.mkdir(parents=True, exist_ok=True)
    if not made.scan.exists():
        write_scan(scan, made.scan)
    learnt = learnt_weights(folder / "learnt.pt", made.scan, network, training)
    make_bundle(made.bundle(MONAI_OVERLAP), network, learnt["model"], MONAI_OVERLAP)
    spacing = spacing_by_nnunet(made.scan, network)
    make_bundle(made.bundle(NNUNET_OVERLAP), network, learnt["model"], NNUNET_OVERLAP, spacing)
    make_nnunet_model(folder / "nnunet", network, learnt["model"])
    return Made(folder, learnt["dice"])


def write_scan(scan: Path, path: Path) -> None:
    """Writes a scan as NIfTI, its axes turned to RAS+ (no voxel is interpolated), so that all see the same array."""
    import nibabel

    from napari_seg import read

    volume = read(scan)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.array[0], volume.grid.affine))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f"part_{path.name}")
    nibabel.save(image, part)
    part.replace(path)


def command(key: str, made: Made, output: Path) -> list[object]:
    """What a person would type for a contender."""
    if key.startswith("nnunet"):
        words: list[object] = [
            made.peer.with_name("nnUNetv2_predict_from_modelfolder"),
            "-i",
            made.scan.parent,
            "-o",
            output,
            "-m",
            made.folder / "nnunet",
            "-f",
            "0",
        ]
        return [*words, "-device", "cpu", *(() if key == "nnunet-tta" else ["--disable_tta"])]
    if key == "monai":
        root = made.bundle(MONAI_OVERLAP)
        words = [
            sys.executable,
            "-P",
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            root / "configs" / "inference.json",
        ]
        return [*words, "--bundle_root", root, "--scan", made.scan, "--output_dir", output]
    if key in OF_MODEL:
        words = [
            *NAPARI_SEG,
            "predict",
            made.scan,
            "-o",
            output,
            "--model",
            made.folder / "nnunet",
        ]
        return [*words, "--device", "cpu", *OF_MODEL[key]]
    bundle = made.bundle(NNUNET_OVERLAP if key == "napari-nnunet" else MONAI_OVERLAP)
    words = [
        *NAPARI_SEG,
        "predict",
        made.scan,
        "-o",
        output,
        "--bundle",
        bundle,
        "--trust-bundle",
    ]
    windows = {
        "napari": (),
        "napari-small": ("--memory", "2GiB"),
        "napari-float32": ("--precision", "float32"),
        "napari-bfloat16": ("--precision", "bfloat16"),
        "napari-uncropped": ("--no-crop",),
        "napari-nnunet": ("--windows", "even", "--no-crop"),
    }.get(key, AS_IN_BUNDLE)
    return [*words, "--device", "cpu", *windows, *(("--backend", "torch") if key == "napari-torch" else ())]


def run_rounds(
    made: Made, wanted: Sequence[str], rounds: int, resume: bool, versions: object
) -> dict[str, list[dict[str, float]]]:
    """By contender and round what was measured; each round's order is the reverse of the one before.

    Args:
        made: what they are given.
        wanted: who runs.
        rounds: how often each runs.
        resume: take what an earlier call measured with the same versions, of those too who are not wanted.
        versions: of all programs.
    """
    runs: dict[str, list] = {key: [] for key in CONTENDERS}
    if not resume:
        shutil.rmtree(made.folder / "cache", ignore_errors=True)
    for n in range(rounds):
        for key in CONTENDERS if n % 2 == 0 else reversed(CONTENDERS):
            record = made.folder / "runs" / f"{key}_{n}" / "record.json"
            known = json.loads(record.read_text()) if resume and record.exists() else {}
            if known.get("versions") == versions:
                runs[key].append(known["measured"])
            elif key in wanted:
                print(f"round {n + 1} of {rounds}: {CONTENDERS[key]}", file=sys.stderr)
                runs[key].append(run_contender(key, made, record.parent))
                record.write_text(json.dumps({"versions": versions, "measured": runs[key][-1]}, indent=1))
                print(runs[key][-1], file=sys.stderr)
    return {key: taken for key, taken in runs.items() if len(taken) == rounds}


def run_contender(key: str, made: Made, folder: Path) -> dict[str, float]:
    """Return what a run took; if it verified its network, what it takes the next time, and what it took first."""
    before = kept(made)
    first = figures(watched(key, made, folder))
    if kept(made) == before:
        return first
    second = figures(watched(key, made, folder))
    return second | {"first_seconds": first["seconds"], "first_peak_gib": first["peak_gib"]}


def watched(key: str, made: Made, folder: Path) -> Watched:
    """Runs a contender; its label map lies in the folder `labels` afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = {"NAPARI_SEG_CACHE": str(made.folder / "cache")}
    return watch(command(key, made, folder / "labels"), folder, environment)


def kept(made: Made) -> set[str]:
    """Names of the networks that napari-seg has verified and keeps."""
    return {path.name for path in (made.folder / "cache" / "networks").glob("*")}


def figures(run: Watched) -> dict[str, float]:
    """Of a run, with the number of windows where the log tells it."""
    measured = {"seconds": run.seconds, "peak_gib": run.peak_bytes / 2**30}
    count = windows_logged(run.log)
    return measured if count is None else measured | {"windows": count}


def windows_logged(log: str) -> int | None:
    """How many windows a program says it ran, at the end of nnU-Net's or MONAI's bar or in our words; None: nothing."""
    bars = [int(total) for done, total in re.findall(r"\b(\d+)/(\d+)\b \[", log) if done == total]
    words = [int(count) for count in re.findall(r"\b(\d+) windows\b", log)]
    return max(bars + words, default=None)


def read_labels(made: Made, key: str) -> NDArray[np.unsignedinteger]:
    """(I, J, K) the label map of a contender's first round.

    Raises:
        SystemExit: there is none, or it does not lie where the scan does.
    """
    import nibabel

    folder = made.folder / "runs" / f"{key}_0" / "labels"
    found = sorted(folder.glob("*.nii.gz"))
    if len(found) != 1:
        raise SystemExit(f"found {len(found)} label maps in {folder}; expected one; {folder.parent} tells more")
    image, scan = nibabel.load(found[0]), nibabel.load(made.scan)
    if image.shape != scan.shape or not np.allclose(image.affine, scan.affine, atol=1e-3):
        raise SystemExit(f"{found[0]} does not lie on the scan's grid")
    return np.asanyarray(image.dataobj).astype(np.uint16)


def summary(
    runs: dict[str, list[dict[str, float]]], labels: dict[str, NDArray[np.unsignedinteger]]
) -> dict[str, object]:
    """The figures of all contenders.

    Args:
        runs: by contender and round, as `run_rounds` gives them.
        labels: by contender.
    """
    rows: dict[str, dict] = {}
    for key, taken in runs.items():
        row: dict[str, object] = {what: spread([run[what] for run in taken]) for what in ("seconds", "peak_gib")}
        row |= {what: taken[0][what] for what in ("windows", "first_seconds", "first_peak_gib") if what in taken[0]}
        for peer in ("nnunet", "nnunet-tta", "monai", "napari"):
            if peer in runs:
                times = [[[run["seconds"]] for run in runs[name]] for name in (key, peer)]
                row[f"share_of_{peer}"] = compare(*times)
                row[f"equal_to_{peer}"] = float(np.mean(labels[key] == labels[peer]))
        if "nnunet" in runs:
            row["dice_with_nnunet"] = dice(labels[key], labels["nnunet"])
        rows[key] = row
    one = next(iter(labels.values()))
    shares = np.bincount(labels.get("nnunet", one).ravel()) / one.size
    return {"shape": list(one.shape), "label_shares": shares.tolist(), "contenders": rows}


def dice(found: NDArray[np.unsignedinteger], expected: NDArray[np.unsignedinteger]) -> list[float | None]:
    """Dice of each label, background first; None where neither holds it.

    Args:
        found: (I, J, K).
        expected: (I, J, K).
    """
    from napari_seg.evaluation.metrics import confusion_matrix

    count = int(max(found.max(), expected.max())) + 1
    shared = confusion_matrix(found, expected, range(count))
    both = shared.sum(0) + shared.sum(1)
    return [float(2 * shared[n, n] / both[n]) if both[n] else None for n in range(count)]


def describe_predict(figures: dict) -> str:
    """Return the section of benchmarks.md about a whole scan."""
    network, training = figures["network"], figures["training"]
    lines = ["## One scan, file to file", ""]
    lines += paragraph(
        f"A scan of {'×'.join(map(str, figures['shape']))} voxels: the same NIfTI file and the same weights for all,",
        "each program in a process of its own, from its start to its end. The network is nnU-Net's standard one",
        f"(3d_fullres: {len(network['features'])} stages of {', '.join(map(str, network['features']))} channels,",
        f"windows of {network['patch']}³ at {network['spacing_mm']:g} mm, {network['classes']} classes).",
        *([f"One in {training['narrow']} of its channels"] if training.get("narrow", 1) > 1 else ["It"]),
        f"was trained on {training['steps']} patches of {training['patch']}³ of this scan, towards labels from",
        f"a rule (smoothed intensities, thresholded by Otsu's method), to a soft Dice of {training['dice']:.2f}: so",
        *(["the other channels are zero, which costs as much;"] if training.get("narrow", 1) > 1 else []),
        "the table shows speed and agreement, not accuracy. Of the scan's voxels",
        f"{', '.join(f'{share:.0%}' for share in figures['label_shares'])} have label 0, 1, 2 and so on.",
    )
    lines += paragraph(
        "nnU-Net is `nnUNetv2_predict_from_modelfolder -device cpu`, MONAI is `python -m monai.bundle run` with",
        "`Spacingd`, `SlidingWindowInferer`, `Invertd` and `SaveImaged`, napari-seg is `napari-seg predict`, with its",
        "defaults, or as MONAI lays windows (`--windows bundle --no-crop`), or as nnU-Net does (`--windows even",
        "--no-crop`, and a bundle with nnU-Net's grid, splines and overlap of a half). Dice compares",
        f"with nnU-Net's first row, one number per label; times are medians of {figures['rounds']}, with minimum and",
        "maximum; memory is the maximum.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    rows = figures["contenders"]
    cells = [[CONTENDERS[key], *_cells(row)] for key, row in rows.items()]
    used = [n for n in range(len(HEADINGS)) if any(row[n] for row in cells)]
    lines += table([HEADINGS[n] for n in used], [[row[n] for n in used] for row in cells])
    lines += [""]
    for key, row in rows.items():
        if "first_seconds" in row:
            lines += paragraph(
                f"The first run with a network ({CONTENDERS[key]}) verifies it and keeps it on the disk:",
                f"{row['first_seconds']:.3g} s and {row['first_peak_gib']:.1f} GiB.",
            )
    for key in ("napari-float32", "napari-bfloat16"):
        equal = rows.get(key, {}).get("equal_to_napari")
        if equal is not None:
            lines += paragraph(
                f"{CONTENDERS[key]}: {equal:.3%} of the voxels have the label that they have by default."
            )
    lines += paragraph(
        "By default a processor with bfloat16 computes in it if at least 99.9% of the labels of the first window hold.",
        "A network that has hardly learnt, as this one, may fail this check, and then float32 is the default.",
    )
    return "\n".join(lines)


HEADINGS = [
    "program",
    "windows",
    "s",
    "memory, GiB",
    "fraction of nnU-Net's time",
    "fraction of nnU-Net's default",
    "fraction of MONAI's time",
    "Dice with nnU-Net, by label",
    "voxels equal to MONAI's",
]


def _cells(row: dict) -> list[str]:
    def shown(values: dict[str, float] | None) -> str:
        if values is None:
            return ""
        return describe_spread(values) if values["least"] < values["greatest"] else f"{values['median']:.3g}"

    agreement = ["–" if value is None else f"{value:.4f}" for value in row.get("dice_with_nnunet", [])]
    equal = row.get("equal_to_monai")
    return [
        str(row.get("windows", "")),
        shown(row["seconds"]),
        f"{row['peak_gib']['greatest']:.1f}",
        *(shown(row.get(f"share_of_{peer}")) for peer in ("nnunet", "nnunet-tta", "monai")),
        " ".join(agreement),
        "" if equal is None else f"{equal:.3%}",
    ]
