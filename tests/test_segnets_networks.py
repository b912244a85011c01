"""Test every network with one battery, and each of them against values computed by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.blocks import crop_to, pad_to_multiple
from segnets.deeplab import ASPP, DeepLabV3, DeepLabV3Plus, atrous_rates
from segnets.encoder import ResidualEncoder, SeparableEncoder
from segnets.errors import TrainingError
from segnets.fcn import FCN
from segnets.multiview import MultiView
from segnets.training.weights import load_matching_weights
from segnets.unet import UNet

# a new network: its class, its arguments apart from the defaults, its dimensions
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "unet": (UNet, {}, (2, 3)),
    "unet_plain": (UNet, {"residual": False}, (2, 3)),
    "unet_anisotropic": (
        UNet,
        {"channels": (4, 8, 8), "strides": (1, (2, 2, 1), 2), "kernels": ((3, 3, 1), 3, 3), "encoder_units": (1, 2, 3)},
        (3,),
    ),
    "unet_supervised": (UNet, {"deep_supervision": True}, (3,)),
    "fcn_32s": (FCN, {"variant": "32s"}, (2, 3)),
    "fcn_8s": (FCN, {}, (2, 3)),
    "fcn_separable": (FCN, {"encoder": "separable"}, (2, 3)),
    "fcn_photo": (FCN, {"stem_stride": 4}, (2,)),
    "deeplab_v3": (DeepLabV3, {}, (2, 3)),
    "deeplab_v3_auxiliary": (DeepLabV3, {"auxiliary": True, "multi_grid": (2,)}, (3,)),
    "deeplab_v3_photo": (DeepLabV3, {"stem_stride": 4, "output_stride": 16, "window": 513}, (2,)),
    "deeplab_v3plus": (DeepLabV3Plus, {}, (2, 3)),
    "deeplab_v3plus_separable": (DeepLabV3Plus, {"encoder": "separable", "output_stride": 16}, (2, 3)),
    "multiview": (MultiView, {}, (3,)),
}
BATTERY = [pytest.param(cls, own, dims, id=f"{n}-{dims}d") for n, (cls, own, all_) in NETWORKS.items() for dims in all_]
every_network = pytest.mark.parametrize(("cls", "own", "dims"), BATTERY)


def logits_of(answer: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return answer if isinstance(answer, torch.Tensor) else answer[0]


@every_network
@pytest.mark.parametrize("size", [(16, 24, 32), (13, 35, 9), (3, 1, 2)], ids=str)
def test_logits_have_the_size_of_any_image(cls: type, own: dict, dims: int, size: tuple[int, ...]) -> None:
    network = cls(dims, 2, 3, **own).eval()
    image = torch.randn(2, 2, *size[:dims])
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (2, 3, *size[:dims])
        assert torch.isfinite(logits).all()
        assert torch.equal(network(image), logits), "the same image twice"
        assert torch.allclose(network(image[1:]), logits[1:], atol=1e-4), "the others of the batch do not matter"


@every_network
def test_a_batch_of_one_trains_every_parameter(cls: type, own: dict, dims: int) -> None:
    torch.manual_seed(0)
    network = cls(dims, 1, 3, **own).train()
    answer = network(torch.randn(1, 1, *(33, 17, 20)[:dims]))
    assert logits_of(answer).shape[2:] == (33, 17, 20)[:dims]
    heads = [answer] if isinstance(answer, torch.Tensor) else answer
    sum((head * torch.randn_like(head)).sum() for head in heads).backward()
    untrained = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untrained


@every_network
def test_torchscript_computes_the_same(cls: type, own: dict, dims: int) -> None:
    """Test what `monai.bundle ckpt_export` writes."""
    network = cls(dims, 1, 3, **own).eval()
    image = torch.randn(1, 1, *(13, 19, 9)[:dims])
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(network)(image), network(image), atol=1e-5)


@pytest.mark.slow
@every_network
def test_torch_export_computes_the_same(cls: type, own: dict, dims: int) -> None:
    network = cls(dims, 1, 3, **own).eval()
    image = torch.randn(1, 1, *(13, 19, 9)[:dims])
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(image), network(image), atol=1e-5)


@every_network
def test_weights_of_one_channel_give_the_same_for_the_image_twice(
    cls: type, own: dict, dims: int, tmp_path: Path
) -> None:
    one, two = cls(dims, 1, 3, **own).eval(), cls(dims, 2, 3, **own).eval()
    torch.save(one.state_dict(), tmp_path / "model.pt")
    fit = load_matching_weights(two, tmp_path / "model.pt")
    assert fit.adapted
    assert not fit.fresh
    image = torch.randn(1, 1, *(13, 19, 9)[:dims])
    with torch.no_grad():
        assert torch.allclose(two(torch.cat([image, image], dim=1)), one(image), atol=1e-4)


@every_network
def test_at_most_ten_million_parameters(cls: type, own: dict, dims: int) -> None:
    with torch.device("meta"):  # sizes without numbers
        network = cls(dims, 1, 3, **own)
    assert sum(p.numel() for p in network.parameters()) < 10_000_000


def test_padding_goes_to_a_multiple_and_at_least_twice_it_at_the_far_end() -> None:
    image = torch.arange(5.0).view(1, 1, 5, 1)
    padded = pad_to_multiple(image, [4, 2])
    assert padded[0, 0].tolist() == [[v] * 4 for v in (0, 1, 2, 3, 4, 4, 4, 4)]
    assert torch.equal(crop_to(padded, image), image)


# ---- encoders


@pytest.mark.parametrize("cls", [ResidualEncoder, SeparableEncoder])
@pytest.mark.parametrize(
    ("stem_stride", "output_stride", "strides", "rates"),
    [
        (1, None, [1, 2, 4, 8], [1, 1, 1, 1]),
        (1, 4, [1, 2, 4, 4], [1, 1, 1, 2]),
        (4, 16, [4, 8, 16, 16], [1, 1, 1, 2]),
        (4, 8, [4, 8, 8, 8], [1, 1, 2, 4]),
    ],
)
def test_past_the_output_stride_atrous_rates_double(
    cls: type, stem_stride: int, output_stride: int | None, strides: list[int], rates: list[int]
) -> None:
    encoder = cls(2, 1, (4, 4, 6, 8), (1, 1, 1, 2), stem_stride, output_stride)
    assert (encoder.channels, encoder.strides, encoder.rates) == ([4, 4, 6, 8], strides, rates)
    maps = encoder(torch.randn(1, 1, 64, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 32 // s) for c, s in zip((4, 4, 6, 8), strides, strict=True)
    ]
    for stage, rate in zip(encoder.stages, rates, strict=True):
        wide = [m.dilation for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert set(wide) == {(rate, rate)}


def test_multi_grid_multiplies_the_rates_of_the_last_stage() -> None:
    encoder = ResidualEncoder(3, 1, (4, 4, 4), (0, 1, 3), output_stride=2, multi_grid=(1, 2, 4))
    first = [unit.convs[0].conv.dilation[0] for unit in encoder.stages[-1]]
    assert first == [2, 4, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        {"output_stride": 3},
        {"output_stride": 32},
        {"units": (1, 1)},
        {"units": (0, 0, 1, 1)},
        {"multi_grid": (1, 2, 3)},
    ],
    ids=str,
)
def test_contradicting_encoder_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(TrainingError) as caught:
        ResidualEncoder(2, 1, **wrong)
    assert caught.value.code == "network.encoder"


# ---- FCN and DeepLab


class Constant(nn.Module):
    """Return 1, 10, 100 and 1000 as features of the stages."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image.new_full((1, 2, 16 // s, 24 // s), 10.0**n) for n, s in enumerate((1, 2, 4, 8))]


