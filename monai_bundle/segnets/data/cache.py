"""Preprocessed cases on disk: the second start of a training costs seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from segnets.files import load_whole, replacing


class CachedCases(torch.utils.data.Dataset):
    """The cases of a data list after deterministic transforms, each computed at its first use and then read from disk.

    The name of a case's file holds a fingerprint of the transforms (their classes and settings), of the versions of
    MONAI and torch, of the case's entry in the data list and of the path, size and time of change of every file it
    names: whatever changes is computed anew, and the folder may be deleted at any time. Several processes may share it.
    MONAI's `PersistentDataset` has the same aim, but takes a truncated file for a whole one, writes to the system's
    folder for temporary files and tells transforms apart by their names alone.

    A case read from disk is what the transforms gave it, with `MetaTensor`s that know their affine and nothing else:
    they can be compared, drawn and measured in mm, but the transforms can't be inverted.

    Args:
        data: cases, each a mapping with paths as `str`.
        transform: a `Compose` or a sequence of transforms, without random ones.
        cache_dir: made at need; nothing is kept without it.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose | Sequence[Callable],
        cache_dir: str | Path | None = None,
    ) -> None:
        self.data = list(data)
        self.transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.paths: list[Path] | None = None
        if cache_dir is not None:
            versions = [monai.__version__, torch.__version__]
            transforms = fingerprint([self.transform.flatten().transforms, *versions])
            self.paths = [
                Path(cache_dir) / f"{fingerprint([transforms, case, [_stamp(p) for p in _files(case)]])}.pt"
                for case in self.data
            ]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, case: int) -> dict[str, Any]:
        if self.paths is None:
            return dict(self.transform(dict(self.data[case])))
        path = self.paths[case]
        try:
            saved = load_whole(path)
        except Exception:  # not there yet, or damaged: torch raises anything then
            item = self.transform(dict(self.data[case]))
            saved = {key: _plain(value) for key, value in item.items()}
            with replacing(path) as part:
                torch.save(saved, part)
        return {key: MetaTensor(**v) if isinstance(v, dict) and "affine" in v else v for key, v in saved.items()}


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits that stand for a value's content, the same in every process.

    Objects count by their class and attributes, functions by their name, code and what they enclose, methods by their
    object too, arrays and tensors by their content. States of random generators don't count.
    """
    return hashlib.sha256(json.dumps(_described(value, ())).encode()).hexdigest()[:32]


def _described(value: Any, within: tuple[int, ...]) -> Any:
    """What `json` can write; `within` are the ids of the values that hold this one, so that circles end."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Path | torch.dtype | torch.device | bytes | complex | range | slice | type(...)):
        return str(value)

    parts = [_described(part, (*within, id(value))) for part in _parts(value)]
    if isinstance(value, Mapping | set | frozenset):
        parts.sort(key=json.dumps)
    return parts


def _parts(value: Any) -> list[Any]:
    """What makes up a value that is no plain one."""
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, FunctionType | MethodType):
        enclosed = [_enclosed(cell) for cell in value.__closure__ or ()]
        owner = getattr(value, "__self__", None)
        return [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, enclosed, owner]
    if isinstance(value, ModuleType):
        return [value.__name__]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__qualname__)]
    return [type(value).__module__, type(value).__qualname__, vars(value)]


def _enclosed(cell: CellType) -> Any:
    """What a function holds of the one it was made in; `...` for a name that has no value there, or not yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _files(value: Any) -> Iterator[Path]:
    """Every file that a case names."""
    if isinstance(value, str | Path):
        if Path(value).is_file():
            yield Path(value)
    elif isinstance(value, Mapping | list | tuple):
        for v in value.values() if isinstance(value, Mapping) else value:
            yield from _files(v)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _plain(value: Any) -> Any:
    """Something that `torch.load` takes without running code."""
    if isinstance(value, MetaTensor):
        return {"x": value.as_tensor().contiguous(), "affine": value.affine}
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic) else value
