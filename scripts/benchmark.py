"""Measure napari-seg and its peers in one run on one machine; write docs/reference/benchmarks.json and benchmarks.md.

    python scripts/benchmark.py predict --scan T1            a whole scan, and nnU-Net and MONAI: an hour
    python scripts/benchmark.py predict --scan T1 --peer PYTHON --only nnunet model model-float32 model-exact --rounds 2
                                                             the same nnU-Net folder by nnU-Net and by us
    python scripts/benchmark.py scaling                      scans that grow twofold: a quarter of an hour
    python scripts/benchmark.py memory                       peak memory of long scans and many classes: half an hour
    python scripts/benchmark.py plans                        estimates compared with what it takes
    python scripts/benchmark.py reading                      a long CT series, and other readers: some minutes
    python scripts/benchmark.py versions --other ../old --scan T1      another checkout of this program: half an hour
    python scripts/benchmark.py editing                      editing functions in a large scan: two minutes
    python scripts/benchmark.py cohort --folder CROPS --peer PYTHON       a folder of small scans, and nnU-Net: an hour
    python scripts/benchmark.py train --dataset Task04_Hippocampus      the training loop, and nnU-Net's

Each writes its own section and leaves the others. Needs the extras [bench] and [openvino]. With --work what is made on
the way (networks, label maps, what the programs said) is kept, and used again where it fits.

Who is compared does the same work with the same weights, in a process of its own from its start to its end; whole runs
take turns round by round (`predict --rounds`), training loops a few steps each, in changing order. Whose turn it is not
is stopped together with its workers (SIGSTOP), so it neither costs anything nor works ahead. Memory is that of all
processes together, pages that they share counted once. Nothing else should run meanwhile: the load before stands in
the report. How each section measures stands in scripts/benchmarks/, a module each.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.cohort import RUNS, cohort, describe_cohort
from benchmarks.editing import CALLS, describe_editing, editing
from benchmarks.measuring import CHECKOUT
from benchmarks.memory import describe_memory, memory
from benchmarks.networks import Standard
from benchmarks.plans import describe_plans, plans
from benchmarks.predict import CONTENDERS, describe_predict, predict
from benchmarks.reading import SHAPE, describe_reading, reading
from benchmarks.report import write_report
from benchmarks.scaling import describe_scaling, scaling
from benchmarks.train import describe_train, train
from benchmarks.versions import CASES, describe_versions, versions

SECTIONS = {
    "predict": describe_predict,
    "cohort": describe_cohort,
    "scaling": describe_scaling,
    "memory": describe_memory,
    "plans": describe_plans,
    "reading": describe_reading,
    "editing": describe_editing,
    "train": describe_train,
    "versions": describe_versions,
}


def main() -> None:
    """Run one comparison and write it into the report."""
    args = parse()
    # ends the contenders too, which would otherwise stand still for ever
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{args.command}: ended before it was done"))
    for folder in (args.report, args.work):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    write_report(args.report, args.command, args.measure(args), SECTIONS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    shared.add_argument("--work", type=absolute, help="folder for what is made on the way; kept, and used again")
    network = argparse.ArgumentParser(add_help=False)
    usual = Standard()
    network.add_argument("--classes", type=int, default=usual.classes, help="of the network, background included")
    network.add_argument("--features", type=int, nargs="+", default=usual.features, help="channels of its stages")
    network.add_argument("--patch", type=int, default=usual.patch, help="voxels along each axis of its windows")

    command = commands.add_parser("predict", parents=[shared, network], help="a whole scan, and nnU-Net and MONAI")
    command.add_argument("--scan", type=absolute, required=True, help="a DICOM folder or a NIfTI file")
    command.add_argument("--rounds", type=int, default=1, help="runs of each contender")
    command.add_argument("--only", nargs="+", choices=CONTENDERS, help="who runs; all but nnunet-tta if not given")
    command.add_argument("--tta", action="store_true", help="nnU-Net's default with mirror images as well: eight times")
    command.add_argument("--resume", action="store_true", help="take what earlier calls with this --work measured")
    command.add_argument("--training-steps", type=int, default=300, help="of the network, before all else")
    command.add_argument(
        "--training-patch", type=int, default=64, help="voxels along each axis of what it is shown then"
    )
    command.add_argument(
        "--peer", type=absolute_link, default=Path(sys.executable), help="Python of an environment that has nnU-Net"
    )
    command.add_argument("--training-amp", action="store_true", help="trained in bfloat16, if the processor has it")
    command.set_defaults(measure=predict)

    command = commands.add_parser("cohort", parents=[shared], help="a folder of small scans, and nnU-Net")
    command.add_argument("--folder", type=absolute, required=True, help="NIfTI files, such as imagesTr of Task04")
    command.add_argument("--classes", type=int, default=3, help="of the network, background included")
    command.add_argument("--features", type=int, nargs="+", default=[32, 64, 128, 256], help="channels of its stages")
    command.add_argument("--windows", type=int, nargs=3, default=[40, 56, 40], help="size of its windows, in voxels")
    command.add_argument("--cases", type=int, help="only the first ones")
    command.add_argument("--sample", type=int, default=8, help="scans that get a process of their own each")
    command.add_argument("--rounds", type=int, default=3, help="runs of each program")
    command.add_argument("--only", nargs="+", choices=RUNS, help="programs that run; default: all")
    command.add_argument("--training-steps", type=int, default=100, help="of the network, before all else")
    command.add_argument(
        "--peer", type=absolute_link, default=Path(sys.executable), help="Python of an environment that has nnU-Net"
    )
    command.set_defaults(measure=cohort)

    command = commands.add_parser("scaling", parents=[shared, network], help="scans that grow twofold")
    command.add_argument("--shape", type=int, nargs=3, default=[128, 192, 192], help="of the smallest scan")
    command.add_argument("--sizes", type=int, default=4, help="how many scans")
    command.add_argument("--backends", nargs="+", default=["openvino", "torch"], help="what runs the network")
    command.set_defaults(measure=scaling)

    command = commands.add_parser("memory", parents=[shared], help="peak memory of long scans and many classes")
    command.add_argument("--budget", default="3GiB", help="the value of `napari-seg predict --memory`")
    command.set_defaults(measure=memory)

    command = commands.add_parser("plans", parents=[shared], help="estimates compared with what it takes")
    command.add_argument("--tiny", action="store_true", help="two small cases, to see that it runs")
    command.set_defaults(measure=plans)

    command = commands.add_parser("reading", parents=[shared], help="a long CT series, and other readers")
    command.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="of the series: columns, rows, slices")
    command.add_argument("--rounds", type=int, default=5, help="turns of each reader")
    command.set_defaults(measure=reading)

    command = commands.add_parser("editing", parents=[shared], help="editing functions in a large scan")
    command.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="of the scan")
    command.add_argument("--only", nargs="+", choices=CALLS, help="functions that are measured; default: all")
    command.set_defaults(measure=editing)

    command = commands.add_parser("train", parents=[shared], help="the training loop, and nnU-Net's")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    command.add_argument("--dataset", type=Path, help="a Decathlon folder; phantoms if not given")
    command.add_argument("--steps", type=int, default=4, help="steps a turn")
    command.add_argument("--warmup", type=int, default=4, help="steps before the first turn")
    command.add_argument("--amp", action="store_true", help="our trainer in bf16 as well")
    command.add_argument("--compile", action="store_true", help="our trainer with torch.compile as well (needs g++)")
    command.set_defaults(measure=train)

    command = commands.add_parser("versions", parents=[shared, network], help="this checkout and another one")
    command.add_argument("--other", type=absolute, required=True, help="folder of the other checkout")
    command.add_argument("--scan", type=absolute, required=True, help="a DICOM folder or a NIfTI file")
    command.add_argument("--only", nargs="+", choices=CASES, help="cases to run; default: all")
    command.add_argument("--rounds", type=int, default=3, help="turns of each checkout")
    command.add_argument("--training-steps", type=int, default=30, help="training steps of the network")
    command.set_defaults(measure=versions)
    return parser.parse_args()


def absolute(text: str) -> Path:
    return Path(text).resolve()


def absolute_link(text: str) -> Path:
    """Return an absolute path as it is written: a virtual environment's Python is a link to another one."""
    return Path(text).absolute()


if __name__ == "__main__":
    main()
