"""Cache preprocessed cases on disk, so that a restart of a training takes seconds."""

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

from segnets.files import load_verified, replacing


class CachedCases(torch.utils.data.Dataset):
    """Provide the cases of a data list after deterministic transforms, computed at first use and then read from disk.

    The name of a case's file is a fingerprint of the transforms (classes and settings), the versions of MONAI and
    torch, the case's entry in the data list, and the path, size and modification time of each of its input files. So a
    case is computed again if anything changes, and the folder may be deleted at any time. Processes may share the
    folder. MONAI's `PersistentDataset` accepts a truncated file, writes to the system's temporary folder, and
    identifies transforms only by their names.

    A case read from disk equals the output of the transforms, but its `MetaTensor`s keep only the affine: cases can be
    compared, drawn and measured in mm, but the transforms can't be inverted.

    Args:
        data: cases, each a mapping with paths as `str`.
        transform: a `Compose` or a sequence of transforms, none of them random.
        cache_dir: folder of the cache, created if missing; None disables the cache.
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
                Path(cache_dir) / f"{fingerprint([transforms, case, [_size_and_mtime(p) for p in _files_of(case)]])}.pt"
                for case in self.data
            ]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, case: int) -> dict[str, Any]:
        if self.paths is None:
            return dict(self.transform(dict(self.data[case])))
        path = self.paths[case]
        try:
            saved = load_verified(path)
        except Exception:  # absent or damaged; torch raises many types of errors
            item = self.transform(dict(self.data[case]))
            saved = {key: _storable(value) for key, value in item.items()}
            with replacing(path) as part:
                torch.save(saved, part)
        return {key: MetaTensor(**v) if isinstance(v, dict) and "affine" in v else v for key, v in saved.items()}


def fingerprint(value: Any) -> str:
    """Return a hash of a value's content in 32 hexadecimal digits, equal in all processes.

    Objects are hashed by their class and attributes; functions by their name, code and closure; methods also by their
    object; arrays and tensors by their content. States of random generators and attributes in `__slots__` are left out.
    """
    return hashlib.sha256(json.dumps(_as_json_value(value, ())).encode()).hexdigest()[:32]


def _as_json_value(value: Any, ancestor_ids: tuple[int, ...]) -> Any:
    """Convert a value to JSON types; `ancestor_ids` are ids of the enclosing objects, to stop at reference cycles."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in ancestor_ids:
        return "itself"
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Path | torch.dtype | torch.device | bytes | complex | range | slice | type(...)):
        return str(value)

    parts = [_as_json_value(part, (*ancestor_ids, id(value))) for part in _components(value)]
    if isinstance(value, Mapping | set | frozenset):
        parts.sort(key=json.dumps)
    return parts


def _components(value: Any) -> list[Any]:
    """Return the components of a composite value."""
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
        closure = [_cell_content(cell) for cell in value.__closure__ or ()]
        owner = getattr(value, "__self__", None)
        return [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, closure, owner]
    if isinstance(value, ModuleType):
        return [value.__name__]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__qualname__)]
    return [type(value).__module__, type(value).__qualname__, vars(value)]


def _cell_content(cell: CellType) -> Any:
    """Return the content of a closure cell; `...` if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _files_of(value: Any) -> Iterator[Path]:
    """Yield the paths in an entry of the data list that are files."""
    if isinstance(value, str | Path):
        if Path(value).is_file():
            yield Path(value)
    elif isinstance(value, Mapping | list | tuple):
        for v in value.values() if isinstance(value, Mapping) else value:
            yield from _files_of(v)


def _size_and_mtime(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _storable(value: Any) -> Any:
    """Convert a value to one that `torch.load` accepts with `weights_only=True`."""
    if isinstance(value, MetaTensor):
        return {"x": value.as_tensor().contiguous(), "affine": value.affine}
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic) else value
