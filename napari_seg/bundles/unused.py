"""Files of a bundle that can't change its labels: documents, configs and modules that no segmentation reads.

They are found by reading the inference config and the modules that it names; nothing of the bundle runs. A file is
unused only if that is sure. All files count where MONAI runs the config as it is written, and where a module that is
used may import others by names that it computes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from napari_seg.bundles.config.read import inference_config
from napari_seg.bundles.config.resolve import Resolver, import_of, normal_id
from napari_seg.bundles.config.sections import find_sections
from napari_seg.bundles.content import files_of
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.ways import resolver_of, way_of
from napari_seg.errors import BundleError

_COMPUTED = re.compile(
    r"\b(__import__|importlib|locate|optional_import|pickle|pkgutil|runpy|Config(Parser|Workflow)|sys\.(path|modules))\b"
    r"|(?<![\w.])(eval|exec)\s*\("
)
"""Ways to import a module without a statement that names it."""

_DOCUMENT = re.compile(r"docs/.+|configs/.+\.(json|yaml|yml|conf)|(LICENSE|README)[^/]*|[^/]+\.md", re.IGNORECASE)
_COMMENT = re.compile(r"(?m)(?:^|\s)#.*$")
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")


def unused_files(bundle: Bundle) -> frozenset[str] | None:
    """Return the names of the files of a MONAI bundle that can't change its labels; None if that is not sure.

    Raises:
        BundleError: as for `files_of`.
    """
    root, names = bundle.root, [file.name for file in files_of(bundle.root)]
    modules = [name for name in names if name.endswith(".py")]
    try:
        resolver = resolver_of(bundle)
        if way_of(bundle, resolver).kind != "engine":
            return None
        used = {inference_config(root).relative_to(root).as_posix(), METADATA.as_posix()}
        used |= {path.relative_to(resolver.root).as_posix() for path in resolver.files}
        used |= _imported(root, modules, _config_texts(resolver))
        documents = [name for name in names if _DOCUMENT.fullmatch(name)]
        while named := {name for name in documents if name not in used and _is_named(root, name, used)}:
            used |= named
    except (BundleError, OSError, RecursionError, SyntaxError, TypeError, ValueError):
        return None
    return frozenset({*modules, *documents} - used)


def _config_texts(resolver: Resolver) -> list[str]:
    """Return the texts of a config that the network, its transforms or its inferer need, and its imports."""
    sections = find_sections(resolver)
    waiting = [id for id in (sections.network, sections.preprocessing, sections.inferer) if id]
    texts = [text for text in _strings(resolver.entries) if _is_import(text)]
    seen: set[str] = set()
    while waiting:
        if (id := normal_id(waiting.pop())) in seen or id not in resolver:
            continue
        seen.add(id)
        texts += (found := list(_strings(resolver.entry(id))))
        waiting += [reference for text in found for reference in _REFERENCE.findall(text)]
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(one)


def _is_import(text: str) -> bool:
    return text.startswith("$") and import_of(text) is not None


def _imported(root: Path, modules: Collection[str], texts: Collection[str]) -> set[str]:
    """Return the files of the modules that texts of a config name, and of all that these import.

    Raises:
        ValueError: one of them may import others by names that it computes.
        SyntaxError: one of them is no Python.
    """
    waiting = [name for text in texts for name in _NAME.findall(text)]
    for text in texts:
        waiting += _names_in(text[1:].strip() if _is_import(text) else "", "")
        _check_sure(text)
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        for file in modules:
            module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if file not in used and f"{name}.".startswith(f"{module}."):  # a package runs before what is in it
                used.add(file)
                package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
                waiting += _names_in(_source(root, file), package)
    return used


def _names_in(source: str, package: str) -> Iterator[str]:
    """Yield the names of all that code imports anywhere, and texts in it that may name a module.

    Args:
        source: the code.
        package: package of the module.
    """
    _check_sure(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            if any(alias.name == "*" for alias in node.names):
                raise ValueError("it imports what `__all__` of a package lists, its modules too")
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value


def _check_sure(text: str) -> None:
    if _COMPUTED.search(text):
        raise ValueError("it may import modules by names that it computes")


def _is_named(root: Path, document: str, used: Collection[str]) -> bool:
    """Return whether a file that is used names a document outside of its comments."""
    return any(PurePosixPath(document).name in _COMMENT.sub("", _source(root, name)) for name in used)


def _source(root: Path, name: str) -> str:
    return (root / name).read_bytes().decode("utf-8", errors="replace")
