"""`python -m napari_seg` is `napari-seg`."""

from __future__ import annotations

import gc
import sys


def run() -> None:
    """Run the command line and end the process with its exit status."""
    from napari_seg.cli.main import main

    code = main()
    gc.freeze()  # nothing is left to collect, and looking for it at exit takes more than a second
    sys.exit(code)


if __name__ == "__main__":
    run()
