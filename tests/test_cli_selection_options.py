"""Arguments that say what a run consists of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import pytest

import napari_seg.cli.consent
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import Bundle
from napari_seg.cli.main import main
from napari_seg.cli.selection_options import add_selection_options, model_reader, selection_of
from napari_seg.cohort.layout import Layout
from napari_seg.cohort.rules import read_rules
from napari_seg.cohort.select import Selection


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", nargs="*", type=Path)
    parser.add_argument("--trust", action="store_true")
    add_selection_options(parser)
    parser.set_defaults(refuse=parser.error)
    return parser.parse_args(list(words))


def test_nothing_given_selects_everything_for_the_shipped_model() -> None:
    assert selection_of(parsed("a")) == Selection((Path("a"),))


def test_every_argument_has_its_place(tmp_path: Path) -> None:
    words = "--model A --bundle B --model A --min-slices 30 --series T1* --series T2* --exclude old --layout bids"
    found = selection_of(parsed("a", "b", *words.split(), "--modality", "CT", "MR"))
    assert found == Selection(
        (Path("a"), Path("b")), ("A", "B"), (), ("CT", "MR"), 30, ("T1*", "T2*"), ("old",), layout="bids"
    )
    rules = tmp_path / "rules.csv"
    rules.write_text("modality,model\nCT,A\n")
    assert selection_of(parsed("a", "--rules", str(rules))).rules == read_rules(rules)
    for layout in get_args(Layout):
        assert parsed("--layout", layout).layout == layout


@pytest.mark.parametrize("words", [["--min-slices", "-1"], ["--min-slices", "many"], ["--layout", "tree"]])
def test_a_wrong_value_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)


def test_rules_and_models_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        selection_of(parsed("a", "--rules", str(tmp_path / "rules.csv"), "--model", "A"))


@pytest.mark.parametrize(
    "words",
    [
        ["--modality", "CT"],
        ["--min-slices", "3"],
        ["--series", "T1*"],
        ["--exclude", "*"],
        ["--rules", "rules.csv"],
        ["--layout", "mirror"],
        ["--model", "a", "--model", "b"],
    ],
)
def test_options_that_channels_would_ignore_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--channel", "T1=a.nii.gz", "-o", "out", *words])
    assert f"found --channel and {'several ' * ('b' in words)}{words[0]}; " in capsys.readouterr().err


def test_workers_with_a_cluster_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "a.nii.gz", "-o", "out", "--dask", "local:2", "--workers", "3"])
    assert "found --dask and --workers" in capsys.readouterr().err


def test_consent_counts_for_models_of_the_command_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: list[Path] = []

    def give_consent(bundle: Bundle) -> Bundle:
        trusted.append(bundle.root)
        return bundle

    monkeypatch.setattr(napari_seg.cli.consent, "give_consent", give_consent)
    model_of = model_reader(parsed("a", "--trust"))
    assert model_of("", False) == read_bundle()
    assert trusted == []
    model_of("", True)
    assert trusted == [shipped_root()]


def test_a_rules_file_with_a_fault_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules.csv"
    rules.write_text("modalty,model\nCT,A\n")
    assert main(["predict", str(tmp_path), "-o", str(tmp_path / "out"), "--rules", str(rules)]) == 1
    assert "cohort.rules: rules.csv, line 1: found the column 'modalty'" in capsys.readouterr().err
