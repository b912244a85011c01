"""Run TotalSegmentator's tasks with TotalSegmentator and with napari-seg, and compare label maps, time and memory.

    python scripts/totalsegmentator_weights.py --data ct_body --home small
    python scripts/totalsegmentator_weights.py --data ct_body --home full --shapes full
    python scripts/totalsegmentator_parity.py --data ct_body --work folder --small small --full full --peer COMMAND

Writes docs/reference/totalsegmentator.json and totalsegmentator.md; a case that is run again replaces its own rows.
COMMAND is TotalSegmentator's own, of an environment with TotalSegmentator 2.18. `--only NAME ...` chooses cases,
`--programs` which of them run; the other's result is then taken from the work folder. The weights are made by
`totalsegmentator_weights.py`: small networks, trained so that structures are found, and networks of the
published size for time and memory. Both programs read the same files and run one after the
other, on the processor. Memory is that of all processes of a program together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from benchmarks.measuring import CHECKOUT, NAPARI_SEG, Watched, machine, watch
from benchmarks.report import describe_machine, paragraph, table

VERSIONS = ("napari-seg", "torch", "numpy")
FEW_VOXELS = 20
"""Structures with fewer voxels in TotalSegmentator's result are listed, and don't count for the lowest Dice."""

FAST = ("--match", "fast")
MODES = {
    "exact": ("--match", "exact"),
    "fast": FAST,
    "bfloat16": (*FAST, "--precision", "bfloat16"),
}
"""Ways to run napari-seg, each with its options; the last one for networks of the published size."""

PROGRAMS = ("theirs", *MODES)
IN_32_BITS = "theirs32"
"""Folder of what TotalSegmentator gives with sums in 32 bits."""


@dataclass(frozen=True)
class Case:
    """One scan and one task.

    Attributes:
        scan: key of `scan_of`.
        task: name of the task in napari-seg.
        words: of TotalSegmentator's command.
        options: of `napari-seg predict`.
        modes: of napari-seg that run.
        full: whether the networks have the published size.
        theirs: whether TotalSegmentator runs too; False: it would need more memory than there is.
    """

    scan: str
    task: str
    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("exact", "fast")
    full: bool = False
    theirs: bool = True


ROI = ("liver", "kidney_left", "spleen")

CASES = {
    "ct fast": Case("ct", "total_fast", ("--fast",)),
    "ct fastest": Case("ct", "total_fastest", ("--fastest",)),
    "ct": Case("ct", "total"),
    "ct roi_subset": Case("ct", "total", ("--roi_subset", *ROI), ("--structures", *ROI)),
    "ct body": Case("ct", "body", ("-ta", "body")),
    "ct body fast": Case("ct", "body_fast", ("-ta", "body", "--fast")),
    "ct liver_vessels": Case("ct", "liver_vessels", ("-ta", "liver_vessels")),
    "ct kidney_cysts": Case("ct", "kidney_cysts", ("-ta", "kidney_cysts")),
    "ct liver_segments": Case("ct", "liver_segments", ("-ta", "liver_segments")),
    "dicom fast": Case("dicom", "total_fast", ("--fast",)),
    "dicom": Case("dicom", "total"),
    "dicom liver_vessels": Case("dicom", "liver_vessels", ("-ta", "liver_vessels")),
    "mr fast": Case("mr", "total_mr_fast", ("-ta", "total_mr", "--fast")),
    "mr": Case("mr", "total_mr", ("-ta", "total_mr")),
    "oblique fast": Case("oblique", "total_fast", ("--fast",)),
    "oblique liver_vessels": Case("oblique", "liver_vessels", ("-ta", "liver_vessels")),
    "large fast": Case("large", "total_fast", ("--fast",)),
    "large": Case("large", "total"),
    "full fast": Case("large", "total_fast", ("--fast",), full=True),
    "full": Case("large", "total", modes=tuple(MODES), full=True),
    "full 600": Case("largest", "total", options=("--memory", "4GiB"), modes=("fast",), full=True, theirs=False),
}

SCANS = {
    "ct": "the test CT of TotalSegmentator, 122 x 101 x 112 voxels of 3 mm",
    "dicom": "a CT series of 20 DICOM files, 512 x 512",
    "mr": "an MR image, 117 x 91 x 20 voxels of 3 mm, axes left, back, up",
    "oblique": "a part of the CT, rotated by 12 degrees, axes permuted and flipped, 3.2 x 2.8 x 3.5 mm",
    "large": "the CT on 512 x 512 x 300 voxels",
    "largest": "the CT on 512 x 512 x 600 voxels",
}


def main() -> None:
    """Run the cases that the command names and write the report."""
    args = parse()
    about = machine(VERSIONS)
    for name in args.only or CASES:
        print(name, file=sys.stderr)
        row = compare(name, args)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write(args.report, name, row, about)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=absolute, required=True, help="folder with TotalSegmentator's test files")
    parser.add_argument("--work", type=absolute, required=True, help="folder for what is made on the way; kept")
    parser.add_argument("--small", type=absolute, required=True, help="TOTALSEG_HOME_DIR with small networks")
    parser.add_argument("--full", type=absolute, help="TOTALSEG_HOME_DIR with networks of the published size")
    parser.add_argument("--peer", type=absolute, required=True, help="TotalSegmentator's command")
    parser.add_argument(
        "--peer32",
        type=absolute,
        help="the same with torch.half = torch.float32 before it is imported; runs too if given",
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="cases to run; default: all")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="the others stay as reported")
    parser.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    return parser.parse_args()


def absolute(text: str) -> Path:
    return Path(text).absolute()


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one case with both programs, one after the other, and return its row."""
    case = CASES[name]
    row = read(args.report)["rows"].get(name, {})
    out = args.work / name.replace(" ", "_")
    scan = scan_of(case.scan, args.data, args.work)
    home = args.full if case.full else args.small
    if home is None:
        raise SystemExit(f"{name}: --full is needed")
    for program in PROGRAMS:
        if program not in args.programs or (program != "theirs" and program not in case.modes):
            continue
        if program == "theirs" and not case.theirs:
            continue
        shutil.rmtree(out / program, ignore_errors=True)
        (out / program).mkdir(parents=True)
        try:
            row[program] = measured(program, case, scan, home, out, args.peer)
        except SystemExit as error:
            row[program] = {"error": error_of(out / f"{program}_log")}
            print(f"{name}, {program}: {error}", file=sys.stderr)
    if not case.theirs or "error" in row.get("theirs", {}):
        return row
    theirs = labels_of(out / "theirs", scan)
    names = names_of(out)
    for mode in case.modes:
        if mode in row and "error" not in row[mode] and any((out / mode).glob("*_seg.nii.gz")):
            row[mode] |= agreement(labels_of(out / mode, scan), theirs, names)
    if args.peer32 is not None:
        shutil.rmtree(out / IN_32_BITS, ignore_errors=True)
        (out / IN_32_BITS).mkdir()
        run(IN_32_BITS, case, scan, home, out, args.peer32)
        found = agreement(labels_of(out / "exact", scan), labels_of(out / IN_32_BITS, scan), names)
        row["exact"]["equal_in_32_bits"] = found["equal"]
    return row


