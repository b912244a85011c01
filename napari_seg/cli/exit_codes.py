"""Exit statuses of `napari-seg`, and the errors behind them."""

from __future__ import annotations

from enum import IntEnum

from napari_seg.errors import (
    BundleError,
    Cancelled,
    CohortError,
    DownloadError,
    EnvironmentFault,
    NapariSegError,
    OutputError,
    StoreError,
)


class ExitCode(IntEnum):
    """Meaning of the exit status."""

    DONE = 0
    USAGE = 1
    NOTHING_FOUND = 2
    SOME_FAILED = 3
    ALL_FAILED = 4
    ENVIRONMENT = 5
    CANCELLED = 130
    OUTPUT_CLOSED = 141


STOPPED = "stopped; finished results are kept, and the same command goes on"
"""What a command says that a person stopped."""

_OF_CODES = {
    **dict.fromkeys(
        ("input.missing", "input.none", "cohort.no_manifest", "evaluation.versus", "queue.empty"),
        ExitCode.NOTHING_FOUND,
    ),
    **dict.fromkeys(("dataset.missing", "dataset.no_cases", "dataset.unknown"), ExitCode.NOTHING_FOUND),
    **dict.fromkeys(("cohort.changed", "cohort.network", "cohort.rules", "cohort.rules_unreachable"), ExitCode.USAGE),
    **dict.fromkeys(("queue.model", "output.exists", "output.unknown_origin", "run.longer"), ExitCode.USAGE),
    **dict.fromkeys(("input.same_file", "output.format", "output.no_dicom", "output.no_folder"), ExitCode.USAGE),
    **dict.fromkeys(("dataset.patient", "weights.classes", "weights.missing"), ExitCode.USAGE),
    **dict.fromkeys(("bundle.unreadable", "bundle.weights", "run.in_use"), ExitCode.ENVIRONMENT),
}
"""Code of an error that ends a command -> exit status, where the type of the error does not say it."""


def exit_code(failed: int, total: int) -> ExitCode:
    """Return the exit status of a run with `failed` of `total` cases failed."""
    if failed == 0:
        return ExitCode.DONE
    return ExitCode.ALL_FAILED if failed == total else ExitCode.SOME_FAILED


def exit_code_of(error: NapariSegError) -> ExitCode:
    """Return the exit status of a command that an error ends."""
    if isinstance(error, Cancelled):
        return ExitCode.CANCELLED
    if error.code in _OF_CODES:
        return _OF_CODES[error.code]
    if isinstance(error, (CohortError, EnvironmentFault, OutputError, DownloadError)):
        return ExitCode.ENVIRONMENT
    if isinstance(error, (BundleError, StoreError)) or error.code.startswith("channels."):
        return ExitCode.USAGE
    return ExitCode.ALL_FAILED


def with_code(error: BaseException) -> NapariSegError | None:
    """Return an error with a code for one that ends a command; None for a fault of the program.

    Ctrl-C and errors of the system about a file get codes; an error without a file comes from standard output.
    """
    if isinstance(error, KeyboardInterrupt):
        return Cancelled(message=STOPPED)
    if isinstance(error, OSError) and error.filename is not None:
        return EnvironmentFault("environment.system", f"{error.filename}: {error.strerror}")
    return error if isinstance(error, NapariSegError) else None
