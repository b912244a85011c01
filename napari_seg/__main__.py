"""`python -m napari_seg` is `napari-seg`."""

from __future__ import annotations

import gc
import os
import sys


def run() -> None:
    """Run the command line and end the process with its exit status."""
    os.environ["PYTHONSAFEPATH"] = "1"  # libraries may start Python processes, too: see `worker.python_environment`
    from napari_seg.cli.main import main

    code = main()
    gc.freeze()  # nothing is left to collect, and looking for it at exit takes more than a second
    sys.exit(code)


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path[0] != root:  # `-m` puts the current folder there
        del sys.path[0]
    run()