def measured(program: str, case: Case, scan: Path, home: Path, out: Path, peer: Path) -> dict[str, float]:
    """Return what a run took; if it verified networks, what it takes the next time, with the first run next to it."""
    cache = out.parent / "cache" / "networks"
    before = sorted(cache.glob("*"))
    first = figures(run(program, case, scan, home, out, peer))
    if not case.full or sorted(cache.glob("*")) == before:
        return first
    shutil.rmtree(out / program)
    (out / program).mkdir()
    again = figures(run(program, case, scan, home, out, peer))
    return again | {"first_seconds": first["seconds"], "first_peak_gib": first["peak_gib"]}


def run(program: str, case: Case, scan: Path, home: Path, out: Path, peer: Path) -> Watched:
    """Run one program on one case."""
    environment = {
        "TOTALSEG_HOME_DIR": str(home),
        "NAPARI_SEG_MODELS": str(out.parent / "store"),
        "NAPARI_SEG_CACHE": str(out.parent / "cache"),
    }
    if program in ("theirs", IN_32_BITS):
        words = ["-i", scan, "-o", out / program / "labels.nii.gz", "--ml", "--device", "cpu", *case.words]
        return watch([peer, *words], out / f"{program}_log", environment)
    words = ["predict", scan, "-o", out / program, "--model", f"totalsegmentator:{case.task}", *MODES[program]]
    command = [*NAPARI_SEG, *words, "--device", "cpu", "--json", *case.options]
    return watch(command, out / f"{program}_log", environment)


