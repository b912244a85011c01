"""`python -m napari_seg` is `napari-seg`."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line and end the process with its exit status."""
    from napari_seg.cli.main import main

    sys.exit(main())


if __name__ == "__main__":
    run()
