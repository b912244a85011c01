"""`--set` of commands that train: values of the configs."""

from __future__ import annotations

import argparse
from typing import Any

from napari_seg.cli.values import named_value


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add `--set` to a command."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        type=named_value,
        metavar="ID=VALUE",
        help="set any value of the configs",
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return config id -> value of `--set`.

    Raises:
        BundleError: `bundle.setting`, an id is given twice, or a value is no YAML.
    """
    from napari_seg.training.choices import distinct

    return {name: parsed(name, text) for name, text in distinct(arguments.set, "--set").items()}


def parsed(name: str, text: str) -> Any:
    """Parse a value of an option.

    Raises:
        BundleError: `bundle.setting`, it is no YAML.
    """
    import yaml

    from napari_seg.errors import BundleError

    try:
        return _value(text)
    except yaml.YAMLError as error:
        expected = "expected a number, a word, or a list such as [4, 8]"
        raise BundleError("bundle.setting", f"found {text!r} for {name}; {expected}") from error


def _value(text: str) -> Any:
    """Parse a value as YAML ([4, 8] is a list, 120-135 and $@x are text), but accept numbers such as 1e-3 and 010."""
    import yaml

    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return yaml.safe_load(text)
