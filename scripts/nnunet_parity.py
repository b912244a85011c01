"""Run models of nnU-Net with nnU-Net and with napari-seg, and compare the label maps.

    python scripts/nnunet_parity.py --data DATA --work FOLDER --peer PYTHON
    python scripts/nnunet_parity.py --data DATA --work FOLDER --peer PYTHON --only ct regions
    python scripts/nnunet_parity.py --data DATA --work FOLDER --peer PYTHON --only ct --runs exact

Writes docs/reference/nnunet.json and nnunet.md; a data set that is run again replaces its own rows. DATA holds the real
scans that `benchmarks/nnunet_cases.py` cuts and varies; PYTHON is the interpreter of an environment with nnU-Net.

Each model is trained by nnU-Net itself in few steps, so that it finds its structures. Then both programs segment the
same files, which the models have not seen: nnUNetv2_predict on the processor with its defaults and one process for each
of reading and writing, and napari-seg with `--match exact` and with `--match fast`. Memory is that of all processes of
a program together.

nnU-Net keeps sums of logits and window weights as 16-bit numbers. To tell rounding from faults, it also runs with
32-bit ones ("nnunet32"): nothing but torch's names of the number formats is changed before it is imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from benchmarks.bundle_runs import error_of
from benchmarks.measuring import CHECKOUT, Watched, machine, watch
from benchmarks.nnunet_cases import CASES, Case
from benchmarks.nnunet_models import environment, make_model
from benchmarks.report import describe_machine, paragraph, table
from numpy.typing import NDArray

VERSIONS = ("napari-seg", "torch", "numpy")
RUNS = ("nnunet", "nnunet32", "exact", "fast")
CODE = "import sys; {first}from nnunetv2.{module} import {function} as run; sys.argv[0] = '{function}'; run()"
"""Runs a command of nnU-Net by the given interpreter."""

IN_32_BITS = "import torch; torch.half = torch.float16 = torch.float32; "


def main() -> None:
    """Run the data sets that the command names and write the report."""
    args = parse()
    about = machine(VERSIONS)
    for name in args.only or CASES:
        models = make_model(name, args.data, args.work, args.peer)
        for run in CASES[name].runs:
            print(name, run, file=sys.stderr)
            known = read(args.report)["rows"].get(f"{name}:{run}", {})
            row = compare(name, run, models, known, args)
            print(row, file=sys.stderr)
            write(args.report, f"{name}:{run}", row, about)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real scans")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets, models and results; kept")
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with nnU-Net")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="data sets to run; default: all")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="the other runs stay as reported")
    parser.add_argument("--scans", nargs="+", type=int, metavar="N", help="only these of each data set's scans, from 0")
    parser.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    return parser.parse_args()


def compare(name: str, run: str, models: Path, known: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Run one model with both programs and return its row.

    Args:
        name: of the data set.
        run: which of its models, as `FOLDER:...` takes it.
        models: the data set's folder of results.
        known: the row in the report; runs that are not repeated are taken from there.
        args: of the command.
    """
    case = CASES[name]
    scans = chosen(args.work / "raw" / case.folder(name) / "imagesTs", args.work / "scans" / name, args.scans)
    out = args.work / "runs" / name / run.replace(":", "_")
    row: dict[str, Any] = {**known, "about": case.about}
    if "nnunet" in args.runs or "nnunet" not in known:
        shutil.rmtree(out / "nnunet", ignore_errors=True)
        row["nnunet"] = figures(run_nnunet(name, run, models, scans, out, args))
    theirs = labels_in(out / "nnunet", case)
    row["scans"] = list(theirs)
    if "nnunet32" in args.runs:
        shutil.rmtree(out / "nnunet32", ignore_errors=True)
        run_nnunet(name, run, models, scans, out / "nnunet32", args, IN_32_BITS)
    theirs_in_32_bits = labels_in(out / "nnunet32" / "nnunet", case)
    for mode in ("exact", "fast"):
        if mode not in args.runs:
            continue
        try:
            row[mode] = figures(run_napari_seg(f"{models}:{run}", mode, list(theirs), case, scans, out, args))
            ours = {one: labels_of(next((out / mode).rglob(f"{one}*_seg.nii.gz"))) for one in theirs}
            row[mode] |= agreement(ours, theirs)
            if theirs_in_32_bits.keys() == theirs.keys():
                row[mode]["equal_in_32_bits"] = agreement(ours, theirs_in_32_bits)["equal"]
        except SystemExit as error:
            print(error, file=sys.stderr)
            row[mode] = {"error": error_of(out / f"{mode}_log")}
    return row


def chosen(scans: Path, folder: Path, numbers: list[int] | None) -> Path:
    """Return a folder with copies of the scans of these numbers; None: all of them."""
    if numbers is None:
        return scans
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = sorted({path.name.rpartition("_")[0] for path in scans.iterdir()})
    for number in numbers:
        for path in scans.glob(f"{names[number]}_*"):
            shutil.copy(path, folder)
    return folder


