"""Test a plan in words."""

from __future__ import annotations

from typing import Any

from napari_seg.training.describe import network_rows, plan_rows, size_costs, time_rows


def test_each_setting_has_its_reason() -> None:
    plan = {
        "fingerprint": {"cases": 6, "channels": ["T1", "FLAIR"], "modality": "MR"},
        "labels": {"front": [1], "back": [2, 3]},
        "options": {"crops_balanced": "images are larger than a patch"},
        "settings": {
            "patch_size": {"value": [32, 40, 32], "why": "contains 95 % of the images"},
            "normalisation": {"value": {"_target_": "monai.transforms.NormalizeIntensityd"}, "why": "no common scale"},
        },
        "choices": {"labels": {}, "folds": 2},
    }
    assert plan_rows(plan) == [
        ("data", "6 cases, T1, FLAIR (MR)"),
        ("labels", "front 1; back 2 3"),
        ("plan", "option crops_balanced: images are larger than a patch"),
        ("plan", "patch_size [32, 40, 32]: contains 95 % of the images"),
        ("plan", "normalisation NormalizeIntensityd: no common scale"),
        ("options", "folds 2"),
    ]
    assert plan_rows(plan | {"patients": 6})[0] == ("data", "6 cases, T1, FLAIR (MR)")
    assert plan_rows(plan | {"patients": 1})[0] == ("data", "6 cases of 1 patient, T1, FLAIR (MR)")
    unnamed = {"label 1": [1], "front": [2, 3], "label 4": [4]}
    text = "1; front 2 3; 4 (no names; --labels NAME=1 ... names them)"
    assert plan_rows(plan | {"labels": unnamed})[1] == ("labels", text)
    assert plan_rows(plan | {"choices": {}})[-1] == ("options", "none")
    choices = {
        "options": ["loss_focal", "flips"],
        "settings": {"seed": 3},
        "fine_tune": {"file": "a.pt", "sha256": "0"},
    }
    words = "options loss_focal flips, fine_tune a.pt, seed=3"
    assert plan_rows(plan | {"choices": choices})[-1] == ("options", words)
    assert ("note", "column phase is not used") in plan_rows(plan | {"notes": ["column phase is not used"]})


def printed(plan: dict[str, Any], limits: dict[str, Any]) -> str:
    """Return the rows as the command line prints them."""
    return "".join(f"{heading:<8}{text}\n" for heading, text in time_rows(plan, limits))


def test_what_the_minutes_reach_is_said_before_training() -> None:
    pace = {"device": "cpu, 2 threads", "step": 30.0, "case": 0.5, "validation": 1.0}
    settings = {"max_epochs": 100, "val_interval": 10, "batch_size": 2}
    plan = {
        "time": pace | {"training_cases": 80, "validation_cases": 10},
        "settings": {name: {"value": value, "why": ""} for name, value in settings.items()},
        "choices": {},
    }
    output = printed(plan, {"max_minutes": 10})
    assert "time    a step takes 30 s, a validation 1 s (cpu, 2 threads)\n        18 of 4000 steps 9 min" in output
    assert (
        "--max-minutes 10 reaches about 18 of 4000 steps (0.4%): far too few; 8.3 h reach a quarter, 33.3 h" in output
    )
    assert "18 of 40 steps (45.0%): 21 min reach all" in printed(plan, {"max_minutes": 10, "max_epochs": 1})
    output = printed(plan, {"max_epochs": 1})
    assert "40 steps 20 min, 1 validation 1 s, preparing the cases 45 s, evaluation 0 s: about 21 min in all" in output
    assert "limit" not in output
    assert printed({"settings": {}, "choices": {}}, {}) == ""  # a folder of an older version


def test_each_size_has_its_cost() -> None:
    cost = {"parameters": 5_250_000, "operations per step": 10**12, "bytes": 3 * 2**29}
    plan = {"network": {**cost, "sizes": {"S": cost, "M": cost | {"operations per step": 4 * 10**12}}}}
    assert size_costs(plan)["S"] == "5.25 M parameters, 1.5 GiB"
    plan["time"] = {"step": 0.5}
    assert size_costs(plan)["M"] == "2 s a step, 5.25 M parameters, 1.5 GiB"
    assert size_costs({}) == {}


def test_equal_sizes_share_a_row_with_the_reason() -> None:
    cost = {"parameters": 5_250_000, "operations per step": 10**12, "bytes": 3 * 2**29}
    large = cost | {"parameters": 62_800_000}
    network = {"class": "UNet", "arguments": {}, "why": "", "size": "XL", "sizes": {"S": cost, "L": large, "XL": large}}
    rows = [text for heading, text in network_rows({"network": network | cost}) if heading == "size"]
    assert [row.split(" million")[0].split() for row in rows] == [["S", "5.2"], ["L,", "XL", "62.8"]]
    assert rows[1].endswith("a step  <- planned  (equal: they differ in the largest patch on a GPU only)")
