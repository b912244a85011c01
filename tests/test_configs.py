"""Test every small config merged over the complete ones: training, evaluation and inference."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel
import numpy as np
import pytest
import torch
import yaml
from datasets import write_decathlon, write_pictures
from ignite.engine import Engine
from monai.bundle import ConfigParser
from PIL import Image

from napari_seg.bundles.read import shipped_root

pytestmark = pytest.mark.usefixtures("unrendered_figures")

CONFIGS = shipped_root() / "configs"
ALONE = {"train", "evaluate", "inference"}
OPTIONS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - ALONE)
TRAINED_ELSEWHERE = {
    "cascade",
    "compare_largest",
    "images_2d",
    "multi_gpu_train",
    "compile",
    "multi_scale",
    "slices_2d",
    "soft",
    "tta",
}

TINY = """
network_def:
  _target_: segnets.UNet
  spatial_dims: 3
  in_channels: 1
  out_channels: "@num_classes"
  channels: [4, 8]
  strides: [1, 2]
  encoder_convs: 1
max_epochs: 1
val_interval: 1
num_workers: 0
"""


@pytest.fixture(scope="module", autouse=True)
def segnets() -> Iterator[None]:
    """Make the bundle's package importable, as `monai.bundle run` does."""
    sys.path.insert(0, str(shipped_root()))
    yield
    sys.path.remove(str(shipped_root()))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decathlon(tmp_path_factory.mktemp("scans"), cases=2, smallest=(16, 26, 16))


def run(run_id: str, *names: str, **settings: Any) -> Any:
    """Run a config with others merged over it on a tiny network; return its parser."""
    workflow = prepared(run_id, *names, **settings)
    workflow.run()
    return workflow.parser


def prepared(run_id: str, base: str, *options: str, folder: Path, **overrides: Any) -> Any:
    """Prepare the same workflow without running it."""
    from monai.bundle import ConfigWorkflow

    tiny = folder / "tiny.yaml"
    tiny.write_text(TINY)
    patch = [16, 24] if {"slices_2d", "images_2d"} & set(options) else [16, 24, 16]
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{base}.yaml"), str(tiny), *(str(CONFIGS / f"{name}.yaml") for name in options)],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        run_id=run_id,
        patch_size=patch,
        **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
    )
    workflow.initialize()
    return workflow


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_each_begins_with_a_comment_and_no_two_are_equal() -> None:
    bodies = {}
    for name in OPTIONS:
        text = (CONFIGS / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        bodies[name] = json.dumps(yaml.safe_load(text))
        documented = (shipped_root() / "docs" / "README.md").read_text()
        assert f"`{name}.yaml`" in documented, f"{name}.yaml is not in the table of docs/README.md"
    assert len(set(bodies.values())) == len(bodies)


def assert_trained(parser: Any, folder: Path) -> None:
    """Check that a run took one step, of one of two cases, and kept the weights that the other one chose."""
    trainer = parser.get_parsed_content("train#trainer")
    assert trainer.state.iteration == 1
    assert np.isfinite(float(trainer.state.output["loss"]))
    assert (folder / "model.pt").is_file()


def test_all_cases_train_without_a_validation(scans: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": scans, "output_dir": tmp_path / "run", "fold": "all"}
    parser = run("training", "train", folder=tmp_path, **options)
    assert parser.get_parsed_content("train#trainer").state.iteration == 1  # both cases
    assert len(parser.get_parsed_content("train#dataset").data) == 2
    assert [line["step"] for line in history(tmp_path / "run") if "loss" in line] == [1]
    assert not any("mean_dice" in line for line in history(tmp_path / "run"))
    assert (tmp_path / "run" / "model_final.pt").is_file()
    assert not (tmp_path / "run" / "model.pt").exists()


def test_the_second_stage_of_a_cascade_trains(scans: Path, tmp_path: Path) -> None:
    labels = tmp_path / "previous"
    labels.mkdir()
    for path in (scans / "labelsTr").iterdir():
        shutil.copy(path, labels / path.name.replace(".nii.gz", "_seg.nii.gz"))
    options = {"dataset_dir": scans, "output_dir": tmp_path / "run", "previous_dir": labels}
    parser = run("training", "train", "crops_balanced", "cascade", folder=tmp_path, **options)
    assert_trained(parser, tmp_path / "run")
    trained, seen = (parser.get_parsed_content(name) for name in ("train#dataset", "validate#dataset"))
    assert len(trained.cases[0]["image"]) == 2  # the labels are one channel in the cache
    assert len(trained[0][0]["image"]) == 3
    image, label = seen[0]["image"], seen[0]["label"][0]
    assert torch.equal(image[1:].argmax(0) + 1, label + (label == 0))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in TRAINED_ELSEWHERE])
