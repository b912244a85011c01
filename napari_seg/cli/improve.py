"""`napari-seg improve`: fine-tune a copy of a model on accepted cases, and compare both."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.cli.consent import add_trust_option
from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.set_option import add_set_option, settings_of
from napari_seg.cli.train_output import print_line
from napari_seg.cli.values import minutes

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.learning.improve import Improvement


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "improve",
        help="fine-tune a model on accepted cases, and compare both",
        description="Fine-tunes a copy of a model on the training part of a set of accepted cases (napari-seg accept), "
        "and compares the old and the new model on its validation part, which is never trained on. The old model stays "
        "as it is. Cases that can't be read are left out and named. Run the same command again to resume. Ctrl-C, or a "
        "file OUT/stop, saves a checkpoint and stops.",
        epilog="Examples: napari-seg improve corrected --model liver -o liver_round1 --max-minutes 20; of the shipped "
        'model: napari-seg improve corrected --model "Hippocampus, anterior and posterior" -o hippocampus_round1',
    )
    parser.add_argument("training_set", type=Path, metavar="SET", help="folder of accepted cases")
    parser.add_argument(
        "--model",
        required=True,
        metavar="BUNDLE",
        help="model to begin from: its folder, or its name or title ('napari-seg models list')",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the new model")
    parser.add_argument(
        "--max-minutes",
        type=minutes,
        default=20.0,
        metavar="M",
        help="training time limit in minutes, summed over restarts; the comparison is not counted; default 20",
    )
    parser.add_argument(
        "--replay",
        action="extend",
        nargs="+",
        default=[],
        type=Path,
        metavar="DATASET",
        help="data sets of the earlier training, so that it is not forgotten",
    )
    add_set_option(parser)
    add_trust_option(parser, "let the old model run code of its own while it is compared")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.read import read_bundle
    from napari_seg.cli.consent import give_consent
    from napari_seg.errors import Cancelled
    from napari_seg.learning.improve import improve

    bundle = read_bundle(arguments.model)
    try:
        found = improve(
            arguments.training_set.resolve(),
            give_consent(bundle) if arguments.trust else bundle,
            arguments.output,
            max_minutes=arguments.max_minutes,
            settings=settings_of(arguments),
            replay=[path.resolve() for path in arguments.replay],
            report=print_line,
        )
    except Cancelled as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.CANCELLED
    _print(found, str(arguments.model), bundle)
    return ExitCode.DONE


def _print(found: Improvement, model: str, bundle: Bundle) -> None:
    """Print the table of both models, and what it says.

    Args:
        found: the comparison.
        model: the old model, as the user named it.
        bundle: the old model.
    """
    from napari_seg.cli.progress import figure
    from napari_seg.errors import counted
    from napari_seg.learning.compare import MIN_PATIENTS

    rows = [("structure", "cases", "before", "after", "difference", "95 %")]
    for row in found.rows:
        interval = "–" if math.isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"
        was, is_now, more = figure(row.before, ".4f"), figure(row.after, ".4f"), figure(row.difference, "+.4f")
        rows.append((row.structure, str(row.cases), was, is_now, more, interval))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"Dice on the validation part, which is never trained on; {found.minutes:g} minutes of training")
    for cells in rows:
        print("        " + "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())
    if number := max((row.one_empty for row in found.rows), default=0):
        text = "only one of the models finds a structure that the labels do not contain; the other one has Dice 1 there"
        print(f"in {counted(number, 'case')} {text}")
    for name, reason in found.left_out.items():
        print(f"left out {name}: {reason}")
    few = f"; too few validation cases to tell, which takes those of {MIN_PATIENTS} patients"
    doubt = few if found.has_few_patients else "; the interval includes 0, so more validation cases would tell"
    if found.is_better:
        print(f"better  {found.output}{'' if found.is_clear else doubt}")
        print(f"try     {_predict(str(found.output))}")
        _print_whole(found.output, bundle)
    else:
        text = f"no gain {found.output}; keep {model}, accept more cases or give it more minutes"
        print(text + few * found.has_few_patients)


def _print_whole(output: Path, before: Bundle) -> None:
    """Print how the task of TotalSegmentator runs with a model that is an improved part of it.

    Args:
        output: folder of the model.
        before: the model that was improved.
    """
    from napari_seg.bundles.read import read_bundle, whole_task
    from napari_seg.bundles.store.installed import task_name
    from napari_seg.errors import BundleError

    try:
        if (whole := whole_task(read_bundle(output), before)) is not None:
            print(f"whole   {_predict(task_name(whole))}")
            print(f"        finds all {len(whole.segments)} structures of the task, these ones by the new model")
    except BundleError as error:
        print(f"alone   {error}")


def _predict(model: str) -> str:
    return shlex.join(["napari-seg", "predict", "SCAN", "--model", model, "-o", "results"])
