"""The cause of a library's error, in one line for a user."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from napari_seg.bundles.config.resolve import ResolveError
from napari_seg.bundles.modules import with_public_names
from napari_seg.errors import EnvironmentFault, one_line

_PACKAGES = {
    "cv2": "opencv-python-headless",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Name in an import statement -> name for pip, where they differ."""

_PASSING = {
    *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOTCONN, errno.ESTALE),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETRESET, errno.ENETUNREACH, errno.ETIMEDOUT),
}
"""Errors of a drive, mostly of a network, that may be gone at the next try."""

_PASSING_ON_WINDOWS = {53, 54, 59, 64, 121, 1231, 1232, 1450}

_MAX_CAUSE = 400
"""Length limit of a cause in a message, in characters."""


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, the innermost last."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def is_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that memory is short."""
    import torch

    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError)
        or "DefaultCPUAllocator" in str(one)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        for one in _chain(error)
    )


def passing_fault(error: BaseException, name: str) -> EnvironmentFault | None:
    """Return the fault of a machine that may be gone at the next try, and is no fault of a bundle; None for others.

    Args:
        error: raised while a bundle was loaded.
        name: name of the bundle, for the message.
    """
    if is_of_memory(error):
        text = f"there is too little memory to load {name!r}; close other programs, or use fewer workers"
        return EnvironmentFault("environment.memory", text)
    for one in _chain(error):
        if isinstance(one, OSError) and (
            one.errno in _PASSING or getattr(one, "winerror", None) in _PASSING_ON_WINDOWS
        ):
            text = f"the files of {name!r} could not be read for a moment ({one.strerror})"
            return EnvironmentFault("environment.drive", f"{text}; check the connection of their drive, and run again")
    return None


def cause_of(error: BaseException, root: Path) -> str:
    """Return the cause of a library's error on one line: a missing package, or the innermost error.

    Args:
        error: from the library; MONAI wraps the errors of a config in its own.
        root: the bundle's root; its modules are no missing packages.
    """
    chain = _chain(error)
    for one in reversed(chain):
        # MONAI imports some packages late and quotes Python's message
        message = with_public_names(str(one))
        named = re.search(r"No module named '([\w.]+)'|required package `([\w.-]+)`", message)
        package = ((named.group(1) or named.group(2)) if named else "").partition(".")[0]
        if package and not any((folder / package).exists() for folder in (root, root / "scripts")):
            name = _PACKAGES.get(package, package)
            return one_line(f"the package {package} is not installed (pip install {name})", _MAX_CAUSE)
    if isinstance(error, ResolveError):  # it names the key
        return one_line(error, _MAX_CAUSE)
    text = with_public_names(str(chain[-1]) or str(error))
    return one_line(f"{type(chain[-1]).__name__}: {text}" if text else type(chain[-1]).__name__, _MAX_CAUSE)
