"""Train on several GPUs of this machine: run a module in one process for each, which form one training.

    python -m napari_seg.training.distributed 4 monai.bundle run training --config_file ...

The processes get the environment that torchrun gives them. torchrun itself is not used, because it kills a process that
has not ended 30 seconds after an interrupt, in a validation or while it saves, and because it reports the exit status
of a failed process but not its error. Only the first process (rank 0) shows its output; that of another one is shown
if it fails first.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal

from napari_seg.errors import EnvironmentFault, counted
from napari_seg.training.process import SAVED, SIGNALS, STOP, ask_to_stop, module_command
from napari_seg.worker import core_count

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0
"""Time for the others to report errors of their own after one has failed; then they are killed, because they may wait
for the failed one in a call that no signal interrupts."""
_SHOWN_BYTES = 50_000


def count_gpus(requested: int | Literal["all"]) -> int:
    """Return the number of GPUs to train on.

    Raises:
        EnvironmentFault: `environment.gpus`, this machine has fewer, or none.
    """
    import torch

    found = torch.cuda.device_count()
    count = found if requested == "all" else requested
    if not 0 < count <= found:
        raise EnvironmentFault(
            "environment.gpus",
            f"found {counted(found, 'GPU')} that torch can use; expected {requested if count else 'at least one'} "
            "(--gpus); give a smaller number, or leave --gpus out to train on one GPU or the processor",
        )
    return count


def run_processes(count: int, *words: str) -> int:
    """Run a module in several processes to their end; return the status of the first that failed, else of them all.

    Signals are forwarded to all processes. If one fails, the others are ended, and its number and output are written
    to stderr for `process.run`. A process that a signal killed has the status that a shell reports, unless that is one
    of a training that has saved (`process.SAVED`): then it is 1.

    Args:
        count: number of processes.
        words: name of the module, and the arguments of its command line.
    """
    with ExitStack() as files:
        outputs = [None, *(files.enter_context(TemporaryFile()) for _ in range(count - 1))]
        environment = _environment(count)
        processes = [
            subprocess.Popen(
                module_command(sys.executable, *words),
                stdout=output,
                stderr=output,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, output in enumerate(outputs)
        ]
        is_interrupted = False

        def forward(number: int, frame: object) -> None:
            nonlocal is_interrupted
            is_interrupted = True
            if sys.platform != "win32":
                for process in processes:
                    process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)
            elif number == signal.SIGTERM:  # `run_module` raised it in this process; Ctrl-Break reaches the whole group
                run_folder = Path(words[words.index("--output_dir") + 1])
                ask_to_stop(run_folder)
                files.callback((run_folder / STOP).unlink, missing_ok=True)  # if no process has seen it

        signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous_handlers = {number: signal.signal(number, forward) for number in signals}
        try:
            failed, statuses = _wait(processes)
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
        if not failed:
            return max(statuses)
        # a process that dies takes the connection away from the others, which may fail in the same moment
        first = min(failed, key=lambda rank: (statuses[rank] > 0, not _has_code(outputs[rank])))
        status = 128 - statuses[first] if statuses[first] < 0 else statuses[first]
        if not is_interrupted:
            _report(f"process {first + 1} of {count} failed first, with status {status}", outputs[first])
        return 1 if status in SAVED else status


def _environment(count: int) -> dict[str, str]:
    """Return the environment that all processes have in common."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # torch warns that it looks for parameters without a gradient, which multi_gpu_train.yaml requests
    chosen = {"OMP_NUM_THREADS": str(max(1, core_count() // count)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    processes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return chosen | dict(os.environ) | processes | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _wait(processes: list[subprocess.Popen[bytes]]) -> tuple[list[int], list[int]]:
    """Return the ranks of the processes that were the first to be found failed, and the statuses of all."""
    first: list[int] = []
    deadline = inf
    while True:
        statuses = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(statuses) if status not in (None, *SAVED)]
        if failed and not first:
            first = failed
            deadline = time.monotonic() + _GRACE_SECONDS
        if None not in statuses:
            return first, [status for status in statuses if status is not None]
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_POLL_SECONDS)


def _has_code(output: IO[bytes] | None) -> bool:
    """Return whether the output of a process holds an error with a code; None: unknown."""
    if output is None:
        return False
    output.seek(0)
    return b"TrainingError: " in output.read()


def _report(text: str, output: IO[bytes] | None) -> None:
    """Write a line, and the end of a process's output unless it was shown already (None), to stderr."""
    with suppress(OSError):  # the terminal is gone
        print(f"\n{text}", file=sys.stderr, flush=True)
        if output is not None:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _SHOWN_BYTES))
            shutil.copyfileobj(output, sys.stderr.buffer)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    raise SystemExit(run_processes(int(sys.argv[1]), *sys.argv[2:]))
