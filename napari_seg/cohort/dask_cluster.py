"""Reach a Dask cluster, or make one inside this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import distributed

from napari_seg.errors import EnvironmentFault


class _NoHttp:
    """Open no port: Dask serves its state by HTTP, to all networks."""

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Do nothing."""


class _LocalScheduler(_NoHttp, distributed.Scheduler):
    pass


class _LocalWorker(_NoHttp, distributed.Worker):
    pass


def local_cluster(count: int, resources: Mapping[str, float]) -> distributed.SpecCluster:
    """Return a cluster whose scheduler and workers are threads of this process."""
    options = {"protocol": "inproc", "dashboard": False}
    worker = {"cls": _LocalWorker, "options": {**options, "nthreads": 1, "memory_limit": 0, "resources": resources}}
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        return distributed.SpecCluster(
            scheduler={"cls": _LocalScheduler, "options": options},
            workers=dict.fromkeys(range(count), worker),
            worker=worker,
            silence_logs=logging.CRITICAL,
        )


def connected_client(where: str, seconds: float) -> distributed.Client:
    """Return a client of the scheduler at an address or of a scheduler file.

    Raises:
        EnvironmentFault: `cohort.scheduler`, no scheduler answers within so many seconds; `cohort.tls`, it is reached
            by TLS, and the certificates are missing.
    """
    address = where if "://" in where else _address_in(Path(where))
    if address.startswith("tls://"):
        _check_certificates()
    try:
        return distributed.Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        text = f"no Dask scheduler answers at {address} ({type(error).__name__}); start it, or correct the address"
        raise EnvironmentFault("cohort.scheduler", text) from error


def _address_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except FileNotFoundError:
        text = f"found no scheduler file {file}; start a scheduler: dask scheduler --scheduler-file {file}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        text = f"{file} is no scheduler file ({type(error).__name__}); expected what 'dask scheduler' writes there"
    raise EnvironmentFault("cohort.scheduler", text)


def _check_certificates() -> None:
    """Check that Dask's configuration names certificates for a client."""
    try:
        if distributed.Security().get_connection_args("client")["ssl_context"] is not None:
            return
        found = "names no certificates"
    except OSError as error:
        found = f"names certificates that can't be read ({error.strerror or error})"
    text = (
        f"the scheduler is reached by TLS, and Dask's configuration {found}; set distributed.comm.tls.ca-file, and "
        "cert and key below distributed.comm.tls.client"
    )
    raise EnvironmentFault("cohort.tls", text)
