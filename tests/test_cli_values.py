"""Numbers and NAME=VALUE on the command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from napari_seg.cli.main import main
from napari_seg.cli.values import count, integer, minutes, named_label, tolerance, whole_number


@pytest.mark.parametrize(
    ("read", "word", "expected"),
    [
        (count, "0", "a whole number from 1 up"),
        (whole_number, "-1", "a whole number from 0 up"),
        (integer, "five", "a whole number"),
        (integer, "5.0", "a whole number"),
        (minutes, "ten", "minutes above 0"),
        (tolerance, "nan", "a distance in mm, 0 or more"),
        (named_label, "liver", "NAME=VALUE"),
        (named_label, "2,3=left kidney", "NAME=VALUE: write 'left kidney=2,3'"),
    ],
)
def test_a_refusal_says_what_is_expected(read: Callable[[str], object], word: str, expected: str) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"found '{word}'; expected {expected}$"):
        read(word)


def test_limits_are_checked_elsewhere() -> None:
    assert [integer(word) for word in ("-2", "0", "500")] == [-2, 0, 500]


def test_names_may_be_numbers_where_values_are_numbers() -> None:
    assert named_label("2=3") == ("2", "3")
    assert named_label("liver=120-135") == ("liver", "120-135")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predct", "x"], "did you mean predict?"),
        (["models", "lst"], "did you mean list?"),
        (["predict", "x", "-o", "y", "--layout", "bidss"], "did you mean bids?"),
        (["train", "x", "-o", "y", "--gpus", "two"], "found 'two'; expected a whole number from 1 up, or all"),
        (["train", "x", "-o", "y", "--folds", "five"], "found 'five'; expected a whole number"),
        (["train", "x", "-o", "y", "--dims", "two"], "found 'two'; expected a whole number"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
