"""Command-line arguments that hand the cases of a run to a Dask cluster."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_seg.cohort.case import Case
    from napari_seg.cohort.workers import Pool


def add_dask_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("several machines", "The pages of 'Run on a cluster' describe a whole run.")
    group.add_argument(
        "--dask",
        type=_where,
        metavar="WHERE",
        help="run the cases on the workers of a Dask cluster: the address of its scheduler (tcp://host:8786, or "
        "tls://host:8786 with the certificates of Dask's configuration), its scheduler file, or local:N for N workers "
        "on this machine. All machines need the same napari-seg, and one file system for the input, the output and "
        "the model. Needs pip install 'napari-seg[dask]'",
    )
    group.add_argument(
        "--dask-resources",
        action="append",
        default=[],
        type=_resource,
        metavar="NAME=N",
        help="resource of Dask that each case takes, such as GPU=1 for workers started with --resources GPU=1",
    )
    group.add_argument(
        "--dask-threads",
        type=_positive,
        metavar="N",
        help="threads of the network of each case; default: the cores of a worker's machine, divided by the threads of "
        "the worker. Set it if several workers run on one machine",
    )


def pool_of(arguments: argparse.Namespace) -> Callable[[Sequence[Case]], Pool] | None:
    """Return a function that connects to the cluster of `--dask`; None without it.

    Raises:
        EnvironmentFault: `environment.package`, Dask is not installed.
    """
    if arguments.dask is None:
        if arguments.dask_resources or arguments.dask_threads:
            arguments.refuse("--dask-resources and --dask-threads need --dask")
        return None
    from napari_seg.errors import EnvironmentFault

    if find_spec("distributed") is None:
        text = "--dask needs the package distributed, which is not installed: pip install 'napari-seg[dask]'"
        raise EnvironmentFault("environment.package", text)

    def connect(cases: Sequence[Case]) -> Pool:
        from napari_seg.cohort.distributed import DaskPool

        return DaskPool(arguments.dask, resources=dict(arguments.dask_resources), threads=arguments.dask_threads)

    return connect


def _where(text: str) -> str:
    if text.startswith("local:") and not re.fullmatch("local:[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected local:N with a number of workers, such as local:4")
    if "://" in text and not re.match("(tcp|tls)://.", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected an address such as tcp://host:8786")
    return text


def _resource(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"([^=\s]+)=(\d*\.?\d+)", text)
    if found is None or float(found[2]) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected NAME=N with a positive number, such as GPU=1")
    return found[1], float(found[2])


def _positive(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number from 1")
    return int(text)
