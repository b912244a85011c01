"""The training loop, beside nnU-Net's."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measuring import CHECKOUT, SPAWN, Contender, compare, machine, spread, take_turns
from benchmarks.report import describe_machine, describe_spread, table

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
    """Return the section of benchmarks.md about training."""
    lines = [
        "## Training",
        "",
        f"Data set: {figures['dataset']}. The network that nnU-Net plans for it (3d_fullres, deep supervision), patch",
        f"{'×'.join(map(str, figures['patch']))}, batch {figures['batch']}. Each trainer has its own preprocessing, "
        "loading, augmentation, loss and optimiser;",
        "ours is `monai_bundle/configs/train.yaml` with only network, patch and batch changed. Loading is",
        f"counted, validation is not. {figures['rounds']} turns of {figures['steps_a_turn']} steps each.",
        "",
        describe_machine(figures["machine"], figures["device"]),
        "",
    ]
    head = ["trainer", "s per step (min-max)", "s per sample", "250 steps, min", "fraction of nnU-Net's time"]
    rows = []
    for name, row in figures["trainers"].items():
        cells = [
            name,
            describe_spread(row["seconds_a_step"]),
            f"{row['seconds_a_sample']:.3g}",
            f"{row['minutes_an_epoch']:.3g}",
            describe_spread(row["share_of_nnunet"]),
            f"{row['peak_memory_gib']:.1f}",
        ]
        rows.append(cells)
    lines += table([*head, "memory, GiB"], rows)
    lines += ["", "Where the time of a step goes, in seconds (medians):", ""]
    for name, row in figures["trainers"].items():
        lines.append(f"- {name}: " + ", ".join(f"{phase} {seconds:.3g}" for phase, seconds in row["phases"].items()))
    return "\n".join([*lines, ""])
