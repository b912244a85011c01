"""Test fine-tuning from other weights, and ensembles against averages computed by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.ensemble import Ensemble
from segnets.errors import TrainingError
from segnets.training.weights import load_matching_weights, merge_checkpoints, read_weights


class Net(nn.Module):
    """Apply an encoder whose shortcut receives the image too, and a head."""

    def __init__(self, in_channels: int = 1, out_channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, width, 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, out_channels, 1)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(torch.relu(self.first(image) + self.shortcut(image))))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


def saved(path: Path, network: nn.Module, wrap: Callable[[dict], object] = dict) -> Path:
    torch.save(wrap(network.state_dict()), path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"model": state},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["bare", "model", "of several GPUs"],
)
def test_the_same_network_is_copied_whole(tmp_path: Path, wrap: Callable[[dict], object]) -> None:
    given, own = Net(), Net()
    fit = load_matching_weights(own, saved(tmp_path / "model.pt", given, wrap))
    assert all(torch.equal(a, b) for a, b in zip(given.state_dict().values(), own.state_dict().values(), strict=True))
    assert (set(fit.copied), fit.adapted, fit.fresh, fit.unused) == (set(own.state_dict()), (), (), ())
    assert fit.fraction == 1


def test_other_classes_leave_the_head_fresh_and_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given, own = Net(out_channels=3), Net(out_channels=5)
    fresh = own.head.weight.detach().clone()
    with caplog.at_level("INFO", logger="segnets"):
        fit = load_matching_weights(own, saved(tmp_path / "model.pt", given))
    assert set(fit.fresh) == set(fit.unused) == {"head.bias", "head.weight"}
    assert torch.equal(own.head.weight, fresh)
    assert torch.equal(own.second.weight, given.second.weight)
    # 8*9 + 8 + 8 + 8 + 576 + 8 and the norm's 4*8 + 1 of those and the head's 5*8 + 5
    assert fit.fraction == pytest.approx(713 / 758)
    assert "2 left fresh (head.bias, head.weight)" in caplog.text


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 3), (3, 1), (3, 2)])
def test_other_channels_keep_the_result_for_equal_channels(tmp_path: Path, old: int, new: int) -> None:
    given, own = Net(in_channels=old).eval(), Net(in_channels=new).eval()
    fit = load_matching_weights(own, saved(tmp_path / "model.pt", given))
    assert set(fit.adapted) == {"first.weight", "shortcut.weight"}
    assert not fit.fresh
    image = torch.rand(1, 1, 9, 7)
    expected = given(image.expand(-1, old, -1, -1))
    torch.testing.assert_close(own(image.expand(-1, new, -1, -1)), expected, atol=1e-5, rtol=1e-5)


def test_channels_that_both_have_keep_their_order(tmp_path: Path) -> None:
    given, own = Net(in_channels=2), Net(in_channels=3)
    load_matching_weights(own, saved(tmp_path / "model.pt", given))
    torch.testing.assert_close(own.first.weight[:, :2], given.first.weight * 2 / 3)
    torch.testing.assert_close(own.first.weight[:, 2], given.first.weight.mean(1) * 2 / 3)


def test_another_network_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)))
    own = Net()
    before = own.first.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"weights.nothing_fits: .*fits 0.0% .*0.weight.*first.weight"):
        load_matching_weights(own, path)
    assert torch.equal(own.first.weight, before)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"weights\.missing"):
        read_weights(tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("not weights")
    torch.save({"model": 3}, tmp_path / "number.pt")
    torch.save(Net(), tmp_path / "code.pt")  # a pickled module would run code
    whole = saved(tmp_path / "model.pt", Net()).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "number", "code", "half"):
        with pytest.raises(TrainingError, match=r"weights\.unreadable"):
            read_weights(tmp_path / f"{name}.pt")


def test_an_ensemble_is_the_mean_of_the_members_probabilities(tmp_path: Path) -> None:
    members = [Net().eval() for _ in range(3)]
    paths = [saved(tmp_path / f"fold{n}.pt", member) for n, member in enumerate(members)]
    merge_checkpoints(paths, tmp_path / "model.pt")
    ensemble = Ensemble(Net(), members=3).eval()
    ensemble.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.rand(2, 1, 8, 6)
    expected = sum(member(image).softmax(1) for member in members) / 3
    torch.testing.assert_close(ensemble(image).exp(), expected)
    torch.testing.assert_close(ensemble(image).softmax(1), expected)
    torch.testing.assert_close(torch.jit.script(ensemble)(image), ensemble(image))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold0.pt", "fold1.pt", "fold2.pt", "model.pt"]


def test_fine_tuning_uses_the_first_network_of_an_ensemble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [Net() for _ in range(3)]
    merge_checkpoints([saved(tmp_path / f"{n}.pt", member) for n, member in enumerate(members)], tmp_path / "model.pt")
    own = Net()
    with caplog.at_level("INFO", logger="segnets"):
        fit = load_matching_weights(own, tmp_path / "model.pt")
    assert fit.fraction == 1
    assert not fit.unused
    assert torch.equal(own.head.weight, members[0].head.weight)
    assert "an ensemble of 3 networks; the first one is used" in caplog.text


def test_an_ensemble_of_confident_members_stays_finite() -> None:
    network = nn.Conv2d(1, 2, 1)
    nn.init.constant_(network.weight, 0)
    network.bias.data = torch.tensor([0.0, 500.0])
    torch.testing.assert_close(Ensemble(network, 2)(torch.rand(1, 1, 1, 1)).flatten(), torch.tensor([-500.0, 0.0]))


def test_members_of_different_networks_are_refused(tmp_path: Path) -> None:
    paths = [saved(tmp_path / "a.pt", Net()), saved(tmp_path / "b.pt", Net(out_channels=4))]
    with pytest.raises(TrainingError, match=r"weights.differ: .*b.pt .*head.bias, head.weight"):
        merge_checkpoints(paths, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def bundle(root: Path, network: nn.Module, classes: list[str], channels: list[str]) -> Path:
    """Write the weights of a bundle with the names in its metadata, and return their file."""
    for folder in ("configs", "models"):
        (root / folder).mkdir(parents=True)
    numbered = [{str(number): name for number, name in enumerate(names)} for names in (classes, channels)]
    formats = {"outputs": {"pred": {"channel_def": numbered[0]}}, "inputs": {"image": {"channel_def": numbered[1]}}}
    (root / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    return saved(root / "models" / "model.pt", network)


def named(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


OLD = ["background", "left kidney", "right kidney", "liver"]
IMAGE = torch.rand(1, 1, 8, 6, generator=torch.Generator().manual_seed(1))


def logits_before_and_after(
    tmp_path: Path, new: list[str], **arguments: object
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return the logits of the old network and of a new one that begins from it, and where its classes came from."""
    given, own = Net(out_channels=len(OLD)).eval(), Net(out_channels=len(new)).eval()
    fit = load_matching_weights(
        own, bundle(tmp_path / "old", given, OLD, ["T1"]), named(*new), named("T1"), **arguments
    )
    assert not fit.fresh
    with torch.no_grad():
        return given(IMAGE), own(IMAGE), str(fit.origins)


