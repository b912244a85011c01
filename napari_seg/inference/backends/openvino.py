"""Networks compiled by OpenVINO for this processor, verified against torch and cached on disk.

To compile a network, `compile_network` traces it in torch and hands the trace to OpenVINO. Tracing records one run: a
branch that depends on values or on the window's size is lost, and sizes that the network computed itself become
constants. Therefore the compiled network's logits are compared with torch's, on two batches that differ from the trace
in values and in size. In torch, full-size windows would need far more memory than the compiled network; so tracing and
comparing use smaller windows, unless a dry run shows that the network runs other operations on full-size ones. A
verified network is cached under a key that covers everything that its logits depend on, and serves all window sizes on
which a dry run shows the same operations. A network that was traced or compared on windows of its full size serves
windows of that size alone.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from napari_seg.bundles.model import Model
from napari_seg.errors import EnvironmentFault, Notice
from napari_seg.inference.backends.base import BatchCost, describe_backend, first_output
from napari_seg.inference.backends.cache_folder import cache_dir
from napari_seg.inference.backends.cost import dry_cost
from napari_seg.inference.backends.network_cache import (
    NETWORKS,
    Compiled,
    Figures,
    cache_key,
    compile_for,
    read_network,
    traced_digest,
    write_network,
)
from napari_seg.inference.backends.network_key import network_digest
from napari_seg.inference.backends.skips import split_skips
from napari_seg.inference.windows.layout import shortened
from napari_seg.memory import collect_garbage, page_out, resident_bytes

log = logging.getLogger(__name__)

COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Maximum deviation of a compiled network's logits from torch's in float32, relative to the largest logit."""

MAX_KEPT = 8
"""Number of compiled networks that stay in memory: those of a task of several models, so that the next scan does not
read them again. A plan that has to save memory drops them (`RegionTask`)."""

WARM_UP_SECONDS = 1.0
"""A batch faster than this is timed a second time, because the first one also allocates memory."""


