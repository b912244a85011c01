"""Objects are made within bounds, from arguments that this version of MONAI takes."""

from __future__ import annotations

import pytest
import torch

from napari_seg.bundles.config.expression import ExpressionError
from napari_seg.bundles.config.objects import calculated, check_numbers, fitted_config, limited_size, located


def test_arguments_of_earlier_versions_are_fitted() -> None:
    config = {"a": [{"_target_": "SwinUNETR", "img_size": 9}, {"_target_": "LoadImaged", "reader": "ITKReader"}]}
    notices: list[str] = []
    fitted = [{"_target_": "SwinUNETR"}, {"_target_": "LoadImaged", "_disabled_": True}]
    assert fitted_config(config, notices) == {"a": fitted}
    assert notices == ["SwinUNETR has no argument img_size in this version of MONAI; it is left out"]
    unetr = {"_target_": "UNETR", "pos_embed": "conv"}
    assert fitted_config(unetr, notices) == {"_target_": "UNETR", "proj_type": "conv"}


def test_a_large_network_is_stopped_while_it_is_built() -> None:
    with pytest.raises(ValueError, match="modules"), limited_size():
        torch.nn.Sequential(*(torch.nn.Identity() for _ in range(30_000)))
    with pytest.raises(ValueError, match="parameters"), limited_size():
        torch.nn.Linear(2**16, 2**16, device="meta")
    torch.nn.Linear(2**16, 2**16, device="meta")  # the limit has ended
    with pytest.raises(ValueError, match="at most 65536"):
        check_numbers({"depths": [2, [3, 2**20]]})


def test_functions_give_no_much_larger_arrays() -> None:
    assert calculated(torch.where, torch.tensor([True, False]), 1, 2).tolist() == [1, 2]
    array = torch.ones(4)
    for arguments in ([array] * 1000, ["text"], [len, None]):
        with pytest.raises((ExpressionError, TypeError)):
            calculated(torch.stack, arguments)
    with pytest.raises(ExpressionError, match="too large"):
        calculated(torch.where, torch.ones(2**16, 1) > 0, torch.ones(2**16), 0)


def test_only_constants_of_utilities_are_located() -> None:
    assert located("monai.utils.CommonKeys.IMAGE") == "image"
    with pytest.raises((ExpressionError, AttributeError)):
        located("monai.utils.MONAIEnvVars.debug")
