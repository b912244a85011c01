"""Reach a Dask cluster, or make one inside this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
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
    """Return a client of the scheduler at an address or of a scheduler file."""
    try:
        if "://" in where:
            return distributed.Client(where, timeout=seconds, set_as_default=False)
        if not os.path.exists(where):
            text = f"found no scheduler file {where}; start one: dask scheduler --scheduler-file {where}"
            raise EnvironmentFault("cohort.scheduler", text)
        return distributed.Client(scheduler_file=where, timeout=seconds, set_as_default=False)
    except TypeError as error:
        if "ssl_context" not in str(error):
            raise
        text = (
            "the scheduler is reached by TLS, and Dask's configuration names no certificates; set "
            "distributed.comm.tls.ca-file, and cert and key below distributed.comm.tls.client"
        )
        raise EnvironmentFault("cohort.tls", text) from None
    except (OSError, ValueError) as error:
        text = f"no Dask scheduler answers at {where} ({type(error).__name__}); start it, or correct the address"
        raise EnvironmentFault("cohort.scheduler", text) from error
