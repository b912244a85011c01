"""Access to `segnets`, the networks and data handling inside the shipped bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from napari_seg.bundles.modules import shipped_modules
from napari_seg.errors import OutputError, TrainingError, listed

_OPTIONS = {
    "channels": "--channels",
    "fold": "--fold",
    "folds": "--folds",
    "images_dir": "--images",
    "labels": "--labels",
    "labels_dir": "--labels-dir",
    "layout": "--layout",
    "max_epochs": "--max-epochs",
    "max_minutes": "--max-minutes",
    "output_dir": "-o",
}
"""Option of MONAI's command, without the dashes -> option of `napari-seg train`."""

_SETTINGS = (
    "accumulation_steps",
    "allow_empty",
    "amp",
    "learning_rate",
    "max_gradient_norm",
    "patch_size",
    "patient",
    "windows#device",
    "windows#roi_size",
    "windows#sw_batch_size",
)
"""Other options of MONAI's command that messages name; `napari-seg train` takes them after `--set`."""

_NAMES = "|".join((*_OPTIONS, *_SETTINGS))
_OPTION = re.compile(rf"(?<![\w/\\.-])--({_NAMES})(?: ([A-Z]+\b|true\b|cpu\b|[\d.]*\d|'[^']*'))?(?![\w=/\\#-])")


@contextmanager
def with_segnets() -> Iterator[None]:
    """Make the shipped bundle's `segnets` importable within the block, and convert its errors to this package's."""
    with shipped_modules().importable():
        from segnets.errors import TrainingError as SegnetsError

        try:
            yield
        except SegnetsError as error:
            raise converted(error.code, error.message) from error


def converted(code: str, message: str) -> TrainingError | OutputError:
    """Return the error for one of `segnets`, which names options of MONAI's command."""
    kind = OutputError if code.startswith("output.") else TrainingError
    return kind(code, in_options(message))


def in_options(message: str) -> str:
    """Return a message of `segnets` with the options of `napari-seg train`: `--set patient=...` for `--patient ...`.

    Paths, and words that name options of `napari-seg train` already, are kept.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name in _OPTIONS:
            return _OPTIONS[name] + (f" {value}" if value else "")
        return f"--set {name}={value or '...'}"

    return _OPTION.sub(option, message)


@contextmanager
def naming(sources: Sequence[Path], folder: Path) -> Iterator[None]:
    """Name the data sets of the user, and not the folder of their converted files, in errors within the block."""
    try:
        yield
    except Exception as error:
        code, message = getattr(error, "code", ""), getattr(error, "message", "")
        if str(folder) not in message:
            raise
        text = message.replace(str(folder), listed([str(source) for source in sources]))
        raise type(error)(code, text) from error