def test_classes_in_another_order_begin_from_those_of_the_same_name(tmp_path: Path) -> None:
    before, after, said = logits_before_and_after(tmp_path, ["background", "Liver", "left kidney", "right kidney"])
    torch.testing.assert_close(after, before[:, [0, 3, 1, 2]])
    assert said == "Liver from liver, left kidney from left kidney, right kidney from right kidney"


def test_a_dropped_class_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    before, after, said = logits_before_and_after(tmp_path, ["background", "liver"])
    torch.testing.assert_close(after, before[:, [0, 3]])
    assert said == "liver from liver; dropped left kidney, right kidney"


def test_an_added_class_begins_as_a_part_of_background(tmp_path: Path) -> None:
    before, after, said = logits_before_and_after(tmp_path, [*OLD, "spleen"])
    probabilities, old = after.softmax(1), before.softmax(1)
    torch.testing.assert_close(probabilities[:, 1:4], old[:, 1:])
    torch.testing.assert_close(probabilities[:, 0], old[:, 0] / 2)
    torch.testing.assert_close(probabilities[:, 4], old[:, 0] / 2)
    assert said.endswith("spleen from a part of background")


def test_divided_classes_share_the_probability_of_their_parent(tmp_path: Path) -> None:
    new = ["background", "left kidney", "right kidney", "left lobe", "right lobe"]
    origin = {"left lobe": "liver", "right lobe": ["Liver"]}
    before, after, said = logits_before_and_after(tmp_path, new, classes_from=origin)
    probabilities, old = after.softmax(1), before.softmax(1)
    torch.testing.assert_close(probabilities[:, :3], old[:, :3])
    torch.testing.assert_close(probabilities[:, 3], old[:, 3] / 2)
    torch.testing.assert_close(probabilities[:, 4], old[:, 3] / 2)
    assert "left lobe from a part of liver" in said


def test_merged_classes_begin_at_the_tangent_of_their_sum(tmp_path: Path) -> None:
    origin = {"kidney": ["left kidney", "right kidney"]}
    before, after, said = logits_before_and_after(tmp_path, ["background", "liver", "kidney"], classes_from=origin)
    exact = before[:, 1:3].logsumexp(1)
    difference = before[:, 1] - before[:, 2]
    torch.testing.assert_close(after[:, :2], before[:, [0, 3]])
    assert (after[:, 2] <= exact + 1e-6).all()
    assert ((exact - after[:, 2]) <= difference**2 / 8 + 1e-6).all()
    assert said == "liver from liver, kidney from left kidney + right kidney"


def test_a_sigmoid_begins_from_the_odds_against_background(tmp_path: Path) -> None:
    given, own = Net(out_channels=2).eval(), Net(out_channels=1).eval()
    path = bundle(tmp_path / "old", given, ["background", "liver"], ["T1"])
    load_matching_weights(own, path, named("liver"))
    with torch.no_grad():
        torch.testing.assert_close(own(IMAGE).sigmoid(), given(IMAGE).softmax(1)[:, 1:])
        back, path = Net(out_channels=2).eval(), bundle(tmp_path / "regions", own, ["liver"], ["T1"])
        load_matching_weights(back, path, named("background", "liver"))
        torch.testing.assert_close(back(IMAGE).softmax(1)[:, 1:], own(IMAGE).sigmoid())


