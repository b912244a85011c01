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
    from napari_seg.cli.cohort_view import CohortView
    from napari_seg.cli.progress import print_results
    from napari_seg.cli.stop_signals import stop_by_signals
    from napari_seg.cohort.cohort import Cohort
    from napari_seg.localise import mni152_path

    cohort = Cohort(mni152_path(), arguments.output.resolve(), device=arguments.device)
    cohort.use([replace(case, name="MNI152_T1") for case in cohort.cases])
    with CohortView() as view, stop_by_signals(cohort.stop, view.show):
        cohort.view = view
        results = list(cohort)
    print_results(results, cohort.output)
    return exit_code(sum(result.status == "failed" for result in results), len(results))