def test_each_trains(name: str, scans: Path, tmp_path: Path) -> None:
    if name in ("mlflow", "wandb", "aim"):
        pytest.importorskip(name)
    parser = run("training", "train", name, folder=tmp_path, dataset_dir=scans, output_dir=tmp_path / "run")
    assert_trained(parser, tmp_path / "run")
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for key in ("loss", "optimizer", "lr_scheduler"):
        if key in written:
            expected = written[key]["_target_"].rpartition(".")[2]
            assert type(parser.get_parsed_content(key)).__name__ == expected


def test_compilation_changes_steps_but_no_saved_weights(scans: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    options = {"dataset_dir": scans, "output_dir": tmp_path / "run"}
    options["train#trainer#compile_kwargs"] = {"backend": "eager"}  # traced, but without a C++ compiler
    parser = run("training", "train", "compile", folder=tmp_path, **options)
    trainer, network = (parser.get_parsed_content(name) for name in ("train#trainer", "network"))
    assert isinstance(trainer.network, torch._dynamo.OptimizedModule)
    assert trainer.network._orig_mod is network
    assert trainer.state.iteration == 1
    for name in ("model.pt", "model_final.pt"):
        assert torch.load(tmp_path / "run" / name, weights_only=True).keys() == network.state_dict().keys()


def test_the_same_command_resumes_and_a_new_run_starts_from_other_weights(scans: Path, tmp_path: Path) -> None:
    common = {"folder": tmp_path, "dataset_dir": scans}
    run("training", "train", **common, output_dir=tmp_path / "run")
    run("training", "train", **common, output_dir=tmp_path / "run", max_epochs=2)
    assert [line["epoch"] for line in history(tmp_path / "run") if "loss" in line] == [1, 2]
    weights = tmp_path / "run" / "model_final.pt"
    tuned = common | {"output_dir": tmp_path / "tuned", "finetune": weights}
    parser = run("training", "train", **tuned)
    assert parser.get_parsed_content("pretrained").fraction == 1.0
    assert type(parser.get_parsed_content("ema")).__name__ == "WeightAverage"
    weights.unlink()  # the run has its own weights now
    run("training", "train", **tuned, max_epochs=2)
    assert [line["epoch"] for line in history(tmp_path / "tuned") if "loss" in line] == [1, 2]
    assert error_of("training", "train", **tuned | {"output_dir": tmp_path / "new"}).code == "weights.missing"


def error_of(run_id: str, *names: str, **settings: Any) -> Any:
    """Return the bundle's own error that ended a command, from inside MONAI's."""
    with pytest.raises(Exception, match="Failed to") as caught:
        run(run_id, *names, **settings)
    error: BaseException | None = caught.value
    while error is not None and not hasattr(error, "code"):
        error = error.__cause__
    return error


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"fold": 0, "folds": 1}, "split.folds"),
        ({"fold": 0, "folds": 5}, "split.too_few"),
        ({"fold": 2, "folds": 2}, "split.fold"),
        ({}, "data.faults"),
    ],
)
def test_an_impossible_split_is_refused_before_a_file_is_read(options: dict, code: str, tmp_path: Path) -> None:
    scans = write_decathlon(tmp_path / "scans", cases=2)
    (scans / "imagesTr" / "case_00.nii.gz").write_text("no scan")
    options |= {"folder": tmp_path, "dataset_dir": scans, "output_dir": tmp_path / "run"}
    assert error_of("training", "train", **options).code == code


def test_a_case_without_a_structure_is_a_fault_unless_it_is_allowed(tmp_path: Path) -> None:
    scans = write_decathlon(tmp_path / "scans", cases=2)
    for path in (scans / "labelsTr").iterdir():
        read = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(read.shape, np.uint8), read.affine), path)
    options = {"folder": tmp_path, "dataset_dir": scans, "output_dir": tmp_path / "run"}
    assert error_of("training", "train", **options).code == "data.faults"
    run("training", "train", **options, allow_empty=True)
    weights = tmp_path / "run" / "model_final.pt"
    run("evaluating", "evaluate", **options, checkpoint=weights, allow_empty=True)
    assert (tmp_path / "run" / "summary.json").is_file()


