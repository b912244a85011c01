"""Files that get their names only once they were read back and found to be what was meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from napari_seg.errors import InputError, OutputError


@contextmanager
def unproven(path: Path, ending: str) -> Iterator[Path]:
    """A hidden name beside a file's own, for writing and reading back; the file gets its name if nothing is raised.

    Hidden, so that a run which is killed leaves nothing that is taken for a result.

    Args:
        path: the name that it will have; a file that had it is replaced.
        ending: of the hidden name; libraries choose the format by it.

    Raises:
        OutputError: `output.not_written`, the folder is missing, full or closed to us, or what was written can't be
            read; or whatever of this kind is raised within.
    """
    hidden = path.with_name(f".{uuid4().hex}{ending}")
    try:
        yield hidden
        os.replace(hidden, path)
    except (OSError, InputError) as error:
        reason = error.message if isinstance(error, InputError) else error.strerror or str(error)
        raise OutputError("output.not_written", f"{path} could not be written: {reason}") from error
    finally:
        hidden.unlink(missing_ok=True)