def run_napari_seg(
    model: str, mode: str, names: list[str], case: Case, scans: Path, out: Path, args: argparse.Namespace
) -> Watched:
    """Segment scans with napari-seg: a folder at once, or one scan after the other if it has several channels."""
    shutil.rmtree(out / mode, ignore_errors=True)
    inputs: list[list[object]] = [[scans]]
    if (scans / f"{names[0]}_0001.nii.gz").exists():
        inputs = [[*_channels(case, scans, name)] for name in names]
    words = ["-P", "-m", "napari_seg", "predict", "--model", model, "--match", mode, "--device", "cpu", "--json"]
    variables = {"NAPARI_SEG_MODELS": str(args.work / "store")}
    folders = [out / mode / name for name in names] if len(inputs) > 1 else [out / mode]
    runs = [
        watch([sys.executable, *words, *one, "-o", folder], out / f"{mode}_log", variables)
        for one, folder in zip(inputs, folders, strict=True)
    ]
    return _joined(runs)


def _channels(case: Case, scans: Path, name: str) -> list[object]:
    channels = enumerate(case.dataset["channel_names"].values())
    return [word for n, channel in channels for word in ("--channel", f"{channel}={scans}/{name}_{n:04d}.nii.gz")]


def run_nnunet(
    name: str, run: str, models: Path, scans: Path, out: Path, args: argparse.Namespace, first: str = ""
) -> Watched:
    """Segment scans with nnU-Net: one configuration, a cascade after its first stage, or an ensemble.

    Args:
        name: of the data set.
        run: which of its models.
        models: the data set's folder of results.
        scans: folder of the scans.
        out: folder of the results.
        args: of the command.
        first: code that runs before nnU-Net is imported.
    """

    def predict(configuration: str, folder: Path, more: list[object] | None = None) -> Watched:
        return _predict(name, configuration, fold_words, models, scans, folder, args, more, first)

    configurations, _, folds = run.partition("@")
    fold_words = folds.split(",") if folds else None
    members = configurations.split("+")
    if len(members) == 1 and members[0] != "3d_cascade_fullres":
        return predict(members[0], out / "nnunet")
    if members[0] == "3d_cascade_fullres":
        more = ["-prev_stage_predictions", out / "lowres"]
        return _joined([predict("3d_lowres", out / "lowres"), predict(members[0], out / "nnunet", more)])
    runs = [predict(member, out / member, ["--save_probabilities"]) for member in members]
    code = CODE.format(first=first, module="ensembling.ensemble", function="entry_point_ensemble_folders")
    command = [args.peer, "-c", code, "-i", *(out / member for member in members), "-o", out / "nnunet", "-np", "1"]
    return _joined([*runs, watch(command, out / "ensemble_log", environment(args.work))])


def _predict(
    name: str,
    configuration: str,
    folds: list[str] | None,
    models: Path,
    scans: Path,
    out: Path,
    args: argparse.Namespace,
    more: list[object] | None,
    first: str,
) -> Watched:
    root = next(path for path in models.iterdir() if path.name.endswith(f"__{configuration}"))
    trainer, plans, _ = root.name.split("__")
    found = [path.name.removeprefix("fold_") for path in sorted(root.glob("fold_*"))]
    code = CODE.format(first=first, module="inference.predict_from_raw_data", function="predict_entry_point")
    command = [args.peer, "-c", code, "-i", scans, "-o", out, "-d", CASES[name].folder(name), "-c", configuration]
    command += ["-tr", trainer, "-p", plans, "-f", *(folds or found), *(more or [])]
    command += ["-device", "cpu", "-npp", "1", "-nps", "1"]
    variables = {**environment(args.work), "OMP_NUM_THREADS": "2"}
    return watch(command, out.with_name(f"{out.name}_log"), variables)


def _joined(runs: list[Watched]) -> Watched:
    return Watched(sum(run.seconds for run in runs), max(run.peak_bytes for run in runs), "", "")


def labels_in(folder: Path, case: Case) -> dict[str, NDArray]:
    """Return the label maps that nnU-Net wrote into a folder, by scan."""
    found = sorted(folder.glob(f"case_*{case.dataset['file_ending']}"))
    return {path.name.split(".")[0]: labels_of(path) for path in found}


def labels_of(path: Path) -> NDArray:
    """Return a label map in the order of the file's axes; a 2D image as (x, y)."""
    if path.suffix == ".png":
        from PIL import Image

        return np.asarray(Image.open(path)).T
    return np.asarray(nib.load(path).dataobj).astype(int).squeeze()


