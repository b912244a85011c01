"""Errors of `segnets` in the words of `napari-seg train`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from napari_seg.bundles.read import shipped_root
from napari_seg.errors import TrainingError
from napari_seg.training.segnets_modules import _OPTIONS, _SETTINGS, in_options, naming


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("give --patient PATTERN, which", "give --set patient=PATTERN, which"),
        ("such as --patient '^[^_]+' or", "such as --set patient='^[^_]+' or"),
        ("give --images_dir and --labels_dir", "give --images and --labels-dir"),
        ("with --labels, such as liver=1", "with --labels, such as liver=1"),
        ("give --allow_empty true", "give --set allow_empty=true"),
        ("raise --max_epochs, or give another --output_dir", "raise --max-epochs, or give another -o"),
        ("give --windows#sw_batch_size 1 (now 4)", "give --set windows#sw_batch_size=1 (now 4)"),
        ("lower --patch_size (now [8])", "lower --set patch_size=... (now [8])"),
        ("2 faults in /data/set--patient (8 cases)", "2 faults in /data/set--patient (8 cases)"),
        ("/data/--patient/scan--amp.nii, /data/--amp", "/data/--patient/scan--amp.nii, /data/--amp"),
        (r"C:\--amp, --amp\x", r"C:\--amp, --amp\x"),
        ("napari-seg: --option soft", "napari-seg: --option soft"),
        ("give --trust, or --final 3", "give --trust, or --final 3"),
    ],
)
def test_options_of_monai_become_those_of_train(message: str, expected: str) -> None:
    assert in_options(message) == expected
    assert in_options(expected) == expected


def test_every_option_in_segnets_is_known() -> None:
    """An option of MONAI's command is rewritten; the others are those of `napari-seg train`, or of another command."""
    words: set[str] = set()
    for path in (shipped_root() / "segnets").rglob("*.py"):
        words |= set(re.findall(r"(?<![\w-])--([a-z][\w#-]*)", path.read_text("utf-8")))
    assert {"labels", "patient", "patch_size"} < words
    assert words - set(_OPTIONS) - set(_SETTINGS) == {"option", "output", "previous_dir"}
    assert set(_SETTINGS) <= words
    configs = "\n".join(path.read_text("utf-8") for path in (shipped_root() / "configs").glob("*.yaml"))
    assert set(re.findall(r"^ *(\w+):", configs, re.MULTILINE)) >= {name.split("#")[-1] for name in _SETTINGS}


def test_messages_name_the_data_set_of_the_user(tmp_path: Path) -> None:
    error = TrainingError("split.too_few", f"found 1 case of 1 patient in {tmp_path / 'files'}; add others")
    with pytest.raises(TrainingError, match="in mine; add others"), naming([Path("mine")], tmp_path / "files"):
        raise error
    with pytest.raises(KeyError), naming([Path("mine")], tmp_path):
        raise KeyError
