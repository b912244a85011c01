"""Pairs of configurations: their scores by folds, and the bundle that a pair becomes. The networks are not trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import nibabel
import numpy as np
import pytest
import torch
from runs import write_lines

from napari_seg.bundles.check import check
from napari_seg.bundles.content import code_lines
from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import MEMBERS, METADATA, WEIGHTS, EnsembleBundle
from napari_seg.bundles.trust import check_runnable, forget, is_trusted, remember
from napari_seg.bundles.ways import missing_weights, way_of
from napari_seg.errors import BundleError, Cancelled, InputError
from napari_seg.geometry import Grid
from napari_seg.inference import ensemble
from napari_seg.inference.estimate import estimate
from napari_seg.inference.second_look import second_look
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import RegionSettings
from napari_seg.learning.inherit import check_improvable
from napari_seg.training import folds
from napari_seg.training.choices import Choices
from napari_seg.training.chosen import copy_bundle, copy_ensemble
from napari_seg.training.configurations import Configurations, plan_configurations
from napari_seg.training.folds import cross_validate
from napari_seg.training.pace import read_configs
from napari_seg.training.pairs import Pair, score_pairs
from napari_seg.training.part import part_of
from napari_seg.training.postprocessing import METRIC, LargestGain
from napari_seg.training.scores import CASES, SUMMARY, read_scores
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.start import with_start
from napari_seg.volume import Volume

SMALL = {"network_def#channels": [4, 8], "network_def#strides": [1, 2], "network_def#encoder_convs": 1}
STEP = Path("training", "2d+3d", "fold_1", CASES)


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = datasets.write_decathlon(tmp_path_factory.mktemp("data") / "balls", cases=4, smallest=(14, 18, 12))
    description = json.loads((root / "dataset.json").read_text())
    description |= {"labels": {"0": "background", "1": "front", "2": "back"}, "modality": {"0": "MRI"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def finished(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Configurations]:
    """A comparison whose folds are finished: networks with random weights, the same in both folds."""
    out = tmp_path_factory.mktemp("finished") / "out"
    planned = plan_configurations(balls, out, Choices(folds=2, settings=SMALL), ("2d", "3d"))

    def pretend(words: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
        folder = Path(words[words.index("--output_dir") + 1])
        folder = folder if "training" in words else folder.parent
        folder.mkdir(exist_ok=True)
        torch.manual_seed(len(folder.parent.name) + planned.plans[folder.parent.name]["network"]["parameters"])
        with with_segnets():
            parser = read_configs(folder.parent, balls)
            if "training" in words:
                torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
                return
            parser["fold"], parser["folds"] = int(folder.name[-1]), 2
            cases = [case["name"] for case in parser.get_parsed_content("cases")("validation")]
        (folder / CASES).parent.mkdir(exist_ok=True)
        dice = {"front": 0.5, "back": 0.5}
        write_lines(folder / CASES, [{"case": case, "mean_dice": dice, METRIC: dice} for case in cases])
        (folder / SUMMARY).write_text(json.dumps({"mean_dice": {"mean": 0.5, **dice}, METRIC: dice}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "run", pretend)
        for folder in planned.folders.values():
            cross_validate(folder, balls, 2, None, lambda text: None, out / "stop")
    return out, planned


@pytest.fixture
def out(finished: tuple[Path, Configurations], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


@pytest.fixture
def bundle(out: Path) -> EnsembleBundle:
    """The bundle of the pair, in the folder of the comparison."""
    gains = [LargestGain("front", -0.1, (-0.1, 0.0)), LargestGain("back", 0.1, (0.1, 0.1))]
    cases = {"case_00": {"front": 0.5, "back": 0.7}}
    copy_ensemble(Pair(("2d", "3d"), cases, gains), folders_of(out), out, "3d")
    found = read_bundle(out)
    assert isinstance(found, EnsembleBundle)
    return found


def folders_of(out: Path) -> dict[str, Path]:
    return {name: out / "training" / name for name in ("2d", "3d")}


def scan_of(balls: Path, case: str = "case_00") -> Volume:
    image = nibabel.load(balls / "imagesTr" / f"{case}.nii.gz")
    return Volume(np.array(image.dataobj, np.float32)[None], Grid(image.shape, image.affine))


def scores_of(out: Path, balls: Path, report: Callable[[str], None] = lambda text: None) -> Pair:
    pairs, seconds = score_pairs(out, balls, folders_of(out), 2, report, out / "stop", {})
    assert [pair.name for pair in pairs] == ["2d+3d"]
    assert set(seconds) == {"2d", "3d"}
    return pairs[0]


def test_a_pair_has_the_scores_of_what_its_bundle_finds(out: Path, balls: Path) -> None:
    """All networks of a configuration are the same, so that its ensemble finds what the network of a fold finds."""
    pair = scores_of(out, balls)
    assert sorted(pair.cases) == [f"case_{n:02d}" for n in range(4)]
    copy_ensemble(Pair(pair.members, pair.cases, ()), folders_of(out), out, "3d")
    found = segment(scan_of(balls), read_bundle(out, trust=True), device="cpu", match="exact")
    reference = np.asarray(nibabel.load(balls / "labelsTr" / "case_00.nii.gz").dataobj)
    plain = next(scores for n in (0, 1) for case, scores in read_scores(out / STEP.parents[2] / f"fold_{n}").items()
                 if case == "case_00")  # fmt: skip
    for label, name in ((1, "front"), (2, "back")):
        sizes = np.count_nonzero(found.array == label) + np.count_nonzero(reference == label)
        dice = 2 * np.count_nonzero((found.array == label) & (reference == label)) / sizes
        assert plain[name] == pytest.approx(dice, abs=1e-3)
    assert 0 < max(plain.values()) < 1


def test_pairs_are_scored_as_the_folds_are_evaluated(out: Path, balls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in folders_of(out).values():
        config = folder / "configs" / "evaluate.yaml"
        config.write_text(config.read_text().replace("amp: $@device.type == 'cuda'", "amp: bfloat16"))
    seen: dict[str, RegionSettings] = {}

    def look(volume: Volume, settings: RegionSettings, *others: Any) -> None:
        seen[settings.bundle.root.name] = settings
        if len(seen) == 2:
            raise Cancelled("run.stopped", "seen")

    monkeypatch.setattr(ensemble, "add_probabilities", look)
    values = {name: {"windows#overlap": overlap} for name, overlap in (("2d", 0.125), ("3d", 0.375))}
    with pytest.raises(Cancelled):
        score_pairs(out, balls, folders_of(out), 2, lambda text: None, out / "stop", values)
    assert {name: settings.model.dtype for name, settings in seen.items()} == dict.fromkeys(seen, torch.bfloat16)
    assert seen["3d"].windows is not None
    assert seen["3d"].windows.overlap == (0.375,) * 3
    assert seen["2d"].windows is None
    assert seen["2d"].model.inferer.overlap == 0.125


def test_a_stopped_comparison_goes_on_with_the_next_case(out: Path, balls: Path) -> None:
    reports: list[str] = []

    def report(text: str) -> None:
        reports.append(text)
        if "fold 1" in text:
            (out / "stop").touch()

    with pytest.raises(Cancelled, match=r"run\.stopped"):
        scores_of(out, balls, report)
    kept = (out / str(STEP).replace("fold_1", "fold_0")).read_bytes()
    assert not (out / "stop").exists()
    assert not (out / STEP).exists()
    whole = scores_of(out, balls)
    lines = (out / STEP).read_bytes().splitlines(keepends=True)
    (out / STEP).write_bytes(lines[0] + lines[1][:20])  # as after a kill of a version that does not replace files
    reports.clear()
    assert scores_of(out, balls, reports.append).cases == whole.cases
    assert reports == ["pairs of configurations on fold 1 of 2: 1 case"]
    assert (out / STEP).read_bytes().startswith(lines[0])
    assert (out / str(STEP).replace("fold_1", "fold_0")).read_bytes() == kept
    # a fold that was trained further is scored again
    weights = torch.load(out / "training" / "2d" / "fold_1" / "model.pt", weights_only=True)
    torch.save(weights, out / "training" / "2d" / "fold_1" / "model.pt", _use_new_zipfile_serialization=False)
    reports.clear()
    scores_of(out, balls, reports.append)
    assert reports == ["pairs of configurations on fold 1 of 2: 2 cases"]


def test_probabilities_of_bundles_are_averaged(bundle: EnsembleBundle, balls: Path) -> None:
    """MONAI computes what is expected: whole images, inverted as MONAI inverts them."""
    from monai.data import MetaTensor
    from monai.transforms import Invertd

    scan = scan_of(balls)
    total: Any = 0
    for member in read_bundle(bundle.root, trust=True).models:
        model = load_model(member, "cpu")
        assert not isinstance(model.preprocessing, tuple)
        data = model.preprocessing(
            {"image": MetaTensor(torch.from_numpy(scan.array), torch.from_numpy(scan.grid.affine.copy()))}
        )
        with torch.no_grad():
            data["pred"] = MetaTensor(model.inferer(data["image"][None], model.network)[0], data["image"].affine)
        inverted = Invertd("pred", model.preprocessing, "image", nearest_interp=False)(data)["pred"]
        total = total + inverted.as_tensor().softmax(0).numpy() / 2
    found = segment(scan, replaced(bundle, largest=()), device="cpu", match="exact")
    assert np.mean(found.array == total.argmax(0)) > 0.999
    assert len(np.unique(found.array)) > 1
    assert set(found.run["members"]) == {"2d", "3d"}
    for label in found.confidence:
        assert found.confidence[label] == pytest.approx(total.max(0)[found.array == label].mean(), abs=1e-3)


def replaced(bundle: EnsembleBundle, **changes: Any) -> EnsembleBundle:
    return replace(bundle, trusted=True, **changes)


def test_a_pair_becomes_one_bundle(bundle: EnsembleBundle, balls: Path) -> None:
    out = bundle.root
    assert [member.root for member in bundle.members] == [(out / MEMBERS / name).resolve() for name in ("2d", "3d")]
    assert (bundle.kind, bundle.largest, bundle.name) == ("ensemble", (2,), "out")
    assert [segment.name for segment in bundle.segments] == ["front", "back"]
    assert dict(bundle.accuracy) == {"mean Dice over the cases of all folds": 0.6}
    assert "python -m monai.bundle run can't average them" in bundle.description
    assert bundle.description in (out / "docs" / "README.md").read_text(encoding="utf-8")
    assert not (out / WEIGHTS).exists()
    assert missing_weights(bundle) == ""
    assert not any(finding.level == "error" for finding in check(out))

    # its code is that of its members
    assert way_of(bundle).needs_consent
    assert code_lines(bundle)[0].file.startswith("members/2d/segnets/")
    with pytest.raises(BundleError, match=r"bundle\.untrusted"):
        check_runnable(bundle)
    check_runnable(read_bundle(out, trust=True))
    remember(bundle)
    assert is_trusted(bundle)
    check_runnable(bundle)
    (out / MEMBERS / "2d" / "segnets" / "unet.py").write_text("changed = True\n")
    with pytest.raises(BundleError, match=r"bundle\.trust_changed"):
        check_runnable(bundle)
    remember(bundle)
    forget(out)
    assert not is_trusted(bundle.members[0])

    before = model_digest(bundle)
    with (out / MEMBERS / "2d" / WEIGHTS).open("ab") as file:
        file.write(b"0")
    assert model_digest(bundle) != before

    # it is a single one again, if that is the better one
    copy_bundle(out / "training" / "3d", out)
    assert not (out / MEMBERS).exists()
    assert read_bundle(out).kind == "monai"


def test_a_pair_is_no_start_of_a_training(bundle: EnsembleBundle, tmp_path: Path, balls: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.fine_tune: .*averages 2 models; choose one of them: .*2d, .*3d"):
        with_start(Choices(), bundle.root, tmp_path / "new")
    with pytest.raises(BundleError, match=r"improve\.model: .*averages 2 models"):
        check_improvable(bundle)
    check_improvable(bundle.members[1])
    with pytest.raises(InputError, match=r"evaluation\.seen"):  # the split of the members is read
        part_of(balls, "test", bundle.root)


def test_other_programs_of_the_house_take_it(bundle: EnsembleBundle, balls: Path) -> None:
    trusted, scan = read_bundle(bundle.root, trust=True), scan_of(balls)
    assert estimate(scan, trusted, device="cpu") is None  # the 2D network is run on the whole image
    look = second_look(scan, trusted)
    assert look.disagreement is not None
    assert look.disagreement.members == "2 models"
    kept = segment(scan, trusted, device="cpu")
    plain = segment(scan, replaced(bundle, largest=()), device="cpu")
    assert np.count_nonzero(kept.array == 2) <= np.count_nonzero(plain.array == 2)
    assert (kept.array == 1).sum() == (plain.array == 1).sum()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"members": ["members/2d"]}, "names 1 members; expected 2 to 16"),
        ({"members": ["members/2d", "../members/3d"]}, "expected a folder in it"),
        ({"members": ["members/2d", "."]}, "expected a folder in it"),
        ({"members": ["members/2d", "members/none"]}, "can't be used"),
        ({"members": 3}, "TypeError"),
        ({"members": ["members/2d", "members/3d"], "largest": ["x"]}, "ValueError"),
    ],
)
def test_odd_members_are_refused(bundle: EnsembleBundle, entry: dict[str, Any], message: str) -> None:
    write(bundle.root, napari_seg=entry)
    with pytest.raises(BundleError, match=rf"bundle\.metadata: .*{message}"):
        read_bundle(bundle.root)


def test_members_with_other_classes_are_refused(bundle: EnsembleBundle) -> None:
    member = bundle.members[0].root
    formats = json.loads((member / METADATA).read_text())["network_data_format"]
    formats["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "back", "2": "front"}
    write(member, network_data_format=formats)
    with pytest.raises(BundleError, match=r"bundle\.members: .*member '2d', which has other network_segments"):
        read_bundle(bundle.root)


def write(root: Path, **entries: Any) -> None:
    metadata = json.loads((root / METADATA).read_text()) | entries
    (root / METADATA).write_text(json.dumps(metadata))