@pytest.mark.parametrize(("variant", "sum_of_stages"), [("32s", 1000.0), ("16s", 1100.0), ("8s", 1110.0)])
def test_fcn_adds_the_scores_of_its_last_stages(variant: Any, sum_of_stages: float) -> None:
    network = FCN(2, 1, 3, variant=variant, channels=(2, 2, 2, 2))
    network.encoder = Constant()
    for score in network.scores:
        nn.init.constant_(score.weight, 0.5)  # of two features: their mean
        nn.init.zeros_(score.bias)
    assert torch.equal(network(torch.zeros(1, 1, 16, 24)), torch.full((1, 3, 16, 24), sum_of_stages))


@pytest.mark.parametrize(
    ("window", "stride", "rates"),
    [(513, 16, (6, 12, 18)), (513, 8, (12, 24, 36)), (96, 16, (1, 2, 3)), (96, 8, (2, 4, 6)), (16, 16, (1, 2, 3))],
)
def test_the_pyramid_reaches_as_far_into_a_window_as_the_papers(window: int, stride: int, rates: tuple) -> None:
    assert atrous_rates(window, stride) == rates


def test_an_atrous_branch_sees_voxels_at_its_rate() -> None:
    branch = ASPP(2, 1, 1, rates=(2,)).branches[1]
    nn.init.ones_(branch.conv.weight)
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    assert branch.conv(impulse).nonzero()[:, 2:].tolist() == [[i, j] for i in (2, 4, 6) for j in (2, 4, 6)]


