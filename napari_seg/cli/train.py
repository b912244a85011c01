"""`napari-seg train`: train a bundle on a data set."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_seg.cli.consent import add_trust_option
from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.set_option import add_set_option, parsed, settings_of
from napari_seg.cli.train_output import (
    print_best,
    print_bundle,
    print_commands,
    print_comparison,
    print_folds,
    print_line,
    print_plan,
    print_rate,
    print_report,
    print_scores,
    print_steps,
)
from napari_seg.cli.values import count, fold_number, integer, minutes, named_label, named_value

if TYPE_CHECKING:
    from napari_seg.training.choices import Choices


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on your own data set",
        description="Checks the data set, plans the training, writes OUT as a complete MONAI bundle and trains it with "
        "MONAI's own command. Run the same command again to resume. Ctrl-C, or a file OUT/stop, saves a checkpoint and "
        "stops.",
        epilog="Example: napari-seg train Task04_Hippocampus -o hippocampus --max-minutes 30",
    )
    parser.add_argument(
        "dataset",
        type=Path,
        nargs="+",
        help="data set, or several to train one network on all their classes: a folder (Decathlon, nnU-Net, BIDS, "
        "PASCAL VOC, images/ and labels/, DICOM series with SEG or RTSTRUCT, images next to their label "
        "maps), an archive of one, or a CSV or JSON list of paths; formats that training does not read are converted "
        "into OUT/data",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the bundle")
    parser.add_argument("--network", metavar="NAME", help="UNet (default), FCN, DeepLabV3, DeepLabV3Plus, MultiView")
    parser.add_argument(
        "--dims",
        type=integer,
        choices=(2, 3),
        help="spatial dimensions of the network; 2 segments volumes slice by slice",
    )
    parser.add_argument(
        "--size",
        choices=("S", "M", "L", "XL"),
        help="size of the U-Net; default: S on a CPU, M on a GPU; --dry-run prints what each costs",
    )
    parser.add_argument(
        "--plan", choices=("nnunet",), help="plan by the rules of nnU-Net v2 instead: patch, batch, network, optimiser"
    )
    parser.add_argument(
        "--max-minutes",
        type=minutes,
        metavar="M",
        help="training time limit in minutes, summed over restarts, per fold; "
        "checks, planning and the final validation are not counted",
    )
    parser.add_argument(
        "--max-epochs",
        type=count,
        metavar="N",
        help="number of epochs; a larger number than before extends a training",
    )
    parser.add_argument(
        "--folds",
        type=integer,
        metavar="K",
        help="cross-validate with K folds; the bundle becomes the ensemble of the folds",
    )
    parser.add_argument(
        "--fold",
        type=fold_number,
        metavar="I",
        help="with --folds: train only this fold, 0 to K - 1; without: all, to train on all cases and keep none to "
        "choose or to test the weights, once a cross-validation has measured this training",
    )
    parser.add_argument(
        "--compare",
        action="extend",
        nargs="*",
        choices=("2d", "3d", "3d_lowres", "3d_cascade"),
        help="with --folds: train these configurations on the same folds (default: all but 3d_cascade, which has to be "
        "named and is trained after 3d_lowres), and make the best one, or two that are better together, the bundle; "
        "the others stay in OUT/training",
    )
    parser.add_argument(
        "--gpus",
        type=_gpus,
        metavar="N",
        help="train on N GPUs of this machine, or on all, with batch_size cases on each; with --folds, each fold on "
        "all of them, one after another; resume with the same number",
    )
    parser.add_argument(
        "--option",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="option files to merge over the configs, such as loss_focal",
    )
    parser.add_argument(
        "--track",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="services to report to in this start: tensorboard (always written), mlflow, wandb, aim",
    )
    parser.add_argument(
        "--fine-tune",
        metavar="W",
        help="start from these weights: a file, a bundle, or a model of nnU-Net (FOLDER:3d_fullres), which keeps its "
        "network and its preprocessing",
    )
    parser.add_argument(
        "--replay",
        action="extend",
        nargs="+",
        default=[],
        type=Path,
        metavar="DATASET",
        help="data sets of an earlier training, so that its classes are not forgotten: half of the cases of each epoch "
        "(--set replay_share=0.5) come from them",
    )
    parser.add_argument(
        "--classes-from",
        action="extend",
        nargs="+",
        default=[],
        type=named_value,
        metavar="NEW=OLD",
        help="with --fine-tune: classes that begin from others than the one of the same name: merged ones, such as "
        'kidney="left kidney,right kidney", and divided ones, such as "left lung"=lung "right lung"=lung',
    )
    parser.add_argument(
        "--labels",
        action="extend",
        nargs="+",
        default=[],
        type=named_label,
        metavar="NAME=VALUE",
        help="names of the label values, such as liver=1 tumour=2,3",
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="layout of the data set, if it is not recognised: decathlon, nnunet, bids, voc, list or folders; or "
        "stacks: multi-page TIFF files are volumes with the voxel size that ImageJ wrote, not time series",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the images, absolute or relative to DATASET; use with --labels-dir"
    )
    parser.add_argument("--labels-dir", metavar="DIR", help="folder of the label maps; for BIDS, the derivative")
    parser.add_argument(
        "--channels",
        action="extend",
        nargs="+",
        metavar="SUFFIX",
        help="BIDS suffixes, columns of a list, or words in file names that form the channels of an image, such as T1w "
        "FLAIR",
    )
    add_set_option(parser)
    add_trust_option(
        parser,
        "continue in a folder whose bundle contains other code than this version's (an older version, your changes)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print plan, network, memory, time and commands, and write nothing; data that have to be converted are "
        "converted into the folder for temporary files meanwhile, and again at the start",
    )
    parser.add_argument(
        "--find-rate",
        type=Path,
        metavar="PNG",
        help="with --dry-run: test learning rates in up to 100 steps, print one that stands out, and draw the losses "
        "in a new file",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import BundleError, Cancelled
    from napari_seg.training.choices import ALL, Choices, changed_settings, check_trackers, distinct
    from napari_seg.training.comparison import COMPARISON
    from napari_seg.training.distributed import count_gpus
    from napari_seg.training.folds import cross_validate, fold_commands
    from napari_seg.training.prepare import data_folder, plan_bundle
    from napari_seg.training.run import train, training_command, writing
    from napari_seg.training.start import with_start

    check_trackers(arguments.track)
    if arguments.find_rate and not arguments.dry_run:
        raise BundleError("bundle.setting", "found --find-rate without --dry-run; expected both, or neither")
    (dataset, *more), out = [path.resolve() for path in arguments.dataset], arguments.output.resolve()
    reading = {
        "layout": arguments.layout,
        "images_dir": _from(dataset, arguments.images),
        "labels_dir": _from(dataset, arguments.labels_dir),
        "channels": arguments.channels,
    }
    if arguments.images and not arguments.labels_dir and arguments.layout != "folders":
        raise BundleError("bundle.setting", "found --images without --labels-dir; expected both, or neither")
    settings = settings_of(arguments)
    if arguments.classes_from:
        settings["classes_from"] = {
            name: text.split(",") for name, text in distinct(arguments.classes_from, "--classes-from").items()
        }
    choices = Choices(
        network=arguments.network,
        dims=arguments.dims,
        size=arguments.size,
        plan=arguments.plan,
        options=tuple(arguments.option),
        settings=settings | {name: value for name, value in reading.items() if value is not None},
        labels={
            name: [parsed(name, v) for v in text.split(",")]
            for name, text in distinct(arguments.labels, "--labels").items()
        },
        folds=arguments.folds,
    )
    fold = arguments.fold
    if fold == ALL:
        if arguments.folds is not None or arguments.compare is not None:
            raise BundleError("bundle.fold", "found --fold all with --folds or --compare; leave one out")
        choices, fold = replace(choices, settings=choices.settings | {"fold": ALL}), None
    if arguments.fine_tune:
        choices = with_start(choices, arguments.fine_tune, out)
    limits = {"max_epochs": arguments.max_epochs, "max_minutes": arguments.max_minutes}
    limits = {name: value for name, value in limits.items() if value is not None}
    if arguments.gpus is not None and (gpus := count_gpus(arguments.gpus)) > 1:
        limits["gpus"] = gpus
    if arguments.compare is not None or (out / COMPARISON).is_file():
        if arguments.replay:
            raise BundleError(
                "bundle.compare", "found --replay with --compare, which plans other networks; leave one out"
            )
        if arguments.find_rate:
            raise BundleError(
                "bundle.compare", "found --find-rate with --compare, which plans several networks; leave one out"
            )
        return _compare(arguments, dataset, more, out, choices, limits)
    plan = plan_bundle(
        dataset,
        out,
        choices,
        fold=fold,
        dry_run=arguments.dry_run,
        trust=arguments.trust,
        more=more,
        replay=[path.resolve() for path in arguments.replay],
        timed=True,
        limits=limits,
        rates=arguments.find_rate,
        report=print_line,
    )
    dataset = data_folder(dataset, out, plan)
    print_plan(plan, limits)
    if "rate" in plan:
        print_rate(plan["rate"], arguments.find_rate)
    values = changed_settings(plan, choices) | limits
    values["fine_tune"] = choices.fine_tune or plan["choices"].get("fine_tune")
    values["track"] = arguments.track
    folds = plan["choices"].get("folds")
    if arguments.dry_run:
        commands = [training_command(out, dataset, **values)]
        if folds:
            picked = range(folds) if fold is None else [fold]
            commands = [words for n in picked for words in fold_commands(out, dataset, n, folds, **values)]
        print_commands(commands, fold)
        return ExitCode.DONE
    is_useful = True
    try:
        with writing(out):
            if folds:
                dice = cross_validate(out, dataset, folds, fold, report=print_line, **values)
                print_folds(dice, folds)
            else:
                summary = train(out, dataset, **values)
                print_best(summary.best)
                is_tuned = bool(plan["choices"].get("fine_tune"))
                is_useful = print_steps(summary.steps, summary.best["mean_dice"] if summary.best and is_tuned else None)
            print_scores(out)
            print_report(out)
    except Cancelled as error:
        print_report(out)
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.CANCELLED
    print_bundle(out, plan, is_useful=is_useful)
    return ExitCode.DONE


def _compare(
    arguments: argparse.Namespace,
    dataset: Path,
    more: list[Path],
    out: Path,
    choices: Choices,
    limits: dict[str, Any],
) -> int:
    """Plan, train and compare several configurations."""
    from napari_seg.errors import Cancelled
    from napari_seg.progress import describe_seconds
    from napari_seg.training.choices import changed_settings
    from napari_seg.training.configurations import (
        compare_configurations,
        pair_minutes,
        pair_names,
        plan_configurations,
        total_minutes,
    )
    from napari_seg.training.folds import fold_commands
    from napari_seg.training.run import writing

    options = {"fold": arguments.fold, "trust": arguments.trust, "timed": True, "limits": limits}
    planned = plan_configurations(
        dataset,
        out,
        choices,
        arguments.compare or (),
        dry_run=arguments.dry_run,
        more=more,
        report=print_line,
        **options,
    )
    values: dict[str, dict[str, Any]] = {}
    commands: list[list[str]] = []
    for name, plan in planned.plans.items():
        print(f"configuration {name}")
        print_plan(plan, limits)
        values[name] = changed_settings(plan, planned.choices[name]) | limits | {"track": arguments.track}
        folder, folds = planned.folders[name], plan["choices"]["folds"]
        for fold in range(folds) if arguments.fold is None else [arguments.fold]:
            commands += fold_commands(folder, planned.data, fold, folds, **values[name])
    for name, reason in planned.left_out.items():
        print(f"left    {name}: {reason}")
    if pairs := pair_names(planned):
        cost = "" if (minutes := pair_minutes(planned)) is None else f", about {describe_seconds(60 * minutes)}"
        print(f"pairs   {', '.join(pairs)}: compared with the single ones on the validation cases of the folds{cost}")
    minutes = total_minutes(planned, limits)
    if minutes is not None:
        total = describe_seconds(60 * minutes)
        print(f"total   about {total} for all folds of {len(planned.plans)} configurations")
    if arguments.dry_run:
        print_commands(commands, arguments.fold)
        return ExitCode.DONE
    try:
        with writing(out):
            rows = compare_configurations(out, planned, arguments.fold, print_line, values)
    except Cancelled as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.CANCELLED
    if rows is None:
        print("the configurations are compared when all folds of all of them are finished")
        return ExitCode.DONE
    print_comparison([row.cells() for row in rows])
    print_scores(out)
    print_report(out)
    print_bundle(out, next(iter(planned.plans.values())))
    return ExitCode.DONE


def _gpus(word: str) -> int | Literal["all"]:
    if word == "all":
        return "all"
    try:
        return count(word)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or all") from None


def _from(dataset: Path, folder: str | None) -> str | None:
    """Return a folder relative to the data set, so that the bundle does not reveal where its data lie."""
    from napari_seg.training.choices import relative_path

    return None if folder is None else relative_path(dataset / folder, dataset)
