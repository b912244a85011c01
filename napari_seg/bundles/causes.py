"""The cause of a library's error, in one line for a user."""

from __future__ import annotations

import re
from pathlib import Path

from napari_seg.bundles.config.resolve import ResolveError
from napari_seg.bundles.modules import with_public_names
from napari_seg.errors import one_line

_PACKAGES = {
    "cv2": "opencv-python-headless",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Name in an import statement -> name for pip, where they differ."""

_MAX_CAUSE = 400
"""Length limit of a cause in a message, in characters."""


def cause_of(error: BaseException, root: Path) -> str:
    """Return the cause of a library's error on one line: a missing package, or the innermost error.

    Args:
        error: from the library; MONAI wraps the errors of a config in its own.
        root: the bundle's root; its modules are no missing packages.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
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