def test_image_pooling_needs_no_statistics_over_a_single_voxel() -> None:
    aspp = ASPP(3, 2, 2, rates=(1,), norm="batch").train()
    pooled = aspp.pooled[1].conv
    nn.init.ones_(pooled.weight)
    nn.init.constant_(pooled.bias, 0.5)
    image = torch.arange(16.0).view(1, 2, 2, 2, 2)
    assert aspp.pooled(image).flatten().tolist() == [3.5 + 11.5 + 0.5] * 2
    assert aspp(image).shape == (1, 2, 2, 2, 2)
    assert ASPP(3, 2, 2, rates=(1,), norm="batch").eval()(image[..., :1, :1, :1]).shape == (1, 2, 1, 1, 1)


@pytest.mark.parametrize(("stem_stride", "output_stride", "low_level"), [(1, 8, 2), (1, 16, 4), (4, 16, 4), (4, 8, 4)])
def test_the_decoder_sees_a_quarter_of_the_output_stride(stem_stride: int, output_stride: int, low_level: int) -> None:
    network = DeepLabV3Plus(2, 1, 2, stem_stride=stem_stride, output_stride=output_stride)
    assert network.encoder.strides[network.low_level] == low_level


def test_the_auxiliary_head_trains_and_is_gone_afterwards() -> None:
    network = DeepLabV3(3, 1, 3, auxiliary=True).train()
    image, label = torch.randn(1, 1, 9, 12, 10), torch.randint(0, 3, (1, 1, 9, 12, 10))
    answer = network(image)
    assert [tuple(head.shape) for head in answer] == [(1, 3, 9, 12, 10)] * 2
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    assert torch.isfinite(loss(answer, label))
    assert isinstance(network.eval()(image), torch.Tensor)


# ---- several views


def three_networks() -> list[nn.Module]:
    torch.manual_seed(3)
    return [nn.Conv2d(2, 3, 3, padding=1) for _ in range(3)]


def by_slices(network: nn.Module, image: torch.Tensor, axis: int) -> torch.Tensor:
    slices = [network(image.select(axis + 2, n)) for n in range(image.shape[axis + 2])]
    return torch.stack(slices, dim=axis + 2).softmax(dim=1)


def test_views_are_fused_by_their_mean_probability() -> None:
    networks, image = three_networks(), torch.randn(2, 2, 4, 5, 6)
    expected = sum(by_slices(network, image, axis) for axis, network in enumerate(networks)) / 3
    for chunk in (1, 7, 64):
        fused = MultiView(3, 2, 3, networks, chunk=chunk).eval()(image)
        assert torch.allclose(fused.exp(), expected, atol=1e-6)
    common = MultiView(3, 2, 3, networks[0], views=(0, 2)).eval()
    expected = (by_slices(networks[0], image, 0) + by_slices(networks[0], image, 2)) / 2
    assert torch.allclose(common(image).softmax(dim=1), expected, atol=1e-6)


def test_in_training_each_volume_is_seen_from_one_view() -> None:
    torch.manual_seed(0)
    networks, image = three_networks(), torch.randn(12, 2, 4, 5, 6)
    seen = MultiView(3, 2, 3, networks).train()(image).exp()
    views = [by_slices(network, image, axis) for axis, network in enumerate(networks)]
    drawn = [[k for k, view in enumerate(views) if torch.allclose(seen[i], view[i], atol=1e-6)] for i in range(12)]
    assert all(len(k) == 1 for k in drawn)
    assert {k[0] for k in drawn} == {0, 1, 2}


def test_a_config_nests_the_network_of_the_slices() -> None:
    inner = {"_target_": "segnets.unet.UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    outer = {"_target_": "segnets.multiview.MultiView", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    network = ConfigParser({"network_def": outer | {"network": inner}}).get_parsed_content("network_def")
    assert len({id(view.network) for view in network.views}) == 1
    assert network.eval()(torch.randn(1, 1, 8, 9, 10)).shape == (1, 2, 8, 9, 10)


@pytest.mark.parametrize("wrong", [{"spatial_dims": 2}, {"views": (0, 3)}, {"network": [nn.Identity()]}], ids=str)
def test_impossible_views_are_refused(wrong: dict) -> None:
    with pytest.raises(TrainingError) as caught:
        MultiView(**{"spatial_dims": 3, "in_channels": 1, "out_channels": 2} | wrong)
    assert caught.value.code == "network.views"
