"""Measures napari-seg beside its peers, in one run on one machine, and writes docs/benchmarks.json and benchmarks.md.

    python scripts/benchmark.py train --dataset Task04_Hippocampus
    python scripts/benchmark.py memory

Needs the extra [bench]. Contenders work in processes of their own and take turns, a few steps each, in changing order.
Whose turn it is not is stopped together with its workers (SIGSTOP), so it neither costs anything nor works ahead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
SPAWN = multiprocessing.get_context("spawn")


# measuring: what every comparison shares


class Contender:
    """A process that, whenever it is its turn, takes a number of steps and answers with what each of them took.

    Args:
        name: how the report calls it.
        serve: a function of this or another module, called in the process with a connection and `args`; it receives
            numbers of steps and sends, for each, a list of that many {phase: seconds}.
        args: passed to `serve`.
        log: the file that gets what the process prints.
    """

    def __init__(self, name: str, serve: Callable, *args: object, log: Path) -> None:
        self.name, self.log, self.peak_bytes = name, log, 0
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(serve, theirs, log, args))
        self.process.start()
        theirs.close()

    def turn(self, steps: int) -> list[dict[str, float]]:
        """What each of the next steps took, in seconds by phase; the process stands still before and after."""
        self._signal(signal.SIGCONT)
        try:
            self.connection.send(steps)
            while not self.connection.poll(2):
                self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, self._tree())))
            taken = self.connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name} ended early; what it said stands in {self.log}") from None
        self._signal(signal.SIGSTOP)
        return taken

    def close(self) -> None:
        """Ends the process and its workers."""
        self._signal(signal.SIGKILL)
        self.process.join()

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: int) -> None:
        for process in self._tree():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def _serve(serve: Callable, connection: Connection, log: Path, args: Sequence) -> None:
    multiprocessing.set_start_method(None, force=True)  # workers begin as usual here, not as this process did
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    serve(connection, *args)


def _memory_bytes(process: psutil.Process) -> int:
    """Resident memory of a process, a page that it shares with others counted in parts (Linux's PSS)."""
    try:
        return getattr(process.memory_full_info(), "pss", 0)
    except psutil.Error:
        return 0


def take_turns(contenders: Sequence[Contender], rounds: int, steps: int) -> dict[str, list[list[dict[str, float]]]]:
    """By name, round and step what was taken; each round's order is the reverse of the one before."""
    taken: dict[str, list] = {contender.name: [] for contender in contenders}
    for n in range(rounds):
        for contender in contenders if n % 2 == 0 else reversed(contenders):
            taken[contender.name].append(contender.turn(steps))
            print(f"round {n + 1} of {rounds}: {contender.name}", file=sys.stderr)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of some values."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def compare(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Our time as a share of theirs: the medians of each round divided, and the spread of that over the rounds."""
    pairs = zip(ours, theirs, strict=True)
    return spread([statistics.median(our) / statistics.median(their) for our, their in pairs])


def machine(packages: Sequence[str]) -> dict[str, object]:
    """The machine and the versions that the figures belong to."""
    import torch

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "load_before": os.getloadavg()[0],
    }


# train: the training loop, beside nnU-Net's

NNUNET_DATASET = "Dataset004_Benchmark"
COMPILED = {"train#trainer#compile": True}  # as monai_bundle/configs/compile.yaml has it


