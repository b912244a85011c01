"""Run the segmentation bundles of the MONAI Model Zoo with MONAI and with napari-seg, and compare label maps.

    git -C MODEL_ZOO archive HEAD models | tar x -C checkout
    python scripts/zoo.py --zoo checkout --work folder
    python scripts/zoo.py --zoo checkout --work folder --only spleen_ct_segmentation --runs exact default

Writes docs/reference/zoo.json and zoo.md; a bundle that is run again replaces its own row. The config of each bundle
runs, with all that it imports: only for a checkout whose source you trust. Needs the packages that the bundles import:
einops, itk, pandas and pytorch-ignite.

Each bundle gets a phantom that its list of data could name. Its weights are made here, seeded, under the names that the
config loads (`benchmarks/bundle_weights.py`), unless the checkout holds them. The reference is `python -m monai.bundle
run` on the same files, on the CPU, without worker processes; where MONAI itself can't run a config unaltered, the
entries that are replaced stand in the table. napari-seg gets the bundle as it is: once with the bundle's own windows
and torch, compared voxel by voxel, and once with all defaults. Memory is that of all processes together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bundle_cases import CASES, CPU, Case, data_of
from benchmarks.bundle_phantoms import write_zeros
from benchmarks.bundle_runs import AS_WRITTEN, agreement, error_of, labels_of, read_plain, run_monai, run_napari_seg
from benchmarks.bundle_weights import make_weights
from benchmarks.measuring import CHECKOUT, SPAWN, Watched, machine
from benchmarks.report import describe_machine, paragraph, table

VERSIONS = ("napari-seg", "torch", "monai", "numpy")


RUNS = {"monai": [], "exact": AS_WRITTEN, "default": []}
"""Runs of each bundle, with the options of `napari-seg predict`."""


def main() -> None:
    """Run the bundles that the command names and write the report."""
    args = parse()
    about = machine(VERSIONS)
    for name in args.only or [name for name in CASES if (args.zoo / "models" / name).exists()]:
        print(name, file=sys.stderr)
        known = read(args.report)["bundles"].get(name, {})
        row = compare(name, CASES[name], args.zoo / "models" / name, args.work / name, args.runs, known)
        print(row, file=sys.stderr)
        write(args.report, name, row, about)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=absolute, required=True, help="a checkout of the Model Zoo, with models/<bundle>")
    parser.add_argument("--work", type=absolute, required=True, help="folder for what is made on the way; kept")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="bundles to run; default: all")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS), help="the other runs stay as reported")
    parser.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    return parser.parse_args()


def compare(
    name: str, case: Case, source: Path, work: Path, runs: Collection[str], known: dict[str, Any]
) -> dict[str, Any]:
    """Run one bundle with both programs and return its row.

    Args:
        name: of the bundle.
        case: its phantom.
        source: its folder in the checkout.
        work: folder for its copy with weights, the phantom and the results.
        runs: which of `RUNS`.
        known: its row in the report; what does not run again is taken from there.
    """
    root = work / name
    row: dict[str, Any] = {"note": case.note}
    try:
        files, overrides = prepare(case, source, root, work)
        if "monai" in runs or "monai" not in known:
            row["monai"] = figures(run_monai(root, config_of(root), overrides, work / "monai"))
        else:
            row["monai"] = known["monai"]
        theirs = labels_of(work / "monai", files[0], files[0].name.split(".")[0])
    except SystemExit as error:
        print(error, file=sys.stderr)
        return row | {"monai_error": error_of(work / "monai_log")}
    row |= way(root)
    trust = ["--trust"] if row["consent"] else []
    for run, options in RUNS.items():
        if run == "monai" or run not in runs:
            row.setdefault(run, known.get(run, {}))
            continue
        try:
            watched = run_napari_seg(root, inputs_of(files, case), work / run, [*options, *trust])
            row[run] = figures(watched) | agreement(labels_of(work / run, files[0], ""), theirs)
        except SystemExit as error:
            print(error, file=sys.stderr)
            row[run] = {"error": error_of(work / f"{run}_log")}
    return row


def prepare(case: Case, source: Path, root: Path, work: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write the phantom, and a copy of the bundle with weights; return its files, and what the reference overrides."""
    files = case.write(work / "phantom")
    label = write_zeros(work / "label.nii.gz", files[0]) if case.kind != "image2d" else work / "none"
    if root.exists() and not (root / "models").exists():
        shutil.rmtree(root)
    is_new = not root.exists()
    if is_new:
        shutil.copytree(source, root)
    config = config_of(root)
    overrides = {
        "device": CPU,
        "dataset#data": data_of(files, case.names, label),
        "dataset_dir": str(work / "phantom"),
        "dataloader#num_workers": 0,
        **case.changes,
    }
    if is_new and not any((root / "models").glob("*.pt")):
        sigmoid = "'sigmoid': True" in repr(read_plain(config).get("postprocessing"))
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            job = pool.submit(
                make_weights,
                root,
                config,
                overrides,
                train_all=case.train_all,
                sigmoid=sigmoid,
                key=case.checkpoint_key,
            )
            print(job.result(), file=sys.stderr)
    return files, overrides


