"""Command-line arguments that say what a run consists of: models, filters, rules, and the layout of the results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.values import whole_number

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.select import Selection


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--model",
        "--bundle",
        dest="models",
        action="append",
        metavar="M",
        help="a MONAI bundle or a model of nnU-Net, by its folder or the name of an installed one, or a task such as "
        "totalsegmentator:total, which totalsegmentator:total+M runs with an improved model M in place of its own; the "
        "shipped bundle if left out. Given several times, each scan is segmented once by each model, and the names of "
        "the results end with that of the model",
    )
    group = parser.add_argument_group(
        "which scans", "Scans that these leave out are listed as skipped. They are judged by their headers."
    )
    group.add_argument(
        "--modality",
        action="extend",
        nargs="+",
        default=[],
        metavar="CODE",
        help="only these, such as CT or MR (NIfTI: by its name)",
    )
    group.add_argument(
        "--min-slices", type=whole_number, default=0, metavar="N", help="only scans with N slices or more"
    )
    group.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only series whose description, or files whose name, match a pattern such as 'T1*'; may be repeated",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="not those whose file, folder or series matches a pattern such as 'old/*'; may be repeated",
    )
    group.add_argument(
        "--rules",
        type=Path,
        metavar="FILE",
        help="a table (CSV, TSV) or JSON file whose rules choose the model of each scan, or 'skip', by modality, "
        "series, body_part, min_slices, max_slices, min_thickness_mm and max_thickness_mm; the first rule that matches "
        "counts, and a scan that matches none is skipped. --trust does not apply to models that a file names",
    )
    parser.add_argument(
        "--layout",
        choices=("flat", "mirror", "bids"),
        default="flat",
        help="where results lie: flat, all in OUT; mirror, in the folders of the input; bids, in OUT/derivatives/"
        "napari-seg with the names that BIDS requires, for inputs with subjects such as sub-01. Default flat",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would run, be skipped and be refused, the names of the outputs and an estimate of the time, "
        "and write nothing",
    )


def selection_of(arguments: argparse.Namespace) -> Selection:
    """Return what the arguments select.

    Raises:
        InputError: `cohort.rules`, `cohort.rules_unreachable`, `cohort.network`: the rules file can't be used.
    """
    from napari_seg.cohort.rules import read_rules
    from napari_seg.cohort.select import Selection

    if arguments.rules is not None and arguments.models:
        arguments.refuse("found --rules and --model; expected one of them: the rules choose the model of each scan")
    return Selection(
        inputs=tuple(arguments.inputs),
        models=tuple(dict.fromkeys(arguments.models or [""])),
        rules=() if arguments.rules is None else read_rules(arguments.rules),
        modalities=tuple(arguments.modality),
        min_slices=arguments.min_slices,
        series=tuple(arguments.series),
        exclude=tuple(arguments.exclude),
        layout=arguments.layout,
    )


def model_reader(arguments: argparse.Namespace) -> Callable[[str, bool], Bundle]:
    """Return a function that reads a model by its reference, and refuses one whose code may not run.

    `--trust` counts for models of the command line only: a list or a rules file may come from somebody else, and what
    it names must have been trusted before.
    """

    def model_of(reference: str, is_of_user: bool) -> Bundle:
        from napari_seg.bundles.read import read_bundle
        from napari_seg.bundles.trust import check_runnable
        from napari_seg.cli.consent import give_consent

        bundle = read_bundle(reference or None)
        if arguments.trust and is_of_user:
            bundle = give_consent(bundle)
        check_runnable(bundle)  # before long work, and once
        return bundle

    return model_of
