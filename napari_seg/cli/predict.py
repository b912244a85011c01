"""`napari-seg predict`: scans in, label maps, pictures and volumes out."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.exit_codes import ExitCode, exit_code
from napari_seg.cli.read_options import add_read_options, read_options

if TYPE_CHECKING:
    from napari_seg.cohort.runner import CaseResult


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "predict",
        help="segment scans: NIfTI files, DICOM folders, or folders with any number of both",
        description="Segments every scan below the inputs, in archives (zip, tar) too. Each gives, in the output "
        "folder, <name>_seg.nii.gz on the scan's own grid, <name>_seg.png (three planes through each structure) and "
        "<name>_seg.json (names, volumes in ml, confidence). A scan that can't be used is reported with a code and "
        "does not stop the others.",
        epilog="Example: napari-seg predict head.nii.gz study/ -o results",
    )
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="a NIfTI file, a DICOM folder or file, or a folder"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results; made if missing"
    )
    parser.add_argument("--bundle", metavar="B", help="a MONAI bundle's folder or name; the shipped one if left out")
    parser.add_argument(
        "--trust-bundle",
        action="store_true",
        help="let the code inside that bundle run; only for bundles whose source you trust",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N; default auto"
    )
    parser.add_argument(
        "--backend",
        choices=["auto", "torch", "openvino"],
        default="auto",
        help="what runs the network; auto takes OpenVINO on a processor where it is installed and worth its start",
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="what the network computes in; auto is float16 on a graphics card and float32 on a processor. bfloat16 "
        "takes about half the time, and half of the network's memory, on processors that have it; few voxels change",
    )
    parser.add_argument(
        "--memory",
        type=memory_size,
        metavar="SIZE",
        help="what the whole process may hold at most, such as 4GiB; four fifths of what is free if left out. Less "
        "memory takes more time",
    )
    parser.add_argument(
        "--windows",
        choices=["fewest", "even", "bundle"],
        default="fewest",
        help="fewest covers a scan with as little work as the bundle's overlap allows; even lays windows of the "
        "bundle's size evenly, as nnU-Net does; bundle lays them exactly as MONAI does; default fewest",
    )
    parser.add_argument(
        "--tta",
        choices=["shifts", "mirror", "none"],
        help="test-time averaging: shifts averages four copies of each window, shifted by 0 to 3 voxels, in four times "
        "the network's time; mirror averages mirror images, in eight times, for networks to which left and right are "
        "alike; none does neither; the bundle's own choice if left out (none in the shipped bundle)",
    )
    parser.add_argument(
        "--keep-islands",
        action="store_true",
        help="keep what lies apart from the main piece of a structure that the bundle declares to be in one piece; "
        "removed, and reported, if left out",
    )
    parser.add_argument(
        "--no-crop", action="store_true", help="look outside the body too, where there is air, and not only inside"
    )
    parser.add_argument(
        "--certainty",
        action="store_true",
        help="write <name>_seg_confidence.nii.gz, the winner's probability (255 is 1), and <name>_seg_entropy.nii.gz",
    )
    add_read_options(parser)
    parser.add_argument(
        "--also",
        nargs="+",
        choices=["seg", "labelmap", "rtstruct", "nrrd"],
        default=[],
        metavar="FORMAT",
        help="write the labels in other formats too: seg, a DICOM segmentation, <name>_seg.dcm; labelmap, one that "
        "keeps labels; rtstruct, DICOM contours; nrrd, 3D Slicer's <name>.seg.nrrd. DICOM only for DICOM scans",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that were edited or made by another program"
    )
    printing = parser.add_mutually_exclusive_group()
    printing.add_argument(
        "--json", action="store_true", help="print a list of objects, one a scan, at the end and instead of the table"
    )
    printing.add_argument(
        "--json-lines",
        action="store_true",
        help="print the same objects, each on a line of its own as soon as its scan is done or has failed",
    )
    parser.set_defaults(run=run)


def memory_size(text: str) -> int:
    """Bytes of a text such as "4GiB", "500 MB" or "2g"."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected an amount of memory such as 4GiB or 500MB")
    return int(float(found[1]) * units[found[2]])


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.cli.progress import print_results
    from napari_seg.cohort.runner import CaseResult
    from napari_seg.errors import Cancelled, NapariSegError

    results: list[CaseResult] = []

    def on_result(result: CaseResult) -> None:
        results.append(result)
        if arguments.json_lines:
            print(json.dumps(result.as_dict()), flush=True)

    try:
        found = _predict(arguments, on_result)
    except (NapariSegError, KeyboardInterrupt) as raised:
        error = raised if isinstance(raised, NapariSegError) else Cancelled()
        on_result(CaseResult("", "failed", error.code, error.message))  # what ended the run is the last entry
        if arguments.json:
            print(json.dumps([result.as_dict() for result in results], indent=2))
            arguments.json = False  # `main` prints the error for a person and nothing else
        raise
    if arguments.json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
    elif not arguments.json_lines:
        print_results(results)
    if not found:
        return ExitCode.NOTHING_FOUND
    return exit_code(sum(result.status == "failed" for result in results), len(results))


def _predict(arguments: argparse.Namespace, on_result: Callable[[CaseResult], None]) -> int:
    """Segment all scans, report each to `on_result`, and return how many were found."""
    from napari_seg.bundles.spec import read_bundle
    from napari_seg.bundles.trust import check_runnable
    from napari_seg.cli.progress import CohortProgress
    from napari_seg.cohort.discover import find_cases
    from napari_seg.cohort.runner import CaseResult, run_cohort
    from napari_seg.errors import InputError, printable

    bundle = read_bundle(arguments.bundle, trust=arguments.trust_bundle)
    check_runnable(bundle)  # before long work, and once
    cases, faults = find_cases(arguments.inputs)
    for path, fault in faults:
        name = printable(path.name)
        on_result(CaseResult(name, "failed", fault.code, fault.message, name))
    if not cases and not faults:
        raise InputError(
            "input.none",
            "found no scan below the inputs; expected NIfTI, NRRD, MetaImage, DICOM or pictures; 'napari-seg inspect' "
            "says what lies there",
        )
    if not cases:
        return 0
    is_for_people = not (arguments.json or arguments.json_lines)
    with CohortProgress(len(cases), bars=is_for_people and sys.stderr.isatty(), plans=is_for_people) as progress:
        run_cohort(
            cases,
            arguments.output,
            bundle,
            options={
                "device": arguments.device,
                "backend": arguments.backend,
                "precision": arguments.precision,
                "memory_bytes": arguments.memory,
                "windows": arguments.windows,
                "crop": not arguments.no_crop,
                "tta": arguments.tta,
                "keep_islands": arguments.keep_islands,
                "certainty": arguments.certainty,
            },
            reading=read_options(arguments),
            also=arguments.also,
            overwrite=arguments.overwrite,
            on_case=progress.on_case,
            on_result=on_result,
            progress=progress.on_step,
        )
    return len(cases)
