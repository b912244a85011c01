"""`napari-seg demo`: segment a real brain without data of your own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from napari_seg.cli.exit_codes import exit_code


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="segment both hippocampi of the MNI152 brain and print where the results are",
        description="Segments both hippocampi of the MNI152 template brain (which comes with nilearn), and writes the "
        "label map, a preview and the volumes. Needs no data and no network connection; takes half a minute on a "
        "laptop.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo_output"), help="folder for the results; default demo_output"
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda; default auto")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import sys

    from napari_seg.bundles.read import read_bundle
    from napari_seg.cli.progress import CohortProgress, print_results
    from napari_seg.cohort.discover import find_cases
    from napari_seg.cohort.runner import run_cohort
    from napari_seg.inference.options import SegmentOptions
    from napari_seg.localise import mni152_path

    cases = [replace(case, name="MNI152_T1") for case in find_cases([mni152_path()])[0]]
    with CohortProgress(len(cases), show_bars=sys.stderr.isatty()) as progress:
        results = run_cohort(
            cases,
            arguments.output.resolve(),
            read_bundle(),
            options=SegmentOptions(device=arguments.device),
            on_case=progress.on_case,
            progress=progress.on_step,
        )
    print_results(results)
    return exit_code(sum(result.status == "failed" for result in results), len(results))