def test_evaluated_cases_are_checked_first(scans: Path, tmp_path: Path) -> None:
    shutil.copytree(scans, tmp_path / "scans")
    options = {"folder": tmp_path, "dataset_dir": tmp_path / "scans", "output_dir": tmp_path / "run"}
    workflow = prepared("evaluating", "evaluate", **options)
    (evaluated,) = workflow.parser.get_parsed_content("cases")(part="validation")
    (other,) = workflow.parser.get_parsed_content("cases")(part="training")
    Path(other["label"]).write_text("no label map")  # a case of another part
    read = nibabel.load(evaluated["label"])
    turned = np.asarray(read.dataobj).transpose(1, 0, 2)
    nibabel.save(nibabel.Nifti1Image(turned, read.affine), evaluated["label"])
    error = error_of("evaluating", "evaluate", **options)
    assert (error.code, error.message.count("\n")) == ("data.faults", 1)
    assert f"geometry.shape  {evaluated['name']}" in error.message
    assert error_of("evaluating", "evaluate", **options, part="test").code == "split.empty_part"
    assert not (tmp_path / "run").exists()


def test_distances_are_in_mm() -> None:
    from monai.data import MetaTensor
    from segnets.metrics import CaseMetric, HausdorffDistance, SurfaceDice

    affine = torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0]))
    pred, label = (MetaTensor(torch.zeros(1, 9, 9, 9, dtype=torch.uint8), affine=affine) for _ in range(2))
    pred[0, 2, 4, 4] = label[0, 4, 4, 4] = 1  # at a distance of two voxels of 3 mm
    found = []
    for metric in (HausdorffDistance(1, 95), SurfaceDice([5.9]), SurfaceDice([6.0])):
        measured = CaseMetric(metric)
        measured.update(([pred], [label]))
        found.append(metric.aggregate())
    assert found == [6.0, 0.0, 1.0]


@pytest.mark.parametrize("network", ["FCN", "DeepLabV3", "DeepLabV3Plus", "MultiView"])
def test_a_network_is_chosen_by_its_name_alone(network: str, scans: Path, tmp_path: Path) -> None:
    chosen = {"_target_": f"segnets.{network}", "spatial_dims": 3, "in_channels": 1, "out_channels": "@num_classes"}
    options = {"dataset_dir": scans, "network_def": chosen}
    run("training", "train", folder=tmp_path, output_dir=tmp_path / "run", **options)
    weights = tmp_path / "run" / "model.pt"
    run("evaluating", "evaluate", folder=tmp_path, output_dir=tmp_path / "scores", checkpoint=weights, **options)
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["cases"] == 1


def test_deep_supervision_needs_no_other_loss(scans: Path, tmp_path: Path) -> None:
    deep = {"network_def#deep_supervision": True, "network_def#channels": [4, 8, 8], "network_def#strides": [1, 2, 2]}
    deep |= {"network_def#encoder_convs": 1}
    parser = run("training", "train", "loss_focal", folder=tmp_path, dataset_dir=scans, output_dir=tmp_path, **deep)
    network, image = parser.get_parsed_content("network"), torch.rand(1, 1, 16, 24, 16)
    label = (image > 0.5).float()
    answers = network.train()(image)
    alone, together = (parser.get_parsed_content(name) for name in ("loss", "loss_function"))
    half = torch.nn.functional.interpolate(label, size=(8, 12, 8), mode="nearest-exact")
    expected = alone(answers[0], label) + 0.5 * alone(answers[1], half)
    assert together(answers, label).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("options", [("slices_2d",), ("slices_2d", "tta"), ("tta",), ("multi_scale",)])
def test_slices_and_averaging_evaluate_and_infer(options: tuple[str, ...], scans: Path, tmp_path: Path) -> None:
    parser = run("training", "train", *options, folder=tmp_path, dataset_dir=scans, output_dir=tmp_path / "run")
    assert_trained(parser, tmp_path / "run")
    weights = {"checkpoint": tmp_path / "run" / "model.pt", "dataset_dir": scans}
    run("evaluating", "evaluate", *options, folder=tmp_path, output_dir=tmp_path / "scores", **weights)
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    # trained and evaluated on grids of one spacing, so both must give the same value
    validated = [line["mean_dice"] for line in history(tmp_path / "run") if "mean_dice" in line]
    assert summary["mean_dice"]["mean"] == pytest.approx(validated[-1], abs=1e-4)
    run("inference", "inference", *options, folder=tmp_path, output_dir=tmp_path / "labels", **weights)
    assert len(list((tmp_path / "labels").glob("*_seg.nii.gz"))) == 2


