"""Configs of a bundle as plain data; nothing of the bundle runs.

MONAI's parser is given the same data, so the config that was checked is the config that runs.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from napari_seg.errors import BundleError

MAX_CONFIG_BYTES = 2**18
"""Size limit of a config; published ones have some 10 KB."""


def inference_config(root: Path) -> Path:
    """Return the config by which a bundle segments a scan.

    Raises:
        BundleError: `bundle.config`, there is none.
    """
    configs = [root / "configs" / f"inference.{suffix}" for suffix in ("yaml", "yml", "json")]
    for path in configs:
        if path.is_file():
            return path
    raise BundleError("bundle.config", f"bundle {root.name!r} has no configs/inference.yaml or .json")


def read_config(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the entries of a JSON or YAML file as plain data.

    A file is parsed once, and again after it changed. Do not change what this returns.

    Args:
        path: the file.
        max_bytes: size limit.

    Raises:
        ValueError: the file is too large, or holds no dictionary.
        Exception: the parser's, of a damaged file.
    """
    state = path.stat()
    return _parse(path, state.st_mtime_ns, state.st_size, max_bytes)


@lru_cache(maxsize=16)
def _parse(path: Path, changed_ns: int, size: int, max_bytes: int) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes // 1024} KiB")
    if path.suffix == ".json":
        config = json.loads(content)
    else:
        import yaml

        config = yaml.safe_load(content)  # libyaml's loader is quicker, but deep nesting crashes it
    if not isinstance(config, dict):
        raise ValueError(f"it holds a {type(config).__name__}, not a dictionary")
    return config