class OpenVINOBackend:
    """A network compiled for this processor; its logits are float32.

    Args:
        compiled: may be shared; buffers for input and output belong to this backend.
        shape: (N, C, *size) of the batches it was compiled for; a smaller batch is padded with zeros.
        dtype: number format it was compiled for.
    """

    device = output_device = torch.device("cpu")

    def __init__(self, compiled: Compiled, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        import openvino

        self.dtype = dtype
        self.notices: list[Notice] = []
        self.compiled = compiled
        self.request = compiled.model.create_infer_request()
        output = compiled.model.output(0)
        self.logits = np.empty(tuple(output.shape), np.float32)  # remain valid after release_memory()
        self.request.set_output_tensor(0, openvino.Tensor(self.logits, shared_memory=True))
        self.batch_cost: BatchCost | None = compiled.batch_cost
        self.shape = shape
        self.batch_seconds: list[float] = []

    @property
    def name(self) -> str:
        return describe_backend("OpenVINO", self.device, self.dtype)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        count = len(windows)
        if count < self.shape[0]:
            windows = torch.cat([windows, windows.new_zeros((self.shape[0] - count, *self.shape[1:]))])
        start = time.perf_counter()
        self.request.infer({0: windows.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        self.batch_seconds.append(time.perf_counter() - start)
        return torch.from_numpy(self.logits)[:count]

    def release_memory(self) -> None:
        self.compiled.model.release_memory()

    def close(self) -> None:
        del self.request, self.logits
        self.compiled.model.release_memory()
        if self.batch_seconds:
            self.compiled.record_batch_seconds(mean(self.batch_seconds))
        del self.compiled


@lru_cache(maxsize=MAX_KEPT)
def cached_compile(model: Model, shape: tuple[int, ...]) -> Compiled:
    """Return a model's network compiled for batches of a shape; the last ones stay in memory for the next scan."""
    cost = model.statistics.window_costs.get((shape[2], shape[3], shape[4]))  # known since the run was planned
    operations = None if cost is None else cost.operations
    compiled = compile_network(model.network, shape, cache_dir(), model.dtype, operations)
    page_out((weights.data_ptr(), weights.nbytes) for weights in model.network.state_dict().values())
    return compiled


def compile_network(
    network: torch.nn.Module,
    shape: tuple[int, ...],
    cache: Path | None = None,
    dtype: torch.dtype = torch.float32,
    operations: str | None = None,
) -> Compiled:
    """Return a network compiled for a shape; it is verified against torch unless the cache holds it.

    Args:
        network: in evaluation mode, on the CPU.
        shape: (N, C, *size) of the batches.
        cache: folder of the cache; None: nothing is cached.
        dtype: number format of the computation.
        operations: hash of its operations on batches of this shape, as `NetworkCost` has it; None: not listed yet.

    Raises:
        EnvironmentFault: `environment.precision`, the precision of `dtype` is too low for the network.
        Exception: OpenVINO can't read the network, or its logits differ from torch's.
    """
    operations = _operations(network, shape) if operations is None else operations
    cached = None if cache is None else _Cached(cache, shape, dtype, operations)
    digest = None if cached is None else network_digest(network)
    if cached is not None and digest is not None and (known := cached.read(digest)) is not None:
        return known
    traced_shape, traced = _trace_small(network, shape) if operations else (shape, _trace(network, shape))
    if cached is not None and digest is None:  # only the trace shows what the network computes
        digest = traced_digest(traced)
        if (known := cached.read(digest)) is not None:
            return known
    log.info("reading the network with OpenVINO and comparing it with torch%s", "" if cache is None else ", once")
    verified_shape = shape
    if traced_shape != shape and operations == _operations(network, traced_shape):
        verified_shape = _shape_to_verify(traced_shape, shape)
    try:
        compiled = _compile_verified(network, traced, verified_shape, shape, dtype)
    except EnvironmentFault:  # the requested precision is too low
        raise
    except Exception as error:  # logits differ, or a foreign network does not take windows of the verified shape
        if traced_shape == shape:
            raise
        log.debug("the network is traced on full-size windows (%s: %s)", type(error).__name__, error)
        traced, verified_shape = _trace(network, shape), shape
        compiled = _compile_verified(network, traced, shape, shape, dtype)
    if cached is None or digest is None:
        return compiled
    cached.write(digest, traced, compiled.figures, serves_all_sizes=verified_shape != shape)
    del traced  # it holds a copy of the weights, and a network that was read needs less memory
    return cached.read(digest) or compiled


@dataclass(frozen=True)
class _Cached:
    """Networks in the cache that serve batches of one shape.

    Attributes:
        cache: folder of the cache.
        shape: (N, C, *size) of the batches.
        dtype: number format of the computation.
        operations: hash of the operations on batches of this shape.
    """

    cache: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    operations: str

    def read(self, digest: str) -> Compiled | None:
        """Return the network with a digest: one that serves windows of all sizes, or of this size; None without one."""
        for serves_all_sizes in (True, False):
            if (known := read_network(self._folder(digest, serves_all_sizes), self.shape, self.dtype)) is not None:
                return known
        return None

    def write(self, digest: str, traced: Any, figures: Figures, *, serves_all_sizes: bool) -> None:
        """Write a verified network."""
        write_network(self._folder(digest, serves_all_sizes), traced, figures)

    def _folder(self, digest: str, serves_all_sizes: bool) -> Path:
        import openvino

        flat = [n == 1 for n in self.shape[2:]]
        served = f"{self.shape[:2]} {flat}" if serves_all_sizes else f"{self.shape}"
        key = cache_key(digest, f"{served} {self.operations}", self.dtype, openvino.__version__)
        return self.cache / NETWORKS / key


def _trace_small(network: torch.nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """Return the smallest of several shapes up to `shape` that the network accepts, and the network traced on it."""
    quarter, half = (*shape[:2], *shortened(shape[2:], 4)), (*shape[:2], *shortened(shape[2:], 2))
    longest = max(range(2, len(shape)), key=lambda axis: half[axis])
    longer = tuple(n if axis == longest else m for axis, (m, n) in enumerate(zip(quarter, half, strict=True)))
    # instance normalisation fails on the single voxel that a short window may leave at the bottleneck
    for small in dict.fromkeys((quarter, longer, half)):
        try:
            return small, _trace(network, small)
        except Exception as error:  # a foreign network can raise anything
            log.debug("the network can't be traced on windows of %s (%s)", small[2:], type(error).__name__)
    return shape, _trace(network, shape)


def _operations(network: torch.nn.Module, shape: tuple[int, ...]) -> str:
    """Return the hash of a network's operations on batches of a shape; empty if it can't be run dry."""
    try:
        return dry_cost(network, (1, *shape[1:])).operations
    except Exception as error:  # a foreign network can raise anything
        log.debug("a dry run could not list the network's operations (%s)", type(error).__name__)
        return ""


def _shape_to_verify(traced_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (N, C, *size) of the batches on which compiled network and torch are compared.

    The size is about half the full size, but differs from the traced size on every axis longer than a voxel: a number
    that follows from the traced size gives other logits there. If that would take longer windows than the full size,
    it is the full size.
    """
    size = []
    for half, traced, full in zip(shortened(shape[2:], 2), traced_shape[2:], shape[2:], strict=True):
        other = next(length for length in (half, full, 2 * full) if length != traced)
        size.append(1 if full == 1 else other)
    return (*shape[:2], *size) if prod(size) < prod(shape[2:]) else shape


def _trace(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    """Return OpenVINO's model of a network, with fixed shapes.

    It calls OpenVINO's frontend directly, because `convert_model` reports its use to a server.
    """
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # a network that keeps its last output could not be copied for a dry run
        decoder = TorchScriptPythonDecoder(network, example_input=(example,), trace_kwargs={"check_trace": False})
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: PartialShape(shape)})
    split_skips(model)
    return model


def _compile_verified(
    network: torch.nn.Module,
    traced: Any,
    verified_shape: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Compiled:
    """Compile a traced network for `shape` after its logits were compared with torch's, in float32 and in `dtype`.

    Args:
        network: network in torch.
        traced: OpenVINO's model of the network; its shape changes.
        verified_shape: (N, C, *size) of the batches on which the logits are compared.
        shape: (N, C, *size) of the batches that the compiled network processes.
        dtype: number format of the computation.

    Raises:
        EnvironmentFault: `environment.precision`, only the logits in `dtype` differ too much.
        RuntimeError: the logits differ.
    """
    batch = torch.randn(verified_shape, generator=torch.Generator().manual_seed(1))
    batches = (batch, -batch.abs())  # a branch on values would treat them differently
    with torch.inference_mode():
        references = [first_output(network(windows)) for windows in batches]
    for tried_dtype in dict.fromkeys((torch.float32, dtype)):
        model = compile_for(traced, verified_shape, tried_dtype)
        for windows, reference in zip(batches, references, strict=True):
            logits, cost = _timed_inference(model, windows)
            tolerance = COMPILED_TOLERANCE[tried_dtype] * max(1.0, float(reference.abs().max()))
            if logits.shape != reference.shape or not torch.allclose(logits, reference, atol=tolerance):
                if tried_dtype == torch.float32:
                    raise RuntimeError("the compiled network's logits differ from torch's")
                name = str(tried_dtype).removeprefix("torch.")
                raise EnvironmentFault(
                    "environment.precision",
                    f"the precision of {name} is too low for this network: its logits differ by more than "
                    f"{COMPILED_TOLERANCE[tried_dtype]:.0%} of the largest; choose float32",
                )
    if verified_shape != shape:
        model = compile_for(traced, shape, dtype)
        _, cost = _timed_inference(model, torch.zeros(shape))
    return Compiled(model, shape, Figures.measured(cost, shape))


def _timed_inference(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, BatchCost]:
    """Return a compiled model's logits and the cost of the batch."""
    collect_garbage()
    before = resident_bytes()
    request = model.create_infer_request()
    seconds: list[float] = []
    while not seconds or (len(seconds) < 2 and seconds[0] < WARM_UP_SECONDS):
        start = time.perf_counter()
        output = request.infer({0: batch.numpy()}, share_inputs=True, share_outputs=True)[0]
        seconds.append(time.perf_counter() - start)
    cost = BatchCost(seconds[-1], max(resident_bytes() - before, output.nbytes))
    logits = torch.from_numpy(output).clone()
    del output, request
    model.release_memory()
    return logits, cost