def test_2d_images_train_evaluate_and_infer(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images_2d")
    options = {"dataset_dir": images, "network_def#in_channels": 3}
    labels = {"labels": {"1": 127, "2": 255}}
    run("training", "train", "images_2d", folder=tmp_path, output_dir=tmp_path / "run", **options, **labels)
    options |= {"checkpoint": tmp_path / "run" / "model.pt"}
    compared = ("images_2d", "compare_largest")
    run("evaluating", "evaluate", *compared, folder=tmp_path, output_dir=tmp_path / "run", **options, **labels)
    assert "dice_of_largest" in json.loads((tmp_path / "run" / "summary.json").read_text())
    run("inference", "inference", "images_2d", folder=tmp_path, output_dir=tmp_path / "labels", **options)
    written = Image.open(tmp_path / "labels" / "p0_seg.png")
    assert written.size == Image.open(images / "images" / "p0.png").size
    assert set(np.unique(written)) <= {0, 1, 2}


def test_several_channels(tmp_path: Path) -> None:
    scans = write_decathlon(tmp_path / "scans", cases=2, channels=2)
    options = {"dataset_dir": scans, "network_def#in_channels": 2}
    run("training", "train", folder=tmp_path, output_dir=tmp_path / "run", **options)
    assert history(tmp_path / "run")


def test_balanced_crops_show_every_class_equally_often(tmp_path: Path) -> None:
    """Draw crops of two small balls in a large scan, of which half of the random crops would miss both."""
    scans = write_decathlon(tmp_path / "scans", cases=2, smallest=(60, 70, 60))
    still: dict[str, list] = {"spatial_augmentation": [], "intensity_augmentation": []}
    options = {"dataset_dir": scans, "output_dir": tmp_path / "run", **still}
    workflow = prepared("training", "train", "crops_balanced", folder=tmp_path, **options)
    samples = workflow.parser.get_parsed_content("train#dataset")
    centres = [int(samples[n][0]["label"][0, 8, 12, 8]) for n in range(60)]
    assert all(12 <= centres.count(number) <= 28 for number in (0, 1, 2))


def test_balanced_crops_are_slices_through_every_class_equally_often(tmp_path: Path) -> None:
    """Draw slices of the same scans, of which two of three show no structure; merge files in the order of the table."""
    table = (shipped_root() / "docs" / "README.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| balanced patches"))
    order = re.findall(r"`(\w+)\.yaml`", row.partition("of slices")[2])
    assert set(order) == {"slices_2d", "crops_balanced"}
    scans = write_decathlon(tmp_path / "scans", cases=2, smallest=(60, 70, 60))
    still: dict[str, list] = {"spatial_augmentation": [], "intensity_augmentation": []}
    options = {"dataset_dir": scans, "output_dir": tmp_path / "run", **still}
    workflow = prepared("training", "train", *order, folder=tmp_path, **options)
    samples = workflow.parser.get_parsed_content("train#dataset")
    items = [item for n in range(8) for item in samples[n]]
    assert len(items) == 8 * 8
    assert {(*item["image"].shape, *item["label"].shape) for item in items} == {(1, 16, 24, 1, 16, 24)}
    centres = [int(item["label"][0, 8, 12]) for item in items]
    assert all(12 <= centres.count(number) <= 31 for number in (0, 1, 2))
    run("training", "train", *order, folder=tmp_path, **options)
    assert history(tmp_path / "run")


