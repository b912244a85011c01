"""`napari-seg predict`: segment scans and write label maps, previews and volumes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.consent import add_trust_option
from napari_seg.cli.dask_options import add_dask_options, pool_of
from napari_seg.cli.exit_codes import ExitCode, exit_code
from napari_seg.cli.read_options import add_read_options, read_options
from napari_seg.cli.selection_options import add_selection_options, model_reader, selection_of
from napari_seg.cli.values import count
from napari_seg.formats.kinds import LABEL_FORMATS, RUN_FORMATS
from napari_seg.inference.options import SegmentOptions, option_fields

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.case import Case
    from napari_seg.cohort.cohort import Cohort
    from napari_seg.cohort.outcome import CaseResult
    from napari_seg.cohort.settings import RunSettings


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "predict",
        help="segment scans: NIfTI files, DICOM folders, or folders with any number of both",
        description="Segments every scan below the inputs, in archives (zip, tar) too. Each gives, in the output "
        "folder, <name>_seg.nii.gz on the scan's own grid, <name>_seg.png (three planes through each structure) and "
        "<name>_seg.json (names, volumes in ml, confidence). A scan that can't be used is reported with a code and "
        "does not stop the others. A run that was stopped or killed goes on when the same command is given again: "
        "finished scans are skipped, failed ones are tried again.",
        epilog="Example: napari-seg predict head.nii.gz study/ -o results",
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="a NIfTI file, a DICOM folder or file, a folder, or a list of scans: a datalist of MONAI or a list of "
        "paths in JSON, or a table (CSV, TSV) with a column path or image, and possibly name and model",
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        type=_channel,
        metavar="NAME=FILE",
        help="instead of INPUT, for a model that needs several images of a patient: the image of one channel, such as "
        "--channel T1=a.nii.gz --channel FLAIR=b.nii.gz; 'napari-seg models show M' lists the channels",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results; made if missing"
    )
    add_trust_option(
        parser, "let the code in that bundle run, now and until it changes; only for bundles whose source you trust"
    )
    add_selection_options(parser)
    _add_options(parser)
    add_read_options(parser)
    add_dask_options(parser)
    parser.add_argument(
        "--also",
        action="extend",
        nargs="+",
        choices=RUN_FORMATS,
        default=[],
        metavar="FORMAT",
        help=f"write the labels in other formats too: {_formats_in_words()}. DICOM formats need a DICOM scan",
    )
    parser.add_argument(
        "--statistics",
        action="store_const",
        const="complete",
        help="write <name>_seg_statistics.json, the volume in mm3 and the mean intensity of each structure, as "
        "TotalSegmentator does; structures that touch the border of the scan have zeros",
    )
    parser.add_argument(
        "--statistics-all",
        dest="statistics",
        action="store_const",
        const="all",
        help="the same, with the figures of structures that touch the border",
    )
    parser.add_argument(
        "--no-preview",
        dest="preview",
        action="store_false",
        help="write no previews of the results, which for small scans take nearly as long as the network",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that were edited or made by another program"
    )
    _add_run_options(parser)
    printing = parser.add_mutually_exclusive_group()
    printing.add_argument(
        "--json", action="store_true", help="print a list of objects, one a scan, at the end and instead of the table"
    )
    printing.add_argument(
        "--json-lines",
        action="store_true",
        help="print the same objects, each on a line of its own as soon as its scan is done or has failed",
    )
    parser.set_defaults(run=run, refuse=parser.error)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run over many scans."""
    parser.add_argument(
        "--redo",
        action="store_const",
        const="changed",
        default="none",
        help="make results of an earlier run again if they were made with other options or weights, or from another "
        "scan",
    )
    parser.add_argument(
        "--redo-all", dest="redo", action="store_const", const="all", help="make all results of an earlier run again"
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="TIME",
        help="longest time for one scan, such as 30min or 2h; a scan that takes longer fails; none by default",
    )
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="scans that are segmented at once, each in a process of its own; by default two, and more for small "
        "scans, as the memory allows",
    )
    parser.add_argument(
        "--join",
        action="store_true",
        help="share the work with other runs in the same folder, on this machine or on others; all need --join",
    )


_FLAGS = {"memory_bytes": "--memory", "crop": "--no-crop"}
"""Flags whose names differ from those of `SegmentOptions`."""

_OLD_FLAGS = {"confidence_maps": ("--certainty",)}
"""Earlier names of flags, which still work."""

