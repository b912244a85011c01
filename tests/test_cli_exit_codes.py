"""Exit statuses: what the code or the type of an error that ends a command stands for."""

from __future__ import annotations

import pytest

from napari_seg.cli.exit_codes import exit_code_of, with_code
from napari_seg.errors import BundleError, CohortError, InputError, NapariSegError, OutputError, TrainingError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("dataset.missing", ""), 2),
        (TrainingError("dataset.unknown", ""), 2),
        (TrainingError("dataset.no_cases", ""), 2),
        (TrainingError("data.faults", ""), 4),
        (TrainingError("run.longer", ""), 1),
        (TrainingError("run.in_use", ""), 5),
        (TrainingError("weights.missing", ""), 1),
        (OutputError("output.exists", ""), 1),
        (OutputError("output.format", ""), 1),
        (OutputError("output.disk_full", ""), 5),
        (BundleError("bundle.setting", ""), 1),
        (CohortError("cohort.locked", ""), 5),
        (CohortError("cohort.changed", ""), 1),
        (InputError("channels.missing", ""), 1),
        (InputError("file.not_nifti", ""), 4),
    ],
)
def test_an_error_that_ends_a_command_has_its_exit_status(error: NapariSegError, status: int) -> None:
    assert exit_code_of(error) == status


def test_ctrl_c_and_errors_of_the_system_get_codes() -> None:
    stopped = with_code(KeyboardInterrupt())
    assert stopped is not None
    assert (stopped.code, exit_code_of(stopped)) == ("run.cancelled", 130)
    gone = with_code(OSError(5, "Input/output error", "index.json"))
    assert gone is not None
    assert (str(gone), exit_code_of(gone)) == ("environment.system: index.json: Input/output error", 5)
    assert with_code(OSError(28, "No space left on device")) is None  # of standard output
    assert with_code(RuntimeError()) is None
