"""The choice of a backend: by request, by device and by how much there is to compute."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from napari_seg.bundles.model import Model
from napari_seg.errors import EnvironmentFault, NapariSegError
from napari_seg.inference.backends.base import Backend
from napari_seg.inference.backends.openvino import OpenVINOBackend, cached_compile
from napari_seg.inference.backends.torch import TorchBackend
from napari_seg.inference.options import BackendName

log = logging.getLogger(__name__)

ACCUMULATOR_FRACTION = 0.5
"""Fraction of a GPU's free memory that the blending accumulators may take; the network needs the rest."""

MIN_COMPILED_FLOP = 5e11
"""Number of operations of a run from which OpenVINO saves more time than reading and compiling the network takes."""


def will_compile(requested: BackendName, device: torch.device, flop: float) -> bool:
    """Return whether OpenVINO will be tried on a network.

    Args:
        requested: as for `make_backend`.
        device: where the network is.
        flop: operations of all windows of the run together.
    """
    pays = requested == "openvino" or (requested == "auto" and flop >= MIN_COMPILED_FLOP)
    return pays and device.type == "cpu" and find_spec("openvino") is not None


def make_backend(
    requested: BackendName,
    model: Model,
    shape: tuple[int, ...],
    flop: float,
    accumulator_bytes: int = 0,
) -> Backend:
    """Return the requested backend, or the fastest one.

    Args:
        requested: "auto" takes OpenVINO on the CPU if it is installed, reads the network and saves time; else torch.
        model: whose network runs.
        shape: (N, C, *size) of a batch of windows.
        flop: operations of all windows of the run together.
        accumulator_bytes: memory of the blending accumulators; if a GPU has no room for it, they are in main memory.

    Raises:
        EnvironmentFault: `environment.backend`, OpenVINO is requested and not installed, or can't run the network;
            `environment.precision`, the network's results in the model's precision differ too much.
    """
    if not will_compile(requested, model.device, flop):
        if requested != "openvino":
            return _torch_backend(model, accumulator_bytes)
        if find_spec("openvino") is None:
            raise EnvironmentFault(
                "environment.backend",
                'OpenVINO is not installed; pip install "napari-seg[openvino]", or --backend torch',
            )
        raise EnvironmentFault(
            "environment.backend",
            f"OpenVINO runs on the processor; found device {model.device.type}; use --device cpu as well",
        )
    too_inexact = model.statistics.too_inexact
    if shape in too_inexact:
        raise EnvironmentFault("environment.precision", too_inexact[shape])
    try:
        return OpenVINOBackend(cached_compile(model, shape), shape, model.dtype)
    except NapariSegError as error:
        if error.code == "environment.precision":
            too_inexact[shape] = error.message
        raise
    except Exception as error:  # a foreign network can raise anything
        first_line = (str(error).strip().splitlines() or [""])[0]
        why = f"OpenVINO can't run this network ({type(error).__name__}: {first_line})"
        if requested == "auto":
            log.info("%s; torch runs it", why)
            return _torch_backend(model, accumulator_bytes)
        raise EnvironmentFault("environment.backend", f"{why}; use --backend torch") from error


def room_for_accumulators(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that the blending accumulators may take; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached since the last scan
    return int(ACCUMULATOR_FRACTION * free)


def _torch_backend(model: Model, accumulator_bytes: int) -> TorchBackend:
    cpu = torch.device("cpu")
    network, device, dtype = model.network, model.device, model.dtype
    if device.type != "cuda":
        return TorchBackend(network, device, dtype)
    if accumulator_bytes <= room_for_accumulators(device):
        return TorchBackend(network, device, dtype, fallback=cpu)
    log.info("the blending accumulators are in main memory; %s has too little for them", device)
    return TorchBackend(network, device, dtype, output_device=cpu, fallback=cpu)