_HELP = {
    "crop": "segment the air around the body too, and whatever a bundle's coarse pass excludes",
    "confidence_maps": "write <name>_seg_confidence.nii.gz, the winner's probability (255 is 1), and "
    "<name>_seg_entropy.nii.gz",
}
"""Help texts of flags whose effect differs from that of `SegmentOptions`."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each option of `SegmentOptions`: a switch for one that is true or false."""
    for option in option_fields():
        flag = _FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
        text = _HELP.get(option.name, option.metadata["help"]).replace("%", "%%")  # argparse fills in what follows %
        if isinstance(option.default, bool):
            action = "store_false" if option.default else "store_true"
            parser.add_argument(flag, *_OLD_FLAGS.get(option.name, ()), dest=option.name, action=action, help=text)
        elif option.default == ():
            parser.add_argument(
                flag, dest=option.name, action="extend", nargs="+", default=[], metavar="NAME", help=text
            )
        elif option.name == "memory_bytes":
            parser.add_argument(flag, dest=option.name, type=memory_size, metavar="SIZE", help=text)
        else:
            text += f"; default {option.default}" * (option.default is not None)
            choices = option.metadata["choices"] or None
            parser.add_argument(flag, dest=option.name, choices=choices, default=option.default, help=text)


def _formats_in_words() -> str:
    """Return the formats of `--also` with descriptions and file names."""
    formats = {name: LABEL_FORMATS[name] for name in RUN_FORMATS}
    return "; ".join(f"{name}, {one.description}, {one.file_name('<name>')}" for name, one in formats.items())


def _channel(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name.strip() and sign and path):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected NAME=FILE, such as T1=head.nii.gz")
    return name.strip(), Path(path)


def options_of(arguments: argparse.Namespace) -> SegmentOptions:
    """Return the options of a run from parsed arguments."""
    return SegmentOptions(**{option.name: getattr(arguments, option.name) for option in option_fields()})


def duration(text: str) -> float:
    """Return the seconds of a text such as "90s", "30min" or "2h"; a bare number counts seconds."""
    units = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in units or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a time such as 90s, 30min or 2h")
    return float(found[1]) * units[found[2]]


