"""Whether a bundle is shown 2D images or volumes follows from its windows or its network."""

from __future__ import annotations

from typing import Any

import pytest

from napari_seg.bundles.dimensions import image_dimensions, takes_2d_images

WINDOWS, WHOLE = {"_target_": "SlidingWindowInferer"}, {"_target_": "monai.inferers.SimpleInferer"}
SLICES = {"_target_": "SliceInferer", "roi_size": [64, 64]}


@pytest.mark.parametrize(
    ("config", "spatial_shape", "expected"),
    [
        ({"inferer": WINDOWS | {"roi_size": [64, 64]}}, None, 2),
        ({"inferer": WINDOWS | {"roi_size": "@size"}, "size": [64, 64]}, None, 2),
        ({"inferer": WINDOWS | {"roi_size": [64, 64, 64]}, "network_def": {"spatial_dims": 2}}, [64, 64], 3),
        ({"inferer": SLICES, "network_def": {"spatial_dims": 2}}, [64, 64], 3),
        ({"inferer": "@windows", "windows": SLICES}, None, 3),
        ({"inferer": {"_target_": "scripts.Mine", "inner": WHOLE}, "network_def": {"spatial_dims": 2}}, None, 3),
        ({"inferer": WHOLE, "network_def": {"spatial_dims": "@dims"}, "dims": 2}, None, 2),
        ({"inferer": WINDOWS | {"roi_size": 64}, "network_def": {"spatial_dims": 3}}, [64, 64], 3),
        ({"inferer": WHOLE, "network_def": {"_target_": "FlexibleUNet"}}, [736, 480], 2),  # as MONAI's endoscopic_tool
        ({"inferer": WHOLE, "network_def": {"spatial_dims": "$f()"}}, ["8*n", "8*n", "8*n"], 3),
        ({}, None, 3),
    ],
)
def test_dimensions_are_those_of_the_windows_or_of_the_network(
    config: dict[str, Any], spatial_shape: Any, expected: int
) -> None:
    assert image_dimensions(config, spatial_shape) == expected


@pytest.mark.parametrize(
    ("config", "spatial_shape", "expected"),
    [
        ({"inferer": WINDOWS | {"roi_size": [64, 64]}}, None, True),
        ({"inferer": "@windows", "windows": SLICES}, None, True),
        ({"inferer": {"_target_": "scripts.Mine", "inner": WHOLE}, "network_def": {"spatial_dims": 2}}, None, True),
        ({"inferer": {"_target_": "scripts.Mine", "inner": WHOLE}, "network_def": {"spatial_dims": 3}}, None, False),
        (
            {"inferer": WINDOWS | {"roi_size": [64, 64, 64]}, "network_def": {"_target_": "scripts.Net"}},
            [64] * 3,
            False,
        ),
        ({"inferer": WINDOWS | {"roi_size": [64, 64, 64]}, "network_def": {"_target_": "scripts.Net"}}, None, False),
        ({"inferer": WHOLE, "network_def": {"_target_": "scripts.Net"}}, ["8*n"] * 3, False),
        ({"inferer": WHOLE, "network_def": {"_target_": "scripts.Net"}}, None, None),
        ({"inferer": WINDOWS | {"roi_size": [64, 64, 1]}}, None, True),
        ({"inferer": WINDOWS | {"roi_size": [1, 64, 64]}}, [1, 64, 64], True),
        ({"inferer": {"_target_": "scripts.Mine"}, "network": {"_target_": "scripts.Net"}}, None, None),
        ({}, None, None),
    ],
)
def test_networks_of_slices_take_2d_images_too(
    config: dict[str, Any], spatial_shape: Any, expected: bool | None
) -> None:
    assert takes_2d_images(config, spatial_shape) is expected