def train(args: argparse.Namespace) -> dict[str, object]:
    """Figures of both trainers on the network, patch and batch that nnU-Net plans for the data set."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    dataset = args.dataset or make_phantoms(folder / "phantoms")
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    about = machine(["torch", "monai", "pytorch-ignite", "nnunetv2"])
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        plan = pool.submit(plan_nnunet, dataset, folder).result()
    contenders = []
    try:
        contenders.append(Contender("nnU-Net", serve_nnunet, folder, args.device, log=folder / "nnunet.log"))
        contenders[-1].turn(args.warmup)
        ours: dict[str, dict] = {"napari-seg": {"amp": args.device == "cuda"}}
        if args.amp:
            ours["napari-seg, bf16"] = {"amp": True}
        if args.compile:
            ours["napari-seg, compiled"] = ours["napari-seg"] | COMPILED
        for name, options in ours.items():
            output = folder / f"run_{len(contenders)}"
            shutil.rmtree(output, ignore_errors=True)  # an earlier run would be resumed
            contenders.append(
                Contender(
                    name, serve_training, dataset, output, plan, args.device, options, log=folder / f"{output.name}.log"
                )
            )
            contenders[-1].turn(args.warmup)
        taken = take_turns(contenders, args.rounds, args.steps)
    finally:
        for contender in contenders:
            contender.close()
    seconds = {name: [[sum(step.values()) for step in turn] for turn in turns] for name, turns in taken.items()}
    batch = plan["configurations"]["3d_fullres"]["batch_size"]
    return {
        "machine": about,
        "device": args.device,
        "dataset": args.dataset.name if args.dataset else "phantoms",
        "patch": plan["configurations"]["3d_fullres"]["patch_size"],
        "batch": batch,
        "rounds": args.rounds,
        "steps_a_turn": args.steps,
        "trainers": {
            contender.name: {
                "seconds_a_step": spread([s for turn in seconds[contender.name] for s in turn]),
                "seconds_a_sample": statistics.median(s for turn in seconds[contender.name] for s in turn) / batch,
                "minutes_an_epoch": statistics.mean(s for turn in seconds[contender.name] for s in turn) * 250 / 60,
                "share_of_nnunet": compare(seconds[contender.name], seconds["nnU-Net"]),
                "phases": {
                    phase: statistics.median(step[phase] for turn in taken[contender.name] for step in turn)
                    for phase in taken[contender.name][0][0]
                },
                "peak_memory_gib": contender.peak_bytes / 2**30,
            }
            for contender in contenders
        },
    }


def make_phantoms(folder: Path, cases: int = 40) -> Path:
    """A data set in the Decathlon's layout of about the hippocampus' size: a brighter ball in two halves, in noise."""
    import nibabel
    import numpy as np

    random = np.random.default_rng(0)
    listed = []
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        shape = random.integers((31, 42, 30), (40, 58, 44))
        i, j, k = np.indices(shape) - (shape / 2)[:, None, None, None]
        label = np.where((i / 9) ** 2 + (j / 17) ** 2 + (k / 8) ** 2 < 1, np.where(j > 0, 1, 2), 0).astype(np.uint8)
        image = (random.normal(300, 60, shape) + 150 * label).astype(np.int16)
        pair = {"image": f"./imagesTr/phantom_{n:03d}.nii.gz", "label": f"./labelsTr/phantom_{n:03d}.nii.gz"}
        for path, array in zip(pair.values(), (image, label), strict=True):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / path)
        listed.append(pair)
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    about = {"name": "phantoms", "modality": {"0": "MRI"}, "labels": labels, "numTraining": cases, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def plan_nnunet(dataset: Path, folder: Path) -> dict:
    """nnU-Net's plan for a data set in the Decathlon's layout (one channel), which its own commands preprocess."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    planned = folder / "preprocessed" / NNUNET_DATASET / "nnUNetPlans.json"
    if not planned.exists():
        about = json.loads((dataset / "dataset.json").read_text())
        raw = folder / "raw" / NNUNET_DATASET
        for part in ("imagesTr", "labelsTr"):
            (raw / part).mkdir(parents=True)
        for case in about["training"]:
            image, label = (dataset / case[key] for key in ("image", "label"))
            (raw / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz")).symlink_to(image.resolve())
            (raw / "labelsTr" / label.name).symlink_to(label.resolve())
        described = {
            "channel_names": about["modality"],
            "labels": {label: int(value) for value, label in about["labels"].items()},
            "numTraining": len(about["training"]),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(described))
        api.extract_fingerprints([4], num_processes=os.cpu_count())
        api.plan_experiments([4])
        api.preprocess([4], configurations=["3d_fullres"], num_processes=[os.cpu_count()])
    return json.loads(planned.read_text())


def serve_nnunet(connection: Connection, folder: Path, device: str) -> None:
    """Steps of nnU-Net's own trainer as `nnUNetv2_train` takes them, all from its loaders to its optimiser included."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(os.cpu_count() if device == "cpu" else 1)  # both as nnUNetv2_train does
    torch.backends.cudnn.benchmark = device == "cuda"
    prepared = folder / "preprocessed" / NNUNET_DATASET
    plan = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    about = json.loads((prepared / "dataset.json").read_text())
    trainer = nnUNetTrainer(plan, "3d_fullres", 0, about, torch.device(device))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    while steps := connection.recv():
        taken = []
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(trainer.dataloader_train)
            loaded = time.perf_counter()
            trainer.train_step(batch)  # ends with the loss on the host, so nothing is still under way
            taken.append({"data": loaded - start, "step": time.perf_counter() - loaded})
        connection.send(taken)


def planned_network(spatial_dims: int, in_channels: int, out_channels: int, architecture: dict) -> object:
    """The network of nnU-Net's plan, as `nnUNetTrainer` builds it."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        in_channels,
        out_channels,
        deep_supervision=True,
    )