def scan_of(kind: str, data: Path, work: Path) -> Path:
    """Return a scan, made if it is not there yet."""
    if kind in ("ct", "mr"):
        return data / ("example_ct.nii.gz" if kind == "ct" else "example_mr_sm.nii.gz")
    if kind == "dicom":
        return data / "dicom"
    path = work / "scans" / f"{kind}.nii.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        makers = {
            "oblique": oblique,
            "large": lambda scan: enlarged(scan, 300),
            "largest": lambda scan: enlarged(scan, 600),
        }
        nib.save(makers[kind](nib.load(data / "example_ct.nii.gz")), path)
    return path


def enlarged(scan: nib.Nifti1Image, slices: int) -> nib.Nifti1Image:
    """Return a scan on 512 x 512 voxels and a number of slices, with a little noise."""
    values = scan.get_fdata(dtype=np.float32)
    shape = (512, 512, slices)
    columns = []
    for axis, length in enumerate(shape):
        places = np.linspace(0, values.shape[axis] - 1, length)
        below = np.minimum(places.astype(int), values.shape[axis] - 2)
        share = (places - below).astype(np.float32)
        share = share.reshape([-1 if n == axis else 1 for n in range(3)])
        values = np.take(values, below, axis) * (1 - share) + np.take(values, below + 1, axis) * share
        columns.append((scan.shape[axis] - 1) / (length - 1))
    random = np.random.default_rng(0)
    values += 10 * random.standard_normal(values.shape, np.float32)
    affine = scan.affine @ np.diag([*columns, 1])
    return nib.Nifti1Image(np.clip(np.rint(values), -1024, 3071).astype(np.int16), affine)


