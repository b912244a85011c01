"""Configs of a bundle as plain data; nothing of the bundle runs.

MONAI's parser is given the same data, so the config that was checked is the config that runs.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import described
from napari_seg.errors import BundleError

MAX_CONFIG_BYTES = 2**18
"""Size limit of a config; published ones have some 10 KB."""

MAX_DEPTH = 60
"""Limit for lists and dictionaries inside each other; published configs have some 8."""

MAX_ENTRIES = 200_000
"""Limit for the values of a config, each alias of YAML counted with all that it stands for."""

_MAX_ID_CHARACTERS = 2**25
"""Limit for the characters of all ids, such as "network_def::channels::0", of a config."""

_MAX_MERGES = 100
"""Limit for the dictionaries that one entry of YAML takes over with `<<`."""

_OTHER_NAMES = ("predict", "infer", "inference_*", "predict_*")
"""Names of a config that does not follow the specification, without suffix; the first that exists once is taken."""

_OTHER_RUNTIMES = ("trt", "onnx", "openvino", "multi_gpu", "mgpu", "amp")
"""Words in the names of configs that change another config for a machine."""


class TooLargeError(ValueError):
    """A config exceeds a limit of size, depth or number of values."""


def inference_config(root: Path) -> Path:
    """Return the config by which a bundle segments a scan.

    Raises:
        BundleError: `bundle.config`, there is none, or it is unclear which one it is.
    """
    folder = root / "configs"
    for name in ("inference", *_OTHER_NAMES):
        found = [path for suffix in ("yaml", "yml", "json") for path in sorted(folder.glob(f"{name}.{suffix}"))]
        found = [path for path in found if path.is_file() and not any(word in path.stem for word in _OTHER_RUNTIMES)]
        if len(found) > 1 and "*" in name:
            names = ", ".join(path.name for path in found[:5])
            text = f"{described(root)} has no configs/inference.yaml or .json, but several like it ({names}); "
            raise BundleError("bundle.config", text + "copy the one to use to that name")
        if found:
            return found[0]
    raise BundleError("bundle.config", f"{described(root)} has no configs/inference.yaml or .json")


def read_config(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the entries of a JSON or YAML file as plain data.

    A file is parsed once, and again after it changed. Do not change what this returns.

    Args:
        path: the file.
        max_bytes: size limit.

    Raises:
        TooLargeError: the file, its depth or what its aliases stand for is too large.
        ValueError: it holds no dictionary.
        Exception: the parser's, of a damaged file.
    """
    state = path.stat()
    return _parse(path, state.st_mtime_ns, state.st_size, max_bytes)


def merged_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config in which the entries that change others are applied, as MONAI does.

    `a::b` (or `a#b`) replaces one value inside the entry `a`; `+a` extends the entry `a`.

    Raises:
        ValueError: an entry changes one that does not exist.
    """
    result: dict[str, Any] = {}
    for key, value in copied(config).items():
        name = str(key).replace("#", "::")
        extends = name.startswith("+")
        *parents, last = name.removeprefix("+").split("::")
        place: Any = result
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else _item(place, part, name)
        if not isinstance(place, dict):
            old = _item(place, last, name)
            place[int(last)] = _extended(old, value, name) if extends else value
        elif extends and last in place:
            place[last] = _extended(place[last], value, name)
        else:
            place[last] = value
    check_size(result)
    return result


def copied(value: Any) -> Any:
    """Return a copy of plain data from `read_config`, in which no part is shared."""
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list) else value


def check_size(value: Any) -> int:
    """Return the number of values in plain data, each shared part counted as often as it occurs.

    Raises:
        TooLargeError: they are more than `MAX_ENTRIES`, nest deeper than `MAX_DEPTH`, or have too long ids.
    """
    count = characters = 0
    waiting = [(value, 0, 0)]
    while waiting:
        one, depth, length = waiting.pop()
        count += 1
        characters += length
        if characters > _MAX_ID_CHARACTERS:
            raise TooLargeError(f"the ids of its values hold more than {_MAX_ID_CHARACTERS} characters")
        if isinstance(one, dict | list | tuple | set):
            if depth >= MAX_DEPTH:
                raise TooLargeError(f"it nests more than {MAX_DEPTH} levels deep")
            if count + len(waiting) + len(one) > MAX_ENTRIES:
                raise TooLargeError(f"it holds more than {MAX_ENTRIES} values")
            items = one.items() if isinstance(one, dict) else (("", inner) for inner in one)
            waiting += [(inner, depth + 1, length + 2 + len(str(key))) for key, inner in items]
    return count


def _item(place: Any, key: str, name: str) -> Any:
    try:
        return place[int(key)]
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"the entry {name!r} changes one that does not exist") from None


def _extended(old: Any, new: Any, name: str) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | new
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    raise ValueError(f"the entry {name!r} extends neither a list by a list nor a dictionary by a dictionary")


@lru_cache(maxsize=16)
def _parse(path: Path, changed_ns: int, size: int, max_bytes: int) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooLargeError(f"it is larger than {max_bytes // 1024} KiB")
    try:
        config = json.loads(content) if path.suffix == ".json" else _parse_yaml(content)
    except RecursionError:
        raise TooLargeError(f"it nests more than {MAX_DEPTH} levels deep") from None
    if not isinstance(config, dict):
        raise ValueError(f"it holds a {type(config).__name__}, not a dictionary")
    check_size(config)
    return config


def _parse_yaml(content: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # libyaml's loader is quicker, but deep nesting crashes it
        def fetch_flow_collection_start(self, TokenClass: Any) -> None:
            if self.flow_level >= MAX_DEPTH:  # of "[" and "{"; the time for these grows with the square of the depth
                raise TooLargeError(f"it nests more than {MAX_DEPTH} levels deep")
            super().fetch_flow_collection_start(TokenClass)

        def flatten_mapping(self, node: Any) -> None:
            merges = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
            if sum(len(value.value) for value in merges if isinstance(value, yaml.SequenceNode)) > _MAX_MERGES:
                raise TooLargeError(f"an entry merges more than {_MAX_MERGES} dictionaries")
            super().flatten_mapping(node)
            if len(node.value) > MAX_ENTRIES // _MAX_MERGES:
                raise TooLargeError(f"an entry merges more than {MAX_ENTRIES // _MAX_MERGES} values")

    return yaml.load(content, Loader)  # a SafeLoader: no object but plain data
