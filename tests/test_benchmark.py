"""What scripts/benchmark.py rests on: the measuring, with contenders that only sleep, and the figures made of it."""

from __future__ import annotations

import json
import sys
import time
from multiprocessing import Process, Value
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import write_threshold_bundle

from napari_seg.bundles.read import shipped_root

pytest.importorskip("psutil")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark
from benchmarks import (
    cohort,
    editing,
    learning,
    measuring,
    networks,
    plans,
    predict,
    reading,
    report,
    scaling,
    segmenting,
    train,
)

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gib": 8,
    "gpu": None,
    "system": "Linux",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "load_before": 0.04,
}


def _sleeper(connection, seconds: float) -> None:
    while steps := connection.recv():
        for _ in range(steps):
            time.sleep(seconds)
        connection.send([{"sleep": seconds}] * steps)


def _counter(connection) -> None:
    """Has a worker that counts as long as it may run; a step tells how far it has come."""
    count = Value("L", 0)

    def work() -> None:
        while True:
            count.value += 1
            time.sleep(0.001)

    worker = Process(target=work, daemon=True)
    worker.start()
    while connection.recv():
        time.sleep(0.2)
        connection.send([{"count": count.value}])


def _faulty(connection) -> None:
    raise ValueError("no such file")


def test_turns_alternate_and_every_step_is_kept(tmp_path, capsys):
    contenders = [measuring.Contender(name, _sleeper, 0.01, log=tmp_path / name) for name in "ab"]
    taken = measuring.take_turns(contenders, rounds=3, steps=2)
    for contender in contenders:
        contender.close()
    assert taken == {name: [[{"sleep": 0.01}] * 2] * 3 for name in "ab"}
    assert [line[-1] for line in capsys.readouterr().err.splitlines()] == list("abbaab")


@pytest.mark.skipif(sys.platform != "linux", reason="a forked worker")
def test_who_waits_stands_still_with_its_workers(tmp_path):
    contender = measuring.Contender("counter", _counter, log=tmp_path / "log")
    before = contender.turn(1)[0]["count"]
    time.sleep(2)
    after = contender.turn(1)[0]["count"]
    contender.close()
    assert before > 0
    assert 0 < after - before < 1000  # 2 s would have brought far more than the turn's 0.2 s


def test_a_contender_that_fails_is_named_with_its_log(tmp_path):
    contender = measuring.Contender("peer", _faulty, log=tmp_path / "log")
    with pytest.raises(SystemExit, match=r"peer ended early.*log"):
        contender.turn(1)
    contender.close()
    assert "no such file" in (tmp_path / "log").read_text()


def test_a_command_is_watched_with_its_children(tmp_path):
    child = "b = bytearray(60 << 20); import time; time.sleep(0.6)"
    parent = f"import subprocess, sys; print('said'); subprocess.run([sys.executable, '-c', {child!r}])"
    run = measuring.watch([sys.executable, "-c", parent], tmp_path / "run")
    assert run.output == "said\n"
    assert run.seconds > 0.6
    if sys.platform == "linux":
        assert run.peak_bytes > 60 << 20


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    with pytest.raises(SystemExit, match="failed with 3"):
        measuring.watch([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], tmp_path)
    assert (tmp_path / "stderr.txt").read_text() == "why\n"


def test_comparison_is_by_rounds():
    # medians 2, 3, 10 beside 4, 4, 10
    assert measuring.compare([[1, 2, 9], [3], [10]], [[4], [3, 4, 5], [10]]) == {
        "median": 0.75,
        "least": 0.5,
        "greatest": 1.0,
    }


def test_report_keeps_other_sections(tmp_path):
    figures = {
        "machine": MACHINE,
        "device": "cpu",
        "dataset": "phantoms",
        "patch": [40, 56, 40],
        "batch": 9,
        "rounds": 6,
        "steps_a_turn": 4,
        "trainers": {
            "napari-seg": {
                "seconds_a_step": {"median": 1.5, "least": 1.25, "greatest": 2.0},
                "seconds_a_sample": 1.5 / 9,
                "minutes_an_epoch": 6.25,
                "share_of_nnunet": {"median": 0.75, "least": 0.7, "greatest": 0.8},
                "phases": {"data": 0.001, "forward": 0.5},
                "peak_memory_gib": 1.23,
            }
        },
    }
    (tmp_path / "benchmarks.json").write_text(json.dumps({"other": {"kept": True}}))
    report.write_report(tmp_path, "train", figures, benchmark.SECTIONS)
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"other": {"kept": True}, "train": figures}
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| napari-seg | 1.5 (1.25-2) | 0.167 | 6.25 | 0.75 (0.7-0.8) | 1.2 |" in text
    assert "2 cores of a processor" in text
    assert "patch\n40×56×40, batch 9" in text
    assert "- napari-seg: data 0.001, forward 0.5" in text