def oblique(scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a part of a scan on a rotated grid whose axes are permuted and flipped."""
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, -2.8, 0], [0, 0, 3.5], [-3.2, 0, 0]])[:, [2, 1, 0]]
    shape = (80, 110, 90)
    middle = (scan.affine @ [*(np.array(scan.shape) / 2), 1])[:3]
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2)
    to_scan = np.linalg.inv(scan.affine) @ affine
    values = affine_transform(scan.get_fdata(), to_scan[:3, :3], to_scan[:3, 3], shape, order=1, cval=-1024)
    return nib.Nifti1Image(np.rint(values).astype(np.int16), affine)


def labels_of(folder: Path, scan: Path) -> nib.Nifti1Image:
    """Return the label map in a folder, in canonical order of the axes.

    Raises:
        SystemExit: there is none.
    """
    found = [*folder.glob("labels.nii.gz"), *folder.glob("*_seg.nii.gz")]
    if len(found) != 1:
        raise SystemExit(f"found {[path.name for path in found]} in {folder}; expected one label map")
    image = nib.load(found[0])
    if scan.is_file():
        expected = nib.load(scan)
        if image.shape != expected.shape or not np.allclose(image.affine, expected.affine, atol=1e-3):
            raise SystemExit(f"{found[0]} does not lie on the scan's grid")
    return nib.as_closest_canonical(image)


def names_of(out: Path) -> dict[int, str]:
    """Return the names of the structures in TotalSegmentator's result."""
    image = nib.load(out / "theirs" / "labels.nii.gz")
    for extension in image.header.extensions:
        import xml.etree.ElementTree as tree

        content = extension.get_content()
        text = content.decode() if isinstance(content, bytes) else str(content)
        found = tree.fromstring(text.rstrip("\0")).iter("Label")
        return {int(one.get("Key", 0)): str(one.text).strip() for one in found}
    return {}


def agreement(ours: nib.Nifti1Image, theirs: nib.Nifti1Image, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the share of equal voxels, and the Dice of each structure, small ones apart."""
    if ours.shape != theirs.shape:
        return {"error": f"shapes differ: {ours.shape}, {theirs.shape}"}
    shift = float(np.abs(ours.affine - theirs.affine).max())
    mine, other = (np.asarray(one.dataobj).astype(np.int64) for one in (ours, theirs))
    count = int(max(mine.max(), other.max())) + 1
    sizes, their_sizes = (np.bincount(one.ravel(), minlength=count) for one in (mine, other))
    both = np.bincount(mine[mine == other].ravel(), minlength=count)
    dice = {n: 2 * both[n] / (sizes[n] + their_sizes[n]) for n in range(1, count) if sizes[n] + their_sizes[n]}
    large = {n: score for n, score in dice.items() if max(sizes[n], their_sizes[n]) >= FEW_VOXELS}
    small = {names.get(n, str(n)): [int(their_sizes[n]), round(float(dice[n]), 4)] for n in dice if n not in large}
    worst = min(large, key=large.__getitem__, default=0)
    return {
        "equal": float(np.mean(mine == other)),
        "different": int(np.sum(mine != other)),
        "foreground": float(np.mean(other > 0)),
        "structures": len(large),
        "dice": float(np.mean(list(large.values()))) if large else None,
        "least_dice": float(large[worst]) if large else None,
        "worst": names.get(worst, str(worst)),
        "below": {names.get(n, str(n)): round(float(score), 5) for n, score in large.items() if score < 0.999},
        "small": small,
        "affine_mm": shift,
    }


def figures(watched: Watched) -> dict[str, float]:
    return {"seconds": watched.seconds, "peak_gib": watched.peak_bytes / 2**30}


def error_of(folder: Path) -> str:
    """Return the last line that a command printed."""
    text = "\n".join((folder / name).read_text(errors="replace") for name in ("stdout.txt", "stderr.txt"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:300]


def read(folder: Path) -> dict[str, Any]:
    path = folder / "totalsegmentator.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


def write(folder: Path, name: str, row: dict[str, Any], about: dict[str, Any]) -> None:
    """Replace a case's row in totalsegmentator.json and write totalsegmentator.md from all rows."""
    rows = {**read(folder)["rows"], name: row}
    known = {"machine": about, "rows": {one: rows[one] for one in CASES if one in rows}}
    (folder / "totalsegmentator.json").write_text(json.dumps(known, indent=1) + "\n")
    (folder / "totalsegmentator.md").write_text(describe(known) + "\n")


def describe(known: Mapping[str, Any]) -> str:
    """Return the page of the report."""
    rows = known["rows"]
    lines = ["# TotalSegmentator", ""]
    lines += paragraph(
        "Written by `scripts/totalsegmentator_parity.py`, which describes how it measures: TotalSegmentator 2.18 and",
        "`napari-seg predict` run the same tasks with the same weights on the same files, on the processor. All",
        "numbers are in [totalsegmentator.json](totalsegmentator.json).",
    )
    lines += [describe_machine(dict(known["machine"])), "", "## Agreement", ""]
    lines += paragraph(
        "Small networks, trained for minutes so that structures are found: the figures show agreement, not accuracy.",
        "Equal: share of equal voxels. Dice: mean of all structures, the lowest in parentheses; structures of fewer",
        f"than {FEW_VOXELS} voxels are listed below instead. `exact` is what `--match exact` gives, the default for",
        "these models. Voxels that differ there are ties between two structures: nnU-Net, which TotalSegmentator runs,",
        "adds logits in 16 bits, napari-seg in 32. The column `in 32 bits` compares with TotalSegmentator that adds in",
        "32 bits too (`torch.half = torch.float32` before it is imported). `fast` uses the fewest windows, the body's",
        "bounds and the processor's number format; networks trained for minutes on one scan depend strongly on where",
        "windows lie, so that column says little about published ones.",
    )
    head = ["scan and task", "structures", "exact: equal", "in 32 bits", "Dice", "fast: equal", "Dice", "s", "GiB"]
    lines += table(head, [_row(name, row) for name, row in rows.items() if CASES[name].theirs])
    lines += ["", *paragraph("Seconds and GiB: exact / fast / TotalSegmentator, on a machine that did other work too.")]
    timed = [line for name, row in rows.items() if CASES[name].full for line in _time_rows(name, row)]
    if timed:
        lines += ["## Time and memory", ""]
        lines += paragraph(
            "Networks of the published size: 31 million parameters, windows of 128 x 128 x 128. They hold a narrow",
            "network that was trained, and zeros around it, so they cost what the published ones cost. napari-seg",
            "verifies each network once, at its first scan: first, the seconds of that run. `--match fast` computes in",
            "bfloat16 where a check on the first window shows that labels hold, which some of these briefly trained",
            "networks fail; with `--precision bfloat16` all five do.",
        )
        head = ["scan and task", "program", "first, s", "s", "GiB", "times as fast", "share of its memory"]
        lines += [*table(head, timed), ""]
    lines += ["## Notes", ""]
    lines += [f"- {key}: {text}" for key, text in SCANS.items() if any(CASES[name].scan == key for name in rows)]
    for name, row in rows.items():
        small = row.get("exact", {}).get("small")
        if small:
            text = ", ".join(f"{one} ({count}: {score:.3f})" for one, (count, score) in small.items())
            lines += [f"- {name}, structures of fewer than {FEW_VOXELS} voxels with their voxels and Dice: {text}"]
        for mode in MODES:
            if "error" in row.get(mode, {}):
                lines += [f"- {name}, {mode}: {row[mode]['error']}"]
    return "\n".join(lines)


def _row(name: str, row: Mapping[str, Any]) -> Sequence[object]:
    exact, fast, theirs = (row.get(key, {}) for key in ("exact", "fast", "theirs"))
    compared = [
        text
        for one, digits in ((exact, 5), (fast, 4))
        for text in (
            f"{one['equal']:.4%}" if "equal" in one else "–",
            f"{one['dice']:.{digits}f} ({one['least_dice']:.{digits}f})" if one.get("dice") is not None else "–",
        )
    ]
    took = [
        " / ".join(f"{one[key]:{form}}" if key in one else "–" for one in (exact, fast, theirs))
        for key, form in (("seconds", ".0f"), ("peak_gib", ".2f"))
    ]
    in_32_bits = f"{exact['equal_in_32_bits']:.4%}" if "equal_in_32_bits" in exact else "–"
    return [name, exact.get("structures", "–"), compared[0], in_32_bits, *compared[1:], *took]


def _time_rows(name: str, row: Mapping[str, Any]) -> list[Sequence[object]]:
    theirs = row.get("theirs", {})
    lines = []
    for key in PROGRAMS:
        one = row.get(key, {})
        if "seconds" not in one:
            continue
        title = "TotalSegmentator" if key == "theirs" else " ".join((*MODES[key], *CASES[name].options))
        known = key != "theirs" and "seconds" in theirs
        faster = f"{theirs['seconds'] / one['seconds']:.1f}" if known else ""
        share = f"{one['peak_gib'] / theirs['peak_gib']:.2f}" if known else ""
        first = f"{one['first_seconds']:.0f}" if "first_seconds" in one else ""
        lines.append([name, title, first, f"{one['seconds']:.0f}", f"{one['peak_gib']:.2f}", faster, share])
    return lines


if __name__ == "__main__":
    main()
