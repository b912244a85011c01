"""A bundle's own Python modules, imported under a private package name.

Many bundles name their package `scripts`, and all of them import it by that name. Here the modules of each bundle
become submodules of a package of their own, `_napari_seg_bundle_<number>`, so no bundle sees another one's modules and
none replaces an installed package for the rest of the program. Inside a bundle's modules every `import` statement looks
into the bundle first, through an `__import__` in the modules' builtins; this also holds for imports inside functions
that run long after the bundle was loaded. Programs that look modules up by their public names (MONAI's config parser)
run inside `importable`, which makes these names available for a while.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder, PathEntryFinder
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
    all_suffixes,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from napari_seg.bundles.read import shipped_root

_PREFIX = "_napari_seg_bundle_"
_numbers = itertools.count(1)
_importing = threading.RLock()


class BundleModules(MetaPathFinder):
    """The Python modules in a bundle's root.

    Args:
        root: the bundle's root.

    Attributes:
        names: public names of its modules and packages.
        package: private package that holds them.
    """

    def __init__(self, root: Path) -> None:
        self.names = {name for path in root.iterdir() if (name := _module_name(path))}
        self.names |= {folder.name for folder in _packages(root) if _has_modules(folder)}
        self.package = f"{_PREFIX}{next(_numbers)}"
        top = ModuleType(self.package)
        top.__path__ = [str(root)]
        sys.modules[self.package] = top
        sys.meta_path.insert(0, self)

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make the modules importable by their public names, for all threads, until the context ends."""
        public = _PublicNames(self)
        with _importing:
            hidden = self._public_modules()
            for name in hidden:
                del sys.modules[name]
            sys.meta_path.insert(0, public)
            try:
                yield
            finally:
                sys.meta_path.remove(public)
                for name in self._public_modules():
                    del sys.modules[name]
                sys.modules.update(hidden)

    def forget(self) -> None:
        """Remove the modules from Python's table of modules; afterwards none can be imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in list(sys.modules):  # a copy: other threads import meanwhile
            if name == self.package or name.startswith(f"{self.package}."):
                del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of the private package; the import system calls this."""
        if not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _BundleLoader(fullname, spec.loader.path, self)
        return spec

    def holds(self, name: str) -> bool:
        """Return whether a module name, such as "scripts.nets", lies in the bundle."""
        return name.partition(".")[0] in self.names

    def import_statement(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> ModuleType:
        """Run an import statement of one of the modules: `__import__`, with the bundle's own names first."""
        if level or not self.holds(name):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist)
        return module if fromlist else sys.modules[f"{self.package}.{name.partition('.')[0]}"]

    def _public_modules(self) -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.copy().items() if self.holds(name)}


class _SourceLoader(SourceFileLoader):
    """Loads a source file, never the compiled code in `__pycache__`."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source: a `.pyc` next to it can hold other code than the source that the user trusted."""
        return self.source_to_code(self.get_data(self.path), self.path)


class _BundleLoader(_SourceLoader):
    """Loads a source file whose import statements look into the bundle first."""

    def __init__(self, fullname: str, path: str, modules: BundleModules) -> None:
        super().__init__(fullname, path)
        self.modules = modules

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.modules.import_statement}
        super().exec_module(module)


class _PublicNames(MetaPathFinder, Loader):
    """Finds a bundle's modules by their public names; the modules are those of the private package."""

    def __init__(self, modules: BundleModules) -> None:
        self.modules = modules
        self.specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_known = self.modules.holds(fullname) and importlib.util.find_spec(f"{self.modules.package}.{fullname}")
        return ModuleSpec(fullname, self) if is_known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self.modules.package}.{spec.name}")
        self.specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # the import system has given the module the spec of its public name, which holds no longer than this context
        public = module.__spec__
        assert public is not None
        module.__spec__ = self.specs.pop(public.name)


def _module_name(path: Path) -> str:
    """Return the name by which a file, source or compiled, can be imported; "" if it can't."""
    name = next((path.name.removesuffix(suffix) for suffix in all_suffixes() if path.name.endswith(suffix)), "")
    return "" if "." in name or path.is_dir() else name


def _packages(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "." not in path.name and path.is_dir()]


def _has_modules(folder: Path) -> bool:
    """Return whether a folder or one of its subfolders has modules; deeper ones may hold thousands of data files."""
    return any(_module_name(path) for one in (folder, *_packages(folder)) for path in one.iterdir())


def import_from_source(root: Path) -> None:
    """Let this process import a bundle's modules by their public names, from source only, once its root is on the path.

    Args:
        root: the bundle's root.
    """
    loaders = (
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_SourceLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )
    finder, root = FileFinder.path_hook(*loaders), root.resolve()

    def find(path: str) -> PathEntryFinder:
        if not Path(path).resolve().is_relative_to(root):
            raise ImportError("not in the bundle")
        return finder(path)

    sys.path_hooks.insert(0, find)


@cache
def shipped_modules() -> BundleModules:
    """Return the modules of the bundle that comes with the package."""
    return BundleModules(shipped_root())


def with_public_names(text: str) -> str:
    """Return a message with the names of modules as the bundle writes them."""
    return re.sub(rf"{_PREFIX}\d+\.", "", text)