def config_of(root: Path) -> Path:
    """Return the inference config of a bundle."""
    return next(
        root / "configs" / f"inference.{end}"
        for end in ("json", "yaml")
        if (root / f"configs/inference.{end}").exists()
    )


def way(root: Path) -> dict[str, Any]:
    """Return which way napari-seg runs a bundle, whether it asks for consent, and why."""
    from napari_seg.bundles.read import read_bundle
    from napari_seg.bundles.ways import way_of

    found = way_of(read_bundle(root))
    return {"way": found.kind, "consent": found.needs_consent, "reasons": list(found.reasons)}


def inputs_of(files: list[Path], case: Case) -> list[object]:
    """Return the phantom as `napari-seg predict` takes it."""
    if len(files) == 1:
        return [*files]
    return [word for name, path in zip(case.names, files, strict=True) for word in ("--channel", f"{name}={path}")]


def figures(run: Watched) -> dict[str, float]:
    return {"seconds": run.seconds, "peak_gib": run.peak_bytes / 2**30}


def read(folder: Path) -> dict[str, Any]:
    """Return what zoo.json holds."""
    path = folder / "zoo.json"
    return json.loads(path.read_text()) if path.exists() else {"bundles": {}}


def write(folder: Path, name: str, row: dict[str, Any], about: dict[str, Any]) -> None:
    """Replace a bundle's row in zoo.json and write zoo.md from all rows."""
    rows = read(folder)["bundles"] | {name: row}
    known = {"machine": about, "bundles": {key: rows[key] for key in CASES if key in rows}}
    (folder / "zoo.json").write_text(json.dumps(known, indent=1) + "\n")
    (folder / "zoo.md").write_text(describe(known))


WAYS = {("engine", False): "1", ("engine", True): "2, engine", ("workflow", True): "2, as written"}


def describe(figures: dict[str, Any]) -> str:
    """Return the page of the report."""
    rows, notes = [], []
    for name, row in figures["bundles"].items():
        exact, default, monai = row.get("exact", {}), row.get("default", {}), row.get("monai", {})
        rows.append(
            [
                name,
                WAYS.get((row.get("way"), row.get("consent")), row.get("way", "–")),
                _fixed(exact.get("equal"), "{:.4%}"),
                f"{_fixed(exact.get('dice'), '{:.4f}')} ({_fixed(exact.get('least_dice'), '{:.4f}')})",
                _fixed(default.get("dice"), "{:.4f}"),
                exact.get("labels", "–"),
                f"{_fixed(exact.get('seconds'), '{:.0f}')} / {_fixed(monai.get('seconds'), '{:.0f}')}",
                f"{_fixed(exact.get('peak_gib'), '{:.1f}')} / {_fixed(monai.get('peak_gib'), '{:.1f}')}",
            ]
        )
        said = [*_short(row.get("reasons", [])), row["note"], row.get("monai_error", ""), exact.get("error", "")]
        if text := "; ".join(part for part in said if part):
            notes.append([name, text.replace("|", "\\|").replace("\n", " ")])
    lines = ["# Bundles of the MONAI Model Zoo", ""]
    lines += paragraph(
        "Written by `scripts/zoo.py`, which describes how it measures: every bundle runs with `python -m monai.bundle",
        "run` and with `napari-seg predict` on the same synthetic scan and with the same synthetic weights, so the",
        "table shows agreement, not accuracy. All numbers are in [zoo.json](zoo.json).",
    )
    lines += paragraph(
        "Way 1: our engine, without consent. Way 2: the bundle contains its own code or steps that the engine lacks;",
        "after consent it runs in our engine, or exactly as written in MONAI's workflow. Equal voxels and Dice (mean,",
        "and the lowest of all labels, in parentheses) are with `--windows bundle --no-crop --backend torch`; the next",
        "column is the mean Dice with all defaults (–: not measured). Seconds and memory: napari-seg / MONAI, from",
        "start to end, on a",
        "machine that did other work too and not at the same time: only orders of magnitude count.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    head = ["bundle", "way", "voxels equal", "Dice", "Dice, default", "labels", "s", "GiB"]
    lines += table(head, rows)
    if notes:
        lines += ["", *table(["bundle", "reasons and notes"], notes)]
    return "\n".join(lines) + "\n"


def _short(reasons: list[str], most: int = 3) -> list[str]:
    """Return the first reasons without the config's name, and how many more there are."""
    texts = [reason.partition(": ")[2] or reason for reason in reasons]
    return [*texts[:most], f"{len(texts) - most} more"] if len(texts) > most else texts


def _fixed(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def absolute(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    main()