def serve_training(connection: Connection, dataset: Path, output: Path, plan: dict, device: str, options: dict) -> None:
    """Steps of the bundle's `training`, as `python -m monai.bundle run training` takes them, with nnU-Net's network.

    Args:
        connection: see `Contender`.
        dataset: in a layout that the bundle knows.
        output: the run's folder.
        plan: nnU-Net's.
        device: "cpu" or "cuda".
        options: further values of the bundle's config, by id.
    """
    sys.path.insert(0, str(CHECKOUT / "monai_bundle"))
    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow
    from monai.engines import IterationEvents

    configuration = plan["configurations"]["3d_fullres"]
    workflow = ConfigWorkflow(
        str(CHECKOUT / "monai_bundle" / "configs" / "train.yaml"),
        workflow_type="train",
        logging_file=False,
        dataset_dir=str(dataset),
        output_dir=str(output),
        device=f"$torch.device('{device}')",
        max_epochs=1000,
        val_interval=1001,
        batch_size=configuration["batch_size"],
        patch_size=configuration["patch_size"],
        network_def={
            "_target_": f"{__name__}.planned_network",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": "@num_classes",
            "architecture": configuration["architecture"],
        },
        **options,
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    taken: list[dict[str, float]] = []
    left, last = connection.recv(), time.perf_counter()

    def stamp(phase: str) -> None:
        nonlocal last
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        taken[-1][phase] = taken[-1].get(phase, 0.0) + now - last
        last = now

    def begin_step() -> None:
        """Ends the step before, so that its handlers, and those of an epoch's end, count."""
        nonlocal left, last
        if taken:
            stamp("handlers")
        if len(taken) == left:
            connection.send(taken)
            left = connection.recv()
            taken.clear()
        last = time.perf_counter() if not taken else last
        taken.append({})

    trainer.add_event_handler(Events.GET_BATCH_STARTED, begin_step)
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, stamp, "data")
    # a compiled network is a module around the other, and its hooks are called outside of what is compiled
    trainer.network.register_forward_hook(lambda *_: stamp("forward") if trainer.network.training else None)
    trainer.loss_function.register_forward_hook(lambda *_: stamp("loss"))
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, stamp, "backward")
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, stamp, "optimiser")
    workflow.run()


