"""Read whole DICOM objects: segmentations and RT structure sets."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.errors import InputError
from napari_seg.formats.dicom.headers import UNKNOWN, file_label, plain_value, quiet_pydicom, transfer_syntax_of
from napari_seg.formats.dicom.private_words import label_of, private_keywords

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_object(path: Path, *, stop_before_pixels: bool = False) -> Dataset:
    """Read a whole DICOM object, with or without the preamble of a file.

    Args:
        path: the file.
        stop_before_pixels: leave the pixels out.

    Raises:
        InputError: `file.unreadable`, `file.empty`, `file.not_dicom`, `file.bad_header`.
    """
    import pydicom

    try:
        with quiet_pydicom():
            if path.stat().st_size == 0:
                raise InputError("file.empty", f"{file_label(path)} has 0 bytes; copy or export it again")
            dataset = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=True)
            if not dataset.get("SOPClassUID"):
                raise InputError("file.not_dicom", f"{file_label(path)} {UNKNOWN}")
            dataset.file_meta.TransferSyntaxUID = transfer_syntax_of(dataset)
            return dataset
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            "file.unreadable", f"{file_label(path)} can't be read: {error.strerror or 'cut short'}"
        ) from None
    except Exception as error:  # not chained: it may quote private values
        kind = type(error).__name__
        raise InputError(
            "file.bad_header", f"{file_label(path)} has a DICOM header that can't be read ({kind})"
        ) from None


def object_label(dataset: Dataset, path: Path) -> str:
    """Return the name of a file that has been read for messages, without private words."""
    tags: dict[str, Any] = {}
    with quiet_pydicom():
        for keyword in ("InstanceNumber", *private_keywords()):
            with suppress(Exception):  # a malformed value
                if keyword in dataset:
                    tags[keyword] = plain_value(dataset[keyword].value)
    return label_of(path, tags)