def memory_size(text: str) -> int:
    """Bytes of a text such as "4GiB", "500 MB" or "2g"."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected an amount of memory such as 4GiB or 500MB")
    return int(float(found[1]) * units[found[2]])


def _no_input(arguments: argparse.Namespace) -> str:
    """Return the message for missing inputs, which an option that takes several words may have swallowed."""
    for flag, words in (("--structures", arguments.structures), ("--modality", arguments.modality)):
        if taken := next((word for word in words if Path(word).exists()), ""):
            return f"INPUT is missing, since {taken} was taken for a value of {flag}; put INPUT before {flag}"
    return "the following arguments are required: INPUT, or --channel for each image of a case"


def run(arguments: argparse.Namespace) -> int:
    if not arguments.inputs and not arguments.channel:
        arguments.refuse(_no_input(arguments))
    _check_options(arguments)
    if arguments.dry_run:
        return _dry_run(arguments)
    from napari_seg.cohort.outcome import CaseResult
    from napari_seg.errors import Cancelled, NapariSegError

    results: list[CaseResult] = []

    def on_result(result: CaseResult) -> None:
        results.append(result)
        if arguments.json_lines:
            print(json.dumps(result.as_dict()), flush=True)

    try:
        cohort = _predict(arguments, on_result)
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
        from napari_seg.cli.progress import print_results

        print_results(results, arguments.output, cohort.report)
    failed = sum(result.status == "failed" for result in results)
    if not cohort.cases and not failed:
        return ExitCode.NOTHING_FOUND
    return exit_code(failed, sum(result.status != "skipped" for result in results))


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    choices = {
        "--rules": arguments.rules is not None,
        "--modality": bool(arguments.modality),
        "--min-slices": arguments.min_slices > 0,
        "--series": bool(arguments.series),
        "--exclude": bool(arguments.exclude),
        "--layout": arguments.layout != "flat",
        "several --model": len(set(arguments.models or ())) > 1,
    }
    found = [name for name, is_given in choices.items() if is_given]
    if arguments.channel and found:
        text = (
            f"found --channel and {', '.join(found)}; expected --channel alone or with one --model: it names the images"
        )
        arguments.refuse(f"{text} of one case, which is segmented once")
    if arguments.dask is not None and arguments.workers is not None:
        arguments.refuse("found --dask and --workers; expected one of them: the workers of the cluster run the cases")


def _predict(arguments: argparse.Namespace, on_result: Callable[[CaseResult], None]) -> Cohort:
    """Segment all scans, report each to `on_result`, and return the cohort."""
    from napari_seg.cli.cohort_view import CohortView
    from napari_seg.cli.predict_plan import superseded
    from napari_seg.cli.stop_signals import stop_by_signals
    from napari_seg.errors import counted, printable

    cohort = _cohort(arguments)
    is_quiet = arguments.json or arguments.json_lines
    options = cohort.settings.options
    for bundle in {id(case.bundle): case.bundle for case in cohort.cases}.values():
        assert bundle is not None
        if not is_quiet and options.match == "auto" and options.resolved(bundle).match == "exact":
            text = "runs as its own program does; --match fast is quicker, and gives other labels at borders"
            print(f"{printable(bundle.name)} {text}", file=sys.stderr)
    with CohortView(is_quiet=is_quiet) as view, stop_by_signals(cohort.stop, view.show):
        cohort.view = view
        for result in cohort:
            on_result(result)
    if cohort.selected.repeated and not is_quiet:
        print(f"napari-seg: {cohort.selected.repeated} scans were found twice, and run once", file=sys.stderr)
    if cohort.other_results and not is_quiet:
        text = f"the tables in {arguments.output} have {counted(cohort.other_results, 'result')} of other scans, too"
        print(f"napari-seg: {text}", file=sys.stderr)
    for line in () if is_quiet else superseded(cohort.results_left_out, cohort.results_renamed):
        print(f"napari-seg: {line}", file=sys.stderr)
    if cohort.report_fault is not None:
        print(f"napari-seg: the results are complete, but not their report: {cohort.report_fault}", file=sys.stderr)
    return cohort


def _dry_run(arguments: argparse.Namespace) -> int:
    """Print what the run would do; the exit status is that of the run, as far as it can be told before."""
    from napari_seg.cli.predict_plan import print_plan

    cohort = _cohort(arguments)
    plan = cohort.plan(report=lambda text: print(text, file=sys.stderr))
    print_plan(plan, arguments.output, as_json=arguments.json or arguments.json_lines)
    if not cohort.cases and not plan.refused:
        return ExitCode.NOTHING_FOUND
    return exit_code(len(plan.refused), len(plan.refused) + len(plan.cases))


def _cohort(arguments: argparse.Namespace) -> Cohort:
    """Return the cohort of the arguments.

    Raises:
        InputError: `input.none`, there is no scan below the inputs; `input.missing`, none of them exists.
    """
    from napari_seg.cohort.cohort import Cohort
    from napari_seg.errors import InputError

    selection, model_of = selection_of(arguments), model_reader(arguments)
    cohort = Cohort(
        arguments.inputs,
        arguments.output,
        selection=selection,
        model_of=model_of,
        settings=_settings(arguments),
        workers=arguments.workers,
        redo=arguments.redo,
        join=arguments.join,
        make_pool=pool_of(arguments),
    )
    if arguments.channel:
        cohort.use([_case_of_channels(arguments, model_of(selection.models[0], True))])
    if not cohort.cases and cohort.excluded and all(one.code == "input.missing" for one in cohort.excluded):
        missing = [f"{path} does not exist; check the path" for path in arguments.inputs if not os.path.exists(path)]
        raise InputError("input.missing", "; ".join(missing or (one.message for one in cohort.excluded)))
    if not cohort.cases and not cohort.excluded:
        raise InputError(
            "input.none",
            "found no scan below the inputs; expected NIfTI, NRRD, MetaImage, DICOM or 2D images; 'napari-seg inspect' "
            "says what lies there",
        )
    return cohort


def _settings(arguments: argparse.Namespace) -> RunSettings:
    from napari_seg.cohort.settings import RunSettings

    return RunSettings(
        options=options_of(arguments),
        reading=read_options(arguments),
        also=tuple(arguments.also),
        statistics=arguments.statistics,
        preview=arguments.preview,
        timeout_seconds=arguments.timeout,
        overwrite=arguments.overwrite,
    )


def _case_of_channels(arguments: argparse.Namespace, bundle: Bundle) -> Case:
    """Return the case of the images of `--channel`."""
    from napari_seg.cohort.discover import case_of
    from napari_seg.errors import InputError
    from napari_seg.formats.channels import channel_set

    if arguments.inputs:
        text = f"found --channel and the input {arguments.inputs[0]}; expected one of them: --channel names all images"
        raise InputError("channels.with_input", text)
    names = [name for name, _ in arguments.channel]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("channels.ambiguous", f"found --channel {twice} more than once; expected one image for each")
    return case_of(channel_set(dict(arguments.channel), bundle.channel_names))
