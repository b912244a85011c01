"""What a weights file can do once a program loads it, found from its bytes; nothing of the file is loaded here.

A checkpoint of torch is a zip archive with a pickle, or, in the older format, several pickles in a row. A pickle names
the functions that it calls. If all of them only rebuild tensors, the file is data; any other function can do anything.
TorchScript and exported programs (`.pt2`) are zip archives that contain code.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Literal

WEIGHTS_ENDINGS = {".bin", ".ckpt", ".pt", ".pt2", ".pth", ".tar", ".ts"}
"""Endings of files that torch loads."""

_ZIP = b"PK\x03\x04"
"""First bytes of an archive; torch reads a file that begins otherwise as pickles, whatever it ends with."""

_MAX_PICKLE_BYTES = 2**26
"""Size limit of a file's pickles without their tensors; those of large networks have 1 MB."""

_MAX_OPERATIONS = 2_000_000
"""Limit for the operations of all pickles of a file; those of large networks, with an optimizer, have some 100,000."""

_MAX_ENTRIES = 100_000
_PICKLES = 5
"""Number of pickles in a row in torch's older format; the tensors follow them."""

_MAX_CALLS = 20

_PROGRAMS = {"archive_format", "serialized_exported_program.json", "constants.pkl"}
"""Files in the archives of TorchScript and of exported programs."""

_TENSORS = re.compile(
    r"[^/\\]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
"""Members of the archives that `torch.save` writes."""

_END = struct.Struct("<4s8xLLH")
_END_64 = struct.Struct("<4s36xQQ")
_LOCATOR_64 = struct.Struct("<4s4xQ4x")
"""Last records of an archive: signature, size and offset of the directory, length of a comment; the two of zip64."""

_HARMLESS = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|_codecs encode|(__builtin__|builtins) (set|complex|bytearray)|"
    r"torch (\w+Storage|\w+Tensor|Tensor|Size|device|dtype|[a-z]*\d+|bool|half|float|double|int|long)|"
    r"torch\._utils _rebuild_\w+|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter (Parameter|Buffer)|"
    r"torch\.storage (Untyped|Typed)Storage|torch\.serialization _get_layout|"
    r"numpy (dtype|ndarray)|numpy\._?core\.multiarray (scalar|_reconstruct)|numpy\.dtypes \w+DType"
)
"""Functions and types in pickles of tensors, numbers and arrays; they run no other code."""

_NAMELESS = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
"""Operations that call a function whose name stands elsewhere; checkpoints of torch do not use them."""


@dataclass(frozen=True)
class WeightsContent:
    """Content of a weights file.

    Attributes:
        kind: "data"; "program", code that torch runs; "pickle", calls of functions; "unknown", no format of torch.
        calls: names of functions that the pickle calls, other than those that rebuild tensors.
    """

    kind: Literal["data", "program", "pickle", "unknown"]
    calls: tuple[str, ...] = ()


def inspect_weights(path: Path) -> WeightsContent:
    """Return what a weights file holds.

    Args:
        path: a regular file.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            return _of_pickles(file)
    try:
        with zipfile.ZipFile(path) as archive:
            return _of_archive(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        return WeightsContent("unknown")


def _of_archive(archive: zipfile.ZipFile) -> WeightsContent:
    """Return what an archive holds; it is data only if torch's reader finds the same members in it as `zipfile`.

    Torch ignores case, and takes another one of two members of one name.
    """
    members = archive.infolist()
    if len(members) > _MAX_ENTRIES:
        return WeightsContent("unknown")
    names = [member.filename.casefold() for member in members]
    if any(name.rpartition("/")[2] in _PROGRAMS or "code" in name.split("/") for name in names):
        return WeightsContent("program")
    calls: list[str] = []
    size, left = 0, count(_MAX_OPERATIONS, -1)
    for member, name in zip(members, names, strict=True):
        if not name.endswith(".pkl"):
            continue
        with archive.open(member) as file:
            content = file.read(_MAX_PICKLE_BYTES - size + 1)
        size += len(content)
        if size > _MAX_PICKLE_BYTES:
            return WeightsContent("unknown")
        if not _collect_calls(io.BytesIO(content), calls, left):
            return WeightsContent("unknown", tuple(calls))
    if calls:
        return WeightsContent("pickle", tuple(calls))
    is_data = (
        len(set(names)) == len(names)
        and all(_TENSORS.fullmatch(member.filename) for member in members)
        and any(name.endswith("/data.pkl") for name in names)
        and _has_one_directory(archive)
    )
    return WeightsContent("data" if is_data else "unknown")


def _has_one_directory(archive: zipfile.ZipFile) -> bool:
    """Return whether the last records of an archive name the directory that `zipfile` found without them.

    An archive can hold a second directory, with other members, where they point to.
    """
    file = archive.fp
    assert file is not None
    position = file.seek(-_END.size, os.SEEK_END)
    signature, size, offset, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6" or comment:
        return False
    file.seek(position - _LOCATOR_64.size)
    signature, position_64 = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if signature == b"PK\6\7":
        position -= _LOCATOR_64.size + _END_64.size
        file.seek(position)
        signature, size, offset = _END_64.unpack(file.read(_END_64.size))
        if signature != b"PK\6\6" or position_64 != position:
            return False
    return offset == archive.start_dir and offset + size == position


def _of_pickles(file: IO[bytes]) -> WeightsContent:
    """Return what the pickles at the beginning of a file hold; tensors that follow are not read."""
    content = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    calls: list[str] = []
    left = count(_MAX_OPERATIONS, -1)
    for number in range(_PICKLES):
        if not _collect_calls(content, calls, left):
            # a file that begins with a pickle may continue with anything
            return WeightsContent("pickle", tuple(calls)) if calls or number else WeightsContent("unknown")
    return WeightsContent("pickle", tuple(calls))


def _collect_calls(content: IO[bytes], calls: list[str], left: Iterator[int]) -> bool:
    """Collect the names of the functions that the next pickle calls; return whether it could be read to its end.

    Args:
        content: the pickle, and what follows it.
        calls: names so far.
        left: number of operations that may still be read, one less each time.
    """
    try:
        for name in _calls(content, left):
            if name not in calls and len(calls) < _MAX_CALLS:
                calls.append(name)
    except Exception:  # pickletools raises many types on damaged content
        return False
    return True


def _calls(content: IO[bytes], left: Iterator[int]) -> Iterator[str]:
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(content):
        if next(left) <= 0:
            raise ValueError("too many operations")
        if isinstance(argument, str) and operation.name not in ("GLOBAL", "INST"):
            strings = [*strings[-1:], argument]
        if operation.name in ("GLOBAL", "INST"):
            name = str(argument)
        elif operation.name in _NAMELESS:
            name = " ".join(strings) if operation.name == "STACK_GLOBAL" else operation.name
            yield name.replace(" ", ".")  # not even a harmless name: it may not be the one that is called
            continue
        else:
            continue
        if not _HARMLESS.fullmatch(name):
            yield name.replace(" ", ".")