def describe_train(figures: dict) -> str:
    """The section of docs/benchmarks.md about training."""
    lines = [
        "## Training",
        "",
        f"Data set: {figures['dataset']}. The network that nnU-Net plans for it (3d_fullres, deep supervision), patch",
        f"{'×'.join(map(str, figures['patch']))}, batch {figures['batch']}. Each trainer has its own preprocessing, "
        "loading, augmentation, loss and optimiser;",
        "ours is `monai_bundle/configs/train.yaml` with only network, patch and batch changed. Loading counts,",
        f"validation does not. {figures['rounds']} turns of {figures['steps_a_turn']} steps each.",
        "",
        describe_machine(figures["machine"], figures["device"]),
        "",
        "| trainer | s a step (least-greatest) | s a sample | 250 steps, min | share of nnU-Net's time | memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["trainers"].items():
        cells = [
            name,
            describe_spread(row["seconds_a_step"]),
            f"{row['seconds_a_sample']:.3g}",
            f"{row['minutes_an_epoch']:.3g}",
            describe_spread(row["share_of_nnunet"]),
            f"{row['peak_memory_gib']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Where the time of a step goes, in seconds (medians):", ""]
    for name, row in figures["trainers"].items():
        lines.append(f"- {name}: " + ", ".join(f"{phase} {seconds:.3g}" for phase, seconds in row["phases"].items()))
    return "\n".join([*lines, ""])


# memory: whole scans of many classes, within a budget

NETWORK = '''
from torch import nn


class Small(nn.Sequential):
    """Two convolutions: little work, any number of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, classes, 1))
'''


def memory(args: argparse.Namespace) -> dict[str, object]:
    """Peak memory of `napari-seg predict` on long scans of few and of many classes, beside what peers hold at least."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    rows = []
    for slices, classes in ((600, 105), (600, 3), (1200, 105)):
        scan = make_ct(folder / f"ct_{slices}.nii", slices)
        bundle = make_small_bundle(folder / f"bundle_{classes}", classes)
        command = [sys.executable, "-m", "napari_seg", "predict", scan, "--bundle", bundle, "--trust-bundle"]
        command += ["-o", folder / f"out_{slices}_{classes}", "--memory", args.budget, "--overwrite", "--json"]
        seconds, peak, said = watch([str(word) for word in command])
        rows.append({"slices": slices, "classes": classes, "seconds": seconds, "peak_gib": peak / 2**30})
        rows[-1]["monai_gib"] = whole_logits_bytes(slices, classes) / 2**30
        rows[-1]["status"] = json.loads(said)[0]["status"]
        print(rows[-1], file=sys.stderr)
    return {"machine": machine(["torch", "monai"]), "budget": args.budget, "scans": rows}


def make_ct(path: Path, slices: int) -> Path:
    """A body of soft tissue with bones in air, 512 x 512 at 0.8 mm, int16."""
    import nibabel
    import numpy as np

    if not path.exists():
        x, y = np.ogrid[-256:256, -256:256]
        array = np.full((512, 512, slices), -1000, np.int16)
        for k in range(slices):
            body = (x / 200) ** 2 + (y / 140) ** 2 < 1
            bone = (x - 20 * np.sin(k / 40)) ** 2 + (y - 60) ** 2 < (20 + 8 * np.cos(k / 9)) ** 2
            array[:, :, k][body] = 40
            array[:, :, k][bone] = 700
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-0.8, -0.8, 0.8, 1.0])), path)
    return path


def make_small_bundle(root: Path, classes: int) -> Path:
    """A MONAI bundle of a small network with random weights: 1.5 mm, windows of 96 voxels."""
    import torch

    for name in ("configs", "models", "smallnet"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "smallnet" / "__init__.py").write_text(NETWORK)
    at = "monai.transforms"
    config = {
        "network_def": {"_target_": "smallnet.Small", "classes": classes},
        "preprocessing": {
            "_target_": f"{at}.Compose",
            "transforms": [
                {"_target_": f"{at}.LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": f"{at}.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": f"{at}.Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
                {
                    "_target_": f"{at}.ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -1000,
                    "a_max": 1000,
                    "b_min": -1,
                    "b_max": 1,
                },
            ],
        },
        "inferer": {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": [96, 96, 96], "mode": "gaussian"},
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    channels = {str(n): f"class {n}" if n else "background" for n in range(classes)}
    formats = {
        "inputs": {"image": {"num_channels": 1, "modality": "CT"}},
        "outputs": {"pred": {"num_channels": classes, "channel_def": channels}},
    }
    (root / "configs" / "metadata.json").write_text(json.dumps({"name": "small", "network_data_format": formats}))
    torch.manual_seed(0)
    convolutions = (torch.nn.Conv3d(1, 8, 3), torch.nn.Conv3d(8, classes, 1))
    state = {f"{2 * n}.{k}": v for n, layer in enumerate(convolutions) for k, v in layer.state_dict().items()}
    torch.save(state, root / "models" / "model.pt")
    return root


def watch(command: list[str]) -> tuple[float, int, str]:
    """Seconds, peak resident memory of the process and its children, and what it printed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, stdout=output)
        peak = 0
        while process.poll() is None:
            try:
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(map(_memory_bytes, tree)))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        process.wait()
        output.seek(0)
        return time.perf_counter() - start, peak, output.read()