def agreement(ours: dict[str, NDArray], theirs: dict[str, NDArray]) -> dict[str, Any]:
    """Return the share of equal voxels and the Dice of all scans together, of each structure and the lowest."""
    equal = sum(int((ours[case] == theirs[case]).sum()) for case in theirs) / sum(one.size for one in theirs.values())
    scores = []
    found = [np.unique(one) for one in (*ours.values(), *theirs.values())]
    for label in sorted({int(label) for one in found for label in one} - {0}):
        both = sum(int(((ours[case] == label) & (theirs[case] == label)).sum()) for case in theirs)
        sizes = sum(int((ours[case] == label).sum() + (theirs[case] == label).sum()) for case in theirs)
        scores.append(2 * both / sizes)
    mean, least = (float(np.mean(scores)), min(scores)) if scores else (None, None)
    return {"equal": equal, "dice": mean, "least_dice": least, "labels": len(scores)}


def figures(run: Watched) -> dict[str, float]:
    return {"seconds": run.seconds, "peak_gib": run.peak_bytes / 2**30}


def read(folder: Path) -> dict[str, Any]:
    """Return what nnunet.json holds."""
    path = folder / "nnunet.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


def write(folder: Path, key: str, row: dict[str, Any], about: dict[str, Any]) -> None:
    """Replace a row in nnunet.json and write nnunet.md from all rows."""
    rows = read(folder)["rows"] | {key: row}
    order = [f"{name}:{run}" for name, case in CASES.items() for run in case.runs]
    known = {"machine": about, "rows": {one: rows[one] for one in order if one in rows}}
    (folder / "nnunet.json").write_text(json.dumps(known, indent=1) + "\n")
    (folder / "nnunet.md").write_text(describe(known))


def describe(known: dict[str, Any]) -> str:
    """Return the page of the report."""
    rows = []
    for key, row in known["rows"].items():
        exact, fast, theirs = (row.get(run, {}) for run in ("exact", "fast", "nnunet"))
        rows.append(
            [
                key.replace(":", ", "),
                _fixed(exact.get("equal"), "{:.4%}"),
                _fixed(exact.get("equal_in_32_bits"), "{:.4%}"),
                f"{_fixed(exact.get('dice'), '{:.5f}')} ({_fixed(exact.get('least_dice'), '{:.5f}')})",
                _fixed(fast.get("equal"), "{:.3%}"),
                f"{_fixed(fast.get('dice'), '{:.4f}')} ({_fixed(fast.get('least_dice'), '{:.4f}')})",
                exact.get("labels", "–"),
                ", ".join(name.removeprefix("case_") for name in row.get("scans", [])),
                " / ".join(_fixed(one.get("seconds"), "{:.0f}") for one in (exact, fast, theirs)),
                " / ".join(_fixed(one.get("peak_gib"), "{:.2f}") for one in (exact, fast, theirs)),
            ]
        )
    lines = ["# Models of nnU-Net", ""]
    lines += paragraph(
        "Written by `scripts/nnunet_parity.py`, which describes how it measures: models that nnU-Net v2 trained for",
        "some minutes, run by `nnUNetv2_predict` on the processor and by `napari-seg predict` on the same scans. All",
        "numbers are in [nnunet.json](nnunet.json).",
    )
    lines += paragraph(
        "Dice: mean of all structures, the lowest in parentheses, against nnU-Net's labels, so it shows agreement, not",
        "accuracy. Labels: structures that nnU-Net found. Voxels that differ with `--match exact` are close to ties",
        "between two structures: nnU-Net adds logits in 16 bits, napari-seg in 32. In 32 bits: the share of equal",
        "voxels if nnU-Net adds in 32 bits too, with nothing else changed. nnU-Net averages mirror images where the",
        "training did, as does `exact`; `fast` does not, and takes fewer windows. Most of what `fast` changes is due",
        "to the mirror images: on the first image of axons, `--match exact --tta none` has 88.6 % of nnU-Net's",
        "labels and `--match fast` 87.3 %. How much that is with fully trained networks was not measured.",
    )
    lines += paragraph(
        "Scan 000 of a volume data set stands straight, 001 has a flipped first axis, 002 is oblique by 12 degrees and",
        "003 by 25 degrees. In the sets hippocampus, regions, residual and unmirrored, scan 001 has voxels of",
        "0.8 x 1.1 x 1.3 mm and scan 003 of 1.25 x 0.9 x 0.7 mm, and both are resampled to 1 mm.",
    )
    lines += paragraph(
        "Seconds and memory: exact / fast / nnU-Net, start-up included, which dominates on scans as small as these.",
        "The machine did much other work at the same time, so the seconds show no order.",
    )
    lines += [describe_machine(known["machine"]), ""]
    head = ["model", "exact: equal", "in 32 bits", "Dice", "fast: equal", "Dice", "labels", "scans", "s", "GiB"]
    lines += table(head, rows)
    about = dict.fromkeys(f"{key.partition(':')[0]}: {row['about']}" for key, row in known["rows"].items())
    lines += ["", *(f"- {one}" for one in about), ""]
    lines += paragraph(
        "Scans: hippocampus crops of the Medical Segmentation Decathlon (Task04, CC BY-SA 4.0), axon images",
        "(doi 10.5281/zenodo.5498378, MIT), and the test CT of TotalSegmentator (Apache-2.0), cut and varied.",
    )
    return "\n".join(lines)


def _fixed(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    main()
