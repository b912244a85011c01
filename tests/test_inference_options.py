"""Options of a run: one definition for Python, command line and records."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from napari_seg.bundles.spec import Bundle
from napari_seg.cli.predict import add_parser, options_of
from napari_seg.inference.options import SegmentOptions, option_fields


def test_every_option_is_explained_and_has_an_allowed_default() -> None:
    for option in option_fields():
        assert option.metadata["help"]
        choices = option.metadata["choices"]
        assert not choices or option.default in (None, *choices)


def test_values_that_are_not_allowed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found precision='float8'; expected one of auto, float32, bfloat16"):
        SegmentOptions(precision="float8")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SegmentOptions(colour="red")  # type: ignore[call-arg]


def test_a_record_has_the_options_that_can_change_labels() -> None:
    options = SegmentOptions("cpu", "torch", "bfloat16", 2**30, "even", False, "shifts", True)
    record = json.loads(json.dumps(options.to_record()))
    assert "confidence_maps" not in record
    assert SegmentOptions(**record) == options


def test_a_coarse_pass_runs_on_the_same_machine_with_defaults_for_the_rest() -> None:
    options = SegmentOptions("cpu", "torch", "bfloat16", 2**30, "even", False, "shifts", True, True)
    assert options.of_coarse_pass() == SegmentOptions("cpu", "torch", "bfloat16", 2**30, "even")


def test_the_command_line_has_a_flag_for_every_option() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    words = ["predict", "scan.nii", "-o", "out"]
    assert options_of(parser.parse_args(words)) == SegmentOptions()
    words += ["--device", "cpu", "--backend", "torch", "--precision", "bfloat16", "--memory", "1GiB"]
    words += ["--windows", "even", "--no-crop", "--tta", "shifts", "--keep-islands", "--confidence-maps"]
    chosen = SegmentOptions("cpu", "torch", "bfloat16", 2**30, "even", False, "shifts", True, True)
    assert options_of(parser.parse_args(words)) == chosen
    words += ["--match", "exact", "--structures", "liver", "left kidney"]
    assert options_of(parser.parse_args(words)) == replace(chosen, match="exact", structures=("liver", "left kidney"))


def test_what_match_implies_depends_on_the_model_and_gives_way_to_what_was_chosen() -> None:
    ours = Bundle(Path(), "", "", "", "", 1, (), ())
    theirs = replace(ours, kind="nnunet")
    auto = SegmentOptions()
    fast = replace(auto, match="fast", windows="fewest")
    exact = replace(auto, match="exact", windows="even", crop=False)
    assert auto.resolved(ours) == fast
    assert auto.resolved(replace(ours, is_exact=True)) == replace(exact, windows="bundle")
    assert SegmentOptions(match="fast").resolved(replace(ours, is_exact=True)) == fast
    assert auto.resolved(theirs) == exact
    assert SegmentOptions(match="fast").resolved(theirs) == fast
    assert SegmentOptions(match="exact").resolved(ours) == replace(exact, windows="bundle")
    assert SegmentOptions(windows="bundle").resolved(theirs) == replace(exact, windows="bundle")
    assert exact.resolved(theirs) == exact


def test_the_options_load_no_heavy_library() -> None:
    code = (
        "import sys, napari_seg.inference.options\n"
        "print({'torch', 'monai', 'numpy', 'scipy', 'SimpleITK'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