@pytest.mark.parametrize("name", ["train", *(name for name in OPTIONS if name.startswith("loss_"))])
def test_a_loss_is_a_mean_over_cases(name: str, tmp_path: Path) -> None:
    """So that split batches and several GPUs give the same step; a config whose loss is not says so in a comment."""
    options = [name] if name != "train" else []
    parser = prepared("training", "train", *options, folder=tmp_path, output_dir=tmp_path).parser
    loss = parser.get_parsed_content("loss")
    torch.manual_seed(0)
    logits, label = torch.randn(3, 3, 6, 5, 4), torch.zeros(3, 1, 6, 5, 4)
    label[0, :, :3], label[1, :, :1], label[2, :, 2] = 1, 2, 1
    parts = torch.stack([loss(logits[n : n + 1], label[n : n + 1]) for n in range(3)])
    is_no_mean = "not over cases" in (CONFIGS / f"{name}.yaml").read_text()
    assert (loss(logits, label).item() == pytest.approx(parts.mean().item(), abs=1e-6)) is not is_no_mean


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the environment of one process as torchrun does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    yield
    idist.finalize()  # ignite keeps its state of the processes for all later tests
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("torchrun")
def test_several_processes_fine_tune_a_network_a_view(scans: Path, tmp_path: Path) -> None:
    """Train three views, where most steps give two of them no gradient."""
    view = {"_target_": "segnets.UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": "@num_classes"}
    view |= {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
    chosen = {"_target_": "segnets.MultiView", "spatial_dims": 3, "in_channels": 1, "out_channels": "@num_classes"}
    options = {"network_def": chosen | {"network": [view] * 3}, "dataset_dir": scans, "max_epochs": 4, "batch_size": 1}
    workflow = prepared("training", "train", "multi_gpu_train", folder=tmp_path, output_dir=tmp_path / "run", **options)
    workflow.run()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert isinstance(trainer.network, torch.nn.parallel.DistributedDataParallel)
    assert trainer.state.iteration == 4
    workflow.finalize()

    options |= {"output_dir": tmp_path / "tuned", "finetune": tmp_path / "run" / "model_final.pt", "max_epochs": 1}
    workflow = prepared("training", "train", "multi_gpu_train", folder=tmp_path, **options)
    workflow.run()
    assert workflow.parser.get_parsed_content("pretrained").fraction == 1.0
    timeout = workflow.parser.get_parsed_content("timeout")
    assert timeout.total_seconds() == 86400  # outlasts the check of a large data set


@pytest.mark.parametrize("config", ["train", "evaluate"])
def test_folders_and_patients_are_set_once(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read three scans of two animals in folders with unusual names; find them and match their labels once."""
    from segnets import data
    from segnets.data import labels

    calls: Counter[str] = Counter()
    for module, name in ((data, "find_dataset"), (labels, "label_values")):
        monkeypatch.setattr(module, name, _counted(getattr(module, name), calls))
    scans = write_decathlon(tmp_path / "scans", cases=3)
    (scans / "dataset.json").unlink()
    for old, new in (("imagesTr", "mri"), ("labelsTr", "drawn")):
        (scans / old).rename(scans / new)
        for n, name in enumerate(("rat1_a", "rat1_b", "rat2_a")):
            (scans / new / f"case_{n:02d}.nii.gz").rename(scans / new / f"{name}.nii.gz")
    options = {"dataset_dir": scans, "images_dir": "mri", "labels_dir": "drawn", "patient": "^rat[0-9]"}
    run_id = {"train": "training", "evaluate": "evaluating"}[config]
    parser = prepared(run_id, config, folder=tmp_path, output_dir=tmp_path / "run", **options).parser
    cases = parser.get_parsed_content("cases")
    parts = [{case["name"] for case in cases(part=part)} for part in ("training", "validation")]
    assert {frozenset(part) for part in parts} == {frozenset({"rat1_a", "rat1_b"}), frozenset({"rat2_a"})}
    assert parser.get_parsed_content("label_values") == {1: [1], 2: [2]}
    if config == "train":
        parser.get_parsed_content("check")
        assert len(parser.get_parsed_content("train#dataset")) + len(parser.get_parsed_content("validate#dataset")) == 3
    assert calls == {"find_dataset": 1, "label_values": 1}


def _counted(function: Callable, calls: Counter[str]) -> Callable:
    def count(*arguments: object, **options: object) -> object:
        calls[function.__name__] += 1
        return function(*arguments, **options)

    return count


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_mixed_precision_computes_in_the_type_of_the_training(config: str) -> None:
    evaluator = ConfigParser.load_config_file(CONFIGS / f"{config}.yaml")["evaluator"]
    parser = ConfigParser({"amp": "bfloat16", "device": "cuda", "kwargs": evaluator.get("amp_kwargs")})
    assert parser.get_parsed_content("kwargs") == {"dtype": torch.bfloat16}


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_no_bar_is_drawn_into_a_file(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))["handlers"]
    (bar,) = (one for one in handlers if isinstance(one, dict) and one["_target_"].endswith("ProgressBar"))
    engine = Engine(lambda engine, batch: batch)
    ConfigParser({"bar": bar}).get_parsed_content("bar").attach(engine)
    engine.run(range(3))
    assert capsys.readouterr().err == ""