def test_phantoms_are_a_data_set(tmp_path):
    import nibabel

    folder = train.make_phantoms(tmp_path / "phantoms", cases=2)
    about = json.loads((folder / "dataset.json").read_text())
    assert len(about["training"]) == 2
    label = nibabel.load(folder / about["training"][1]["label"])
    assert set(label.get_fdata().ravel()) == {0, 1, 2}
    assert label.shape == nibabel.load(folder / about["training"][1]["image"]).shape


class Asked:
    """A connection that asks for steps and keeps the answers, then is closed."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.answers = list(steps), []

    def recv(self) -> int:
        if not self.steps:
            raise EOFError
        return self.steps.pop(0)

    def send(self, taken: list[dict[str, float]]) -> None:
        self.answers.append(list(taken))


def _small_network(spatial_dims, in_channels, out_channels, architecture):
    from segnets import UNet

    return UNet(spatial_dims, in_channels, out_channels, **architecture)


def test_every_phase_of_our_training_is_measured_compiled_too(tmp_path, monkeypatch):
    import torch

    assert yaml.safe_load((shipped_root() / "configs" / "compile.yaml").read_text()) == train.COMPILED
    monkeypatch.setattr(train, "planned_network", _small_network)
    monkeypatch.setattr(sys, "path", list(sys.path))
    architecture = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
    planned = {"batch_size": 2, "patch_size": [16, 24, 16], "architecture": architecture}
    phantoms = train.make_phantoms(tmp_path / "phantoms", cases=4)
    options = train.COMPILED | {"train#trainer#compile_kwargs": {"backend": "eager"}, "num_workers": 0}
    torch.compiler.reset()
    connection = Asked(2, 1)
    with pytest.raises(RuntimeError, match="trainer"):  # as MONAI says that the connection was closed
        train.serve_training(
            connection, phantoms, tmp_path / "run", {"configurations": {"3d_fullres": planned}}, "cpu", options
        )
    assert [len(turn) for turn in connection.answers] == [2, 1]
    for step in (step for turn in connection.answers for step in turn):
        assert list(step) == ["data", "forward", "loss", "backward", "optimiser", "handlers"]
        assert all(seconds > 0 for seconds in step.values())


def test_dice_is_that_of_each_label():
    expected = np.array([[[0, 0, 1, 1]], [[2, 2, 2, 0]]], np.uint16)
    found = np.array([[[0, 1, 1, 1]], [[2, 2, 0, 4]]], np.uint16)
    # background 1 of 3 and 2 voxels shared (2 / 5 = 0.4), label 1 two of 2 and 3, label 2 two of 3 and 2, 3 nowhere
    assert predict.dice(found, expected) == [2 * 1 / 5, 2 * 2 / 5, 2 * 2 / 5, None, 0.0]


@pytest.mark.parametrize(
    ("log", "count"),
    [
        ("  0%|          | 0/18 [00:00<?, ?it/s]\r100%|####| 18/18 [03:56<00:00, 13.1s/it]", 18),
        ("INFO:napari_seg.inference.engine:scan: 8 windows of 128 x 128 x 128, about 1.2 GiB of memory, with torch", 8),
        ("step 3/3 done", None),
        ("", None),
    ],
)
def test_windows_are_read_from_the_log(log, count):
    assert predict.windows_logged(log) == count


def test_summary_compares_with_nnunet_and_monai():
    label_map = np.zeros((2, 2, 5), np.uint16)
    other = label_map.copy()
    other[0, 0, 0] = 1
    runs = {
        "nnunet": [{"seconds": 100.0, "peak_gib": 4.0, "windows": 18}] * 2,
        "monai": [{"seconds": 80.0, "peak_gib": 5.0}] * 2,
        "napari": [
            {"seconds": 20.0, "peak_gib": 1.5, "first_seconds": 50.0, "first_peak_gib": 2.0},
            {"seconds": 30.0, "peak_gib": 1.0},
        ],
        "napari-float32": [{"seconds": 15.0, "peak_gib": 1.0}] * 2,
    }
    labels = {"nnunet": label_map, "monai": label_map, "napari": other, "napari-float32": label_map}
    found = predict.summary(runs, labels)
    row = found["contenders"]["napari"]
    assert row["seconds"] == {"median": 25.0, "least": 20.0, "greatest": 30.0}
    assert row["share_of_nnunet"] == {"median": 0.25, "least": 0.2, "greatest": 0.3}
    assert row["equal_to_monai"] == 0.95
    assert row["dice_with_nnunet"] == [38 / 39, 0.0]
    assert found["label_shares"] == [1.0]
    assert "share_of_nnunet-tta" not in row
    about = {"network": {"features": [8, 16], "patch": 16, "spacing_mm": 1.0, "classes": 2}, "machine": MACHINE}
    text = predict.describe_predict(found | about | {"training": {"steps": 9, "patch": 64, "dice": 0.5}, "rounds": 2})
    assert "| napari-seg, default |  | 25 (20-30) | 1.5 | 0.25 (0.2-0.3) | 0.312 (0.25-0.375) |" in text
    assert "| 0.9744 0.0000 | 95.000% |" in text
    assert "50 s and 2.0 GiB" in text
    assert "`--precision float32`: 95.000% of the voxels have the label that they have by default." in " ".join(
        text.split()
    )


def test_commands_differ_in_what_they_compare(tmp_path):
    made = predict.Made(tmp_path, 0.0)
    words = {key: [str(word) for word in predict.command(key, made, tmp_path / "out")] for key in predict.CONTENDERS}
    assert ("--disable_tta" in words["nnunet"], "--disable_tta" in words["nnunet-tta"]) == (True, False)
    for key, overlap in {"monai": 0.25, "napari": 0.25, "napari-torch": 0.25, "napari-nnunet": 0.5}.items():
        assert str(made.bundle(overlap)) in words[key]
    assert "even" in words["napari-nnunet"]
    assert "--windows" not in words["napari"]
    assert words["napari-torch"] == [*words["napari-monai"], "--backend", "torch"]
    for key in ("nnunet", "model", "model-float32", "model-exact"):
        assert str(tmp_path / "nnunet") in words[key]
    own = predict.command("nnunet", predict.Made(tmp_path, 0.0, tmp_path / "own" / "python"), tmp_path / "out")
    assert own[0] == tmp_path / "own" / "nnUNetv2_predict_from_modelfolder"


def test_what_was_measured_before_is_taken_only_when_asked_to(tmp_path, monkeypatch):
    made, ran = predict.Made(tmp_path, 0.0), []

    def run(key, made, folder):
        folder.mkdir(parents=True, exist_ok=True)
        ran.append(key)
        return {"seconds": float(len(ran))}

    monkeypatch.setattr(predict, "run_contender", run)
    first = predict.run_rounds(made, ["nnunet", "monai"], 2, False, {"torch": "1"})
    assert ran == ["nnunet", "monai", "monai", "nnunet"]  # the second round backwards
    assert first == {"nnunet": [{"seconds": 1.0}, {"seconds": 4.0}], "monai": [{"seconds": 2.0}, {"seconds": 3.0}]}
    ran.clear()
    assert predict.run_rounds(made, ["napari"], 2, True, {"torch": "1"}).keys() == {"nnunet", "monai", "napari"}
    assert ran == ["napari", "napari"]
    assert predict.run_rounds(made, [], 2, True, {"torch": "2"}) == {}


def test_a_run_that_verified_its_network_is_repeated_and_marked(tmp_path, monkeypatch):
    made, seconds = predict.Made(tmp_path, 0.0), [50.0, 20.0, 21.0]

    def watched(key, made, folder):
        (made.folder / "cache" / "networks" / "0").mkdir(parents=True, exist_ok=True)
        return measuring.Watched(seconds.pop(0), 1 << 30, "", "scan: 8 windows of 128 x 128 x 128")

    monkeypatch.setattr(predict, "watched", watched)
    first = {"seconds": 20.0, "peak_gib": 1.0, "windows": 8}
    assert predict.run_contender("napari", made, tmp_path) == first | {"first_seconds": 50.0, "first_peak_gib": 1.0}
    assert predict.run_contender("napari", made, tmp_path) == first | {"seconds": 21.0}


def test_other_scans_and_settings_have_other_folders(tmp_path):
    scan = tmp_path / "scan.nii"
    scan.write_bytes(b"one")
    usual = predict.fingerprint(scan, networks.Standard(), learning.Training())
    assert usual == predict.fingerprint(scan, networks.Standard(), learning.Training())
    assert usual != predict.fingerprint(scan, networks.Standard(patch=96), learning.Training())
    scan.write_bytes(b"another")
    assert usual != predict.fingerprint(scan, networks.Standard(), learning.Training())


def test_scan_is_turned_without_interpolation(tmp_path):
    import nibabel

    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[0, 2.0, 0, 5], [-1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])  # i to the back, j to the right
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "given.nii.gz")
    predict.write_scan(tmp_path / "given.nii.gz", tmp_path / "scan.nii.gz")
    turned = nibabel.load(tmp_path / "scan.nii.gz")
    assert nibabel.aff2axcodes(turned.affine) == ("R", "A", "S")
    assert np.array_equal(np.asanyarray(turned.dataobj), array.transpose(1, 0, 2)[:, ::-1])
    assert np.array_equal(turned.get_qform(), turned.affine)


def test_classes_rise_with_intensity_in_large_pieces():
    pytest.importorskip("skimage")
    image = np.zeros((24, 30, 36), np.float32)
    image[:, 10:20] = 100
    image[:, 20:] = 300
    image[3, 3, 3] = 1000  # noise
    labels = learning.labels_by_rule(image, 3)
    assert np.array_equal(labels[:, [2, 15, 27]], np.broadcast_to([[0], [1], [2]], (24, 3, 36)))


def test_patches_and_labels_stay_together():
    labels = np.arange(8 * 10 * 12).reshape(8, 10, 12)
    for seed in range(10):
        patch, of_it = learning.random_patch(labels * 2, labels, (4, 8, 12), np.random.default_rng(seed))
        assert patch.shape == (4, 8, 12)
        assert np.array_equal(patch, of_it * 2)


def test_shapes_double_axis_by_axis():
    assert list(scaling.doubled((1, 2, 3), 4)) == [(1, 2, 3), (2, 2, 3), (2, 4, 3), (2, 4, 6)]


def test_growth_and_estimates_are_described():
    network = {"features": [32, 320], "spacing_mm": 1.0, "classes": 4, "patch": 128}
    row = {
        "backend": "torch",
        "shape": [100, 100, 200],
        "voxels": 2_000_000,
        "windows": 4,
        "window": [128, 128, 160],
        "seconds": 50.0,
        "network_seconds": 45.0,
        "gflop": 4500.0,
        "matrix_gflops": 125.0,
    }
    text = scaling.describe_scaling({"machine": MACHINE, "network": network, "rows": [row]})
    assert "| torch | 100×100×200 | 2.0 | 4 of 128×128×160 | 50.0 | 25.00 | 90% | 100 | 80% of 125 |" in text
    case = {
        "shape": [60, 80, 70],
        "spacing_mm": 0.8,
        "network": network,
        "backend": "openvino",
        "windows": 1,
        "window": [96, 96, 96],
        "predicted_bytes": 3 << 30,
        "measured_bytes": 2 << 30,
        "predicted_seconds": 6.17,
        "measured_seconds": 12.34,
    }
    text = plans.describe_plans({"machine": MACHINE, "cases": [case]})
    assert "| 60×80×70 | 0.8 | 4 | openvino | 1 of 96×96×96 | 3.00 | 2.00 | 1.50 | 6.2 | 12.3 | 0.50 |" in text
    assert len(plans.CASES) >= 8


def test_readers_of_a_series_agree(tmp_path):
    series = reading.make_series(tmp_path / "series", (8, 6, 5))
    ours = reading.read_ours(series)
    assert ours.dtype == np.int16
    for function in reading.READERS.values():
        found = getattr(reading, function)(series)
        assert np.array_equal(found.T if found.ndim == 3 else found[0], ours[0]), function
    row = {what: {"median": 1.5, "least": 1.25, "greatest": 2.0} for what in ("seconds", "share_of_simpleitk")}
    figures = {"machine": MACHINE, "shape": [8, 6, 5], "rounds": 5, "readers": {"napari-seg": row | {"dtype": "int16"}}}
    assert "| napari-seg | 1.5 (1.25-2) | 1.5 (1.25-2) | int16 |" in reading.describe_reading(figures)


def test_plan_and_network_time_are_taken_from_the_engine(tmp_path):
    bundle = write_threshold_bundle(tmp_path / "bundle")
    done = segmenting.segmented(bundle, (20, 24, 28), 1.0, "torch")
    assert done.plan.window_count >= 1
    assert 0 < done.network_seconds <= done.region_seconds < done.seconds
    assert done.estimated_seconds > 0
    assert done.peak_bytes > 1 << 20


def test_nnunet_and_the_bundle_compute_the_same(tmp_path):
    pytest.importorskip("nnunetv2")
    import nibabel
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from napari_seg.bundles.load import load_model
    from napari_seg.bundles.read import read_bundle

    array = np.zeros((22, 28, 36), np.int16)
    array[1:21, 4:28, 2:30] = np.random.default_rng(0).integers(1, 500, (20, 24, 28))
    scan = tmp_path / "scan_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), scan)  # at the network's spacing: nothing is interpolated
    network = networks.Standard(3, (4, 8), 16)
    weights = networks.random_weights(network)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    model = networks.make_nnunet_model(tmp_path / "nnunet", network, weights)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    preprocessor = predictor.configuration_manager.preprocessor_class()
    theirs, *_ = preprocessor.run_case(
        [str(scan)], None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    ours = learning.prepared(scan, network)
    assert ours.shape == (20, 24, 28)
    np.testing.assert_allclose(ours, theirs[0], atol=1e-5)
    bundle = read_bundle(networks.make_bundle(tmp_path / "bundle", network, weights, 0.25), trust=True)
    window = torch.from_numpy(ours)[None, None]
    with torch.inference_mode():
        torch.testing.assert_close(load_model(bundle, "cpu").network(window), predictor.network(window))


def test_programs_are_compared_by_scans_a_minute_and_by_the_scans_that_both_segmented():
    taken = {"seconds": 60.0, "processor_seconds": 90.0, "first_seconds": 9.0, "peak_gib": 0.5}
    runs = {
        "each": [taken | {"per_minute": 10.0, "read": 0.2, "network": 0.7, "write": 0.1}],
        "nnunet": [taken | {"per_minute": 5.0}],
    }
    one, other = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    rows = cohort.summary(runs, {"each": [one], "nnunet": [one, other]})
    assert rows["each"]["per_minute_ratio"]["median"] == 2
    assert rows["each"]["equal"] == 1
    assert "processor_seconds_ratio" not in rows["each"]
    network = {"features": [8, 16], "classes": 3}
    figures = {"machine": MACHINE, "scans": 2, "sample": 1, "rounds": 1, "network": network, "runs": rows}
    figures["windows"] = [40, 56, 40]
    text = cohort.describe_cohort(figures)
    assert "| 10 (10-10) | 2 (2-2) | 9.0 | 90.00 | 0.50 | 20% / 70% / 10% | 100.000% | 1.0000 |" in text
    assert "windows of 40×56×40, 3 classes" in text


def test_scans_get_the_names_that_nnunet_expects(tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", "._a.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    names = [path.name for path in cohort.link_scans(tmp_path, tmp_path / "links", None)]
    assert names == ["a_0000.nii.gz", "b_0000.nii.gz"]


@pytest.mark.parametrize("name", editing.CALLS)
def test_each_editing_function_is_timed_on_a_structure_that_it_changes(name: str) -> None:
    call, voxels = editing.prepare(name, (96, 96, 64))
    result = call()
    assert voxels > 1000
    assert len(result) == 2 if name == "list islands" else not result.is_empty


def test_editing_is_described_by_a_table() -> None:
    rows = [{"name": "smooth by 2 mm", "voxels": 1000, "seconds": 0.123, "cpu_seconds": 0.2, "peak_mib": 45.6}]
    text = editing.describe_editing(
        {"machine": MACHINE, "shape": [512, 512, 400], "spacing_mm": [0.8, 0.8, 1.0], "functions": rows}
    )
    assert "| smooth by 2 mm | 1000 | 0.12 | 0.20 | 46 |" in text
    assert "512×512×400" in text
