"""Start a Dask scheduler and workers as processes of this machine, for the scripts that measure and kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_START_SECONDS = 60


class DaskProcesses:
    """A scheduler and its workers, each a process that listens on 127.0.0.1 only.

    Args:
        folder: folder for the scheduler file, the logs and the workers' temporary files.
        environment: variables of the workers, in addition to those of this process.
        options: further options of scheduler and workers, such as those of TLS.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> None:
        self.file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._environment = os.environ | (environment or {})
        self._options = list(options)
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(self.file))
        deadline = time.monotonic() + _START_SECONDS
        while not self.file.exists():
            if self.scheduler.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the scheduler did not start; see {folder / 'scheduler.log'}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [*self.workers, self.scheduler]:
            _kill(process)

    def add_worker(self, threads: int = 1, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker, and return at once."""
        words = ["--nthreads", str(threads), "--no-nanny", "--memory-limit", "0"]
        words += ["--local-directory", str(self._folder), "--scheduler-file", str(self.file)]
        self.workers.append(self._start("worker", *words, *options))
        return self.workers[-1]

    def kill_worker(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker without a chance to say so."""
        self.workers.remove(process)
        _kill(process)

    def _start(self, role: str, *words: str) -> subprocess.Popen[bytes]:
        # without an address, even --no-dashboard serves HTTP to all networks
        listen = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        with (self._folder / f"{role}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", f"distributed.cli.dask_{role}", *listen, *words, *self._options],
                stdout=log,
                stderr=log,
                env=self._environment,
            )


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
