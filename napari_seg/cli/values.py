"""Values of command-line arguments: numbers and NAME=VALUE, refused with what is expected."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from contextlib import suppress


def whole_number(text: str) -> int:
    """Return the whole number in a text; it is at least 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 0 up")
    return int(text)


def integer(text: str) -> int:
    """Return the whole number in a text, whose limits others check."""
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number")
    return int(text)


def fold_number(text: str) -> int | str:
    """Return the whole number in a text, or "all"."""
    if text != "all" and not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number, or all")
    return text if text == "all" else int(text)


def count(text: str) -> int:
    """Return the whole number in a text; it is at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 1 up")
    return int(text)


def minutes(text: str) -> float:
    """Return the minutes in a text; they are above 0."""
    with suppress(ValueError):
        if 0 < (found := float(text)) < math.inf:
            return found
    raise argparse.ArgumentTypeError(f"found {text!r}; expected minutes above 0")


def tolerance(text: str) -> float:
    """Return the distance in a text; it is at least 0."""
    with suppress(ValueError):
        if 0 <= (found := float(text)) < math.inf:
            return found
    raise argparse.ArgumentTypeError(f"found {text!r}; expected a distance in mm, 0 or more")


def named_value(text: str) -> tuple[str, str]:
    """Return the name and the value of an argument NAME=VALUE."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected NAME=VALUE")
    return name, value


def named_label(text: str) -> tuple[str, str]:
    """Return the name and the label values of an argument NAME=VALUE, such as liver=1; 1=liver is refused."""
    name, value = named_value(text)
    if re.fullmatch(r"[\d,-]+", name) and not re.search(r"\d", value):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected NAME=VALUE: write {shlex.quote(f'{value}={name}')}")
    return name, value