def whole_logits_bytes(slices: int, classes: int) -> int:
    """What MONAI's inferer and Invertd hold at least: float32 logits and weights at 1.5 mm, then logits at 0.8 mm."""
    coarse = round(512 * 0.8 / 1.5) ** 2 * round(slices * 0.8 / 1.5)
    return 4 * ((classes + 1) * coarse + classes * 512 * 512 * slices)


def describe_memory(figures: dict) -> str:
    """The section of docs/benchmarks.md about memory."""
    lines = [
        "## Memory",
        "",
        f"`napari-seg predict --memory {figures['budget']}` of a made-up CT, 512x512 at 0.8 mm, by a small network at "
        "1.5 mm in windows of 96 voxels:",
        "the peak of the whole process, reading, pictures and writing included. Beside it what MONAI's "
        "`SlidingWindowInferer` and `Invertd` must hold at the least, computed: float32 logits and weights on the "
        "network's grid, then logits on the scan's.",
        "",
        describe_machine(figures["machine"], "cpu"),
        "",
        "| slices | classes | peak, GiB | MONAI at the least, GiB | minutes |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in figures["scans"]:
        minutes = f"{row['seconds'] / 60:.1f}"
        cells = [row["slices"], row["classes"], f"{row['peak_gib']:.2f}", f"{row['monai_gib']:.1f}", minutes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


# the report

SECTIONS = {"train": describe_train, "memory": describe_memory}


def describe_machine(about: dict, device: str) -> str:
    """A sentence on the machine and the versions."""
    where = about["gpu"] if device == "cuda" else f"{about['cores']} cores of {about['processor']}"
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return (
        f"Machine: {where}, {about['memory_gib']} GiB, {about['system']}, Python {about['python']},\n"
        f"{versions}; load before the run {about['load_before']:.1f}."
    )


def describe_spread(values: dict[str, float]) -> str:
    """A median with the least and greatest value, to three digits."""
    return f"{values['median']:.3g} ({values['least']:.3g}-{values['greatest']:.3g})"


def write_report(folder: Path, section: str, figures: dict) -> None:
    """Puts a section's figures into benchmarks.json, where the other sections stay, and writes benchmarks.md anew."""
    path = folder / "benchmarks.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[section] = figures
    path.write_text(json.dumps(known, indent=1) + "\n")
    head = (
        "# Benchmarks\n\nMade by `scripts/benchmark.py`, which says how it measures; all figures: `benchmarks.json`.\n"
    )
    texts = [describe(known[name]) for name, describe in SECTIONS.items() if name in known]
    (folder / "benchmarks.md").write_text("\n".join([head, *texts]))


def main() -> None:
    """Runs one comparison and writes it into the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--report", type=Path, default=CHECKOUT / "docs", help="folder of benchmarks.json and .md")
    shared.add_argument("--work", type=Path, help="folder for what is made on the way; kept, and used again")
    command = commands.add_parser("train", parents=[shared], help="the training loop, beside nnU-Net's")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    command.add_argument("--dataset", type=Path, help="a Decathlon folder; phantoms if not given")
    command.add_argument("--steps", type=int, default=4, help="steps a turn")
    command.add_argument("--warmup", type=int, default=4, help="steps before the first turn")
    command.add_argument("--amp", action="store_true", help="our trainer in bf16 as well")
    command.add_argument("--compile", action="store_true", help="our trainer with torch.compile as well (needs g++)")
    command.set_defaults(measure=train)
    command = commands.add_parser("memory", parents=[shared], help="peak memory of long scans and many classes")
    command.add_argument("--budget", default="3GiB", help="what `napari-seg predict --memory` is told")
    command.set_defaults(measure=memory)
    args = parser.parse_args()
    # ends the contenders too, which would otherwise stand still for ever
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{args.command}: ended before it was done"))
    for folder in (args.report, args.work):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    write_report(args.report, args.command, args.measure(args))


if __name__ == "__main__":
    main()