def test_similar_names_match_and_others_do_not(tmp_path: Path) -> None:
    given, own = Net(), Net()
    classes = ["background", "anterior hippocampus", "posterior hippocampus"]
    path = bundle(tmp_path / "old", given, classes, ["T1"])
    fit = load_matching_weights(own, path, named("background", "Posterior", "Anterior"))
    torch.testing.assert_close(own.head.weight, given.head.weight[[0, 2, 1]])
    assert str(fit.origins) == "Posterior from posterior hippocampus, Anterior from anterior hippocampus"
    fit = load_matching_weights(own, path, named("background", "a", "b"))
    torch.testing.assert_close(own.head.weight, given.head.weight)
    assert fit.origins is None
    with pytest.raises(TrainingError, match=r"weights.classes: classes_from says a begins from hippocampus; expected"):
        load_matching_weights(own, path, named("background", "a", "b"), classes_from={"a": "hippocampus"})
    with pytest.raises(TrainingError, match=r"weights.classes: .* belongs to no bundle"):
        load_matching_weights(
            own, saved(tmp_path / "model.pt", given), named("background", "a"), classes_from={"a": "b"}
        )


@pytest.mark.parametrize("network", ["UNet", "FCN", "DeepLabV3", "DeepLabV3Plus"])
def test_the_last_layers_of_all_networks_are_found(tmp_path: Path, network: str) -> None:
    import segnets

    small = {"encoder_convs": 1, "channels": [4, 3], "strides": [2, 2]} if network == "UNet" else {}
    made = [getattr(segnets, network)(2, 2, 3, **small).eval() for _ in range(2)]
    path = bundle(tmp_path / "old", made[0], ["background", "a", "b"], ["T1", "T2"])
    load_matching_weights(made[1], path, named("background", "b", "new"), named("T2", "T1"))
    image = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        before, after = made[0](image), made[1](image.flip(1))
    probabilities = after.softmax(1)
    torch.testing.assert_close(after[:, 1] - after[:, 0], before[:, 2] - before[:, 0] + math.log(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(probabilities[:, 2], probabilities[:, 0])


def test_shortcuts_with_as_many_features_as_classes_are_no_last_layers(tmp_path: Path) -> None:
    import segnets

    made = [segnets.UNet(2, 1, 4, channels=[4, 4, 6]).eval() for _ in range(2)]
    path = bundle(tmp_path / "old", made[0], ["background", "a", "b", "c"], ["T1"])
    load_matching_weights(made[1], path, named("background", "c", "a", "b"))
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made[1](image), made[0](image)[:, [0, 3, 1, 2]])


def test_regions_from_one_class_all_begin_with_its_probability(tmp_path: Path) -> None:
    given, own = Net(out_channels=2).eval(), Net(out_channels=3).eval()
    path = bundle(tmp_path / "old", given, ["whole", "core"], ["T1"])
    origin = {"new core": "core", "rim": "core"}
    load_matching_weights(own, path, named("whole", "new core", "rim"), classes_from=origin)
    with torch.no_grad():
        torch.testing.assert_close(own(IMAGE), given(IMAGE)[:, [0, 1, 1]])


def test_channels_are_matched_by_name(tmp_path: Path) -> None:
    given, own = Net(in_channels=3).eval(), Net(in_channels=3).eval()
    path = bundle(tmp_path / "old", given, ["background", "a", "b"], ["T1", "T2", "FLAIR"])
    load_matching_weights(own, path, channels=named("FLAIR", "T1", "ADC"))
    for layer in ("first", "shortcut"):
        torch.testing.assert_close(getattr(own, layer).weight, getattr(given, layer).weight[:, [2, 0, 1]])
    own = Net(in_channels=2)
    load_matching_weights(own, path, channels=named("FLAIR", "T1"))
    torch.testing.assert_close(own.first.weight, given.first.weight[:, [2, 0]] + given.first.weight[:, 1:2] / 2)
    same = Net(in_channels=2)
    path = bundle(tmp_path / "twice", given, ["background", "a", "b"], ["T1", "T2", "FLAIR"])
    load_matching_weights(same, path, channels=named("T1", "T1"))  # which is which is unknown: in their order
    torch.testing.assert_close(same.first.weight.sum(1), given.first.weight.sum(1))


def test_a_history_of_arrays_does_not_hide_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {"a": torch.ones(2)}, "logging": {"losses": np.arange(3.0)}}, path)
    assert read_weights(path)["a"].tolist() == [1, 1]
    torch.save({"network_weights": {"a": torch.ones(2)}, "trainer": tmp_path}, path)
    with pytest.raises(TrainingError, match=r"weights\.unreadable.*can be read safely: it may run code; expected"):
        read_weights(path)
