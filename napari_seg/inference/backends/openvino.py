"""Networks compiled for this processor by OpenVINO, checked against torch and kept on disk for the next time."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import platform
import struct
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_seg.errors import EnvironmentFault, Notice
from napari_seg.inference.backends.base import BatchCost, described, first_answer, smaller
from napari_seg.inference.backends.dry_run import operations
from napari_seg.inference.backends.skips import split_skips
from napari_seg.memory import collect_garbage, held_bytes
from napari_seg.version import __version__

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model

log = logging.getLogger(__name__)

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
"""OpenVINO reports its import to an analytics host, and writes into the home folder, wherever it finds this package;
for Python it is not there now, and OpenVINO does without."""

COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""By how much of the largest logit a compiled network may differ from torch in float32."""

KEPT_BYTES = 4 * 2**30
"""Of compiled networks; what was used least lately goes first."""

QUICK_SECONDS = 1.0
"""For a batch, below which what the first one takes on top, to make the maps, is much."""

CACHE_VARIABLE = "NAPARI_SEG_CACHE"
"""Environment variable with the folder in which compiled networks are kept; empty: they are not kept."""


_HEAD = struct.Struct("<dqq")
"""At the front of a compiled network that is kept: its `BatchCost`, and the bytes that follow."""

_HEAD_BYTES = mmap.ALLOCATIONGRANULARITY
"""What the front takes, so that the rest lies in memory as it would in a file of its own."""


class OpenVINOBackend:
    """A network compiled for this processor; its logits are float32.

    Args:
        compiled: by `compile_network`; shared, while what it is asked and answers is this backend's own.
        shape: (N, C, *size) of the batches that it was compiled for; a smaller one is filled up.
        dtype: that it was compiled for.
    """

    device = home = torch.device("cpu")

    def __init__(self, compiled: Compiled, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        import openvino

        self.dtype = dtype
        self.notices: list[Notice] = []
        self.compiled = compiled
        self.request = compiled.model.create_infer_request()
        output = compiled.model.output(0)
        self.logits = np.empty(tuple(output.shape), np.float32)  # stay when the model's memory is given back
        self.request.set_output_tensor(0, openvino.Tensor(self.logits, shared_memory=True))
        self.batch_cost: BatchCost | None = compiled.batch_cost
        self.shape = shape
        self.taken: list[float] = []

    @property
    def name(self) -> str:
        return described("OpenVINO", self)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        count = len(windows)
        if count < self.shape[0]:
            windows = torch.cat([windows, windows.new_zeros((self.shape[0] - count, *self.shape[1:]))])
        start = time.perf_counter()
        self.request.infer({0: windows.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        self.taken.append(time.perf_counter() - start)
        return torch.from_numpy(self.logits)[:count]

    def rest(self) -> None:
        self.compiled.model.release_memory()

    def close(self) -> None:
        del self.request, self.logits
        self.compiled.model.release_memory()
        if self.taken:
            self.compiled.learn(mean(self.taken))
        del self.compiled


@lru_cache(maxsize=2)
def compiled_once(model: Model, shape: tuple[int, ...]) -> Compiled:
    """`compile_network` with the user's cache; the last two are also kept in memory, for the next scan."""
    return compile_network(model.network, shape, cache_dir(), model.dtype)


@dataclass
class Compiled:
    """A network as OpenVINO runs it.

    Attributes:
        model: OpenVINO's compiled model.
        batch_cost: what a batch took the last time, or when it was compiled.
        blob: the file in which it is kept, if it is.
        kept: that file's part of memory, in which the model looks for what it did not take over.
    """

    model: Any
    batch_cost: BatchCost
    blob: Path | None = None
    kept: Any = None

    def learn(self, seconds: float) -> None:
        """Notes what a batch took, for the next plan: of a whole run it tells more than of a trial."""
        self.batch_cost = self.batch_cost._replace(seconds=seconds)
        if self.blob is not None:
            with suppress(OSError), self.blob.open("r+b") as file:  # one that is gone is no loss
                file.write(_HEAD.pack(*self.batch_cost, self.blob.stat().st_size - _HEAD_BYTES))


def compile_network(
    network: torch.nn.Module,
    shape: tuple[int, ...],
    cache_dir: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Compiled:
    """OpenVINO's compiled model of a network, checked against torch.

    The network is traced on small windows, which tells what it computes; torch is asked about larger ones, when the
    model is new.

    Args:
        network: in evaluation mode, on the CPU.
        shape: (N, C, *size) of the batches that will come.
        cache_dir: where it is kept for the next time; None: nowhere.
        dtype: that it computes in.

    Raises:
        EnvironmentFault: `environment.precision`, `dtype` is too coarse for the network.
        Exception: OpenVINO can't read the network, or does not compute what torch does.
    """
    import openvino

    small, traced = _traced_on_small(network, shape)
    kept_as = f"{_fingerprint(traced, shape, dtype, openvino.__version__)}.blob"
    blob = None if cache_dir is None else cache_dir / kept_as
    if blob is not None and blob.is_file():
        del traced  # it holds all weights once more
        if (kept := _kept(blob, dtype)) is not None:
            return kept
        traced = _traced(network, small)
    log.info("the network is compiled for this processor%s", "" if blob is None else ", once for windows of this size")
    try:
        compiled = _compile_checked(network, traced, _trial(network, small, shape), shape, dtype)
    except RuntimeError:
        if small == shape:
            raise
        log.debug("the network does otherwise with larger windows than with small ones; it is traced on whole ones")
        compiled = _compile_checked(network, _traced(network, shape), shape, shape, dtype)
    if blob is not None:
        del traced
        content = compiled.model.export_model().getbuffer()
        _keep(blob, _HEAD.pack(*compiled.batch_cost, len(content)).ljust(_HEAD_BYTES, b"\0"), content)
        del content
        _forget_oldest(blob.parent)
        compiled = _kept(blob, dtype) or compiled  # the same in less memory
    return compiled


def _trial(network: torch.nn.Module, small: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of which batches torch is asked whether a network traced on small ones is compiled rightly.

    Windows about half as long as whole ones, and along no axis as long as the small ones unless whole ones are; whole
    ones if the network does other operations with them, or can't tell without values.
    """
    try:
        if operations(network, small) != operations(network, shape):
            return shape
    except Exception as error:  # a network can hold anything
        log.debug("the network does not tell its operations without values (%s)", type(error).__name__)
        return shape
    pairs = zip(smaller(shape), small, shape, strict=True)
    return tuple(whole if half == least else half for half, least, whole in pairs)


def _compile_checked(
    network: torch.nn.Module, traced: Any, trial: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> Compiled:
    """Compiled for `shape`, once it was found to answer as torch does, in float32 and nearly so in `dtype`.

    On two batches that a branch on their values would tell apart, because tracing keeps one branch only; and of another
    size than that of tracing, because it also keeps sizes that the network worked out itself (see `_trial`).

    Args:
        network: the network.
        traced: OpenVINO's model of it; takes `shape` afterwards.
        trial: (N, C, *size) of the batches that torch is asked about too; whole windows take it long and much memory.
        shape: (N, C, *size) for which it is wanted.
        dtype: that it is wanted to compute in.
    """
    batch = torch.randn(trial, generator=torch.Generator().manual_seed(1))
    _reshape(traced, trial)
    batches = (batch, -batch.abs())
    with torch.inference_mode():
        answers = [first_answer(network(asked)) for asked in batches]
    for computed_in in dict.fromkeys((torch.float32, dtype)):
        model = _core().compile_model(traced, "CPU", _settings(computed_in))
        for asked, expected in zip(batches, answers, strict=True):
            found, cost = _answered(model, asked)
            tolerance = COMPILED_TOLERANCE[computed_in] * max(1.0, float(expected.abs().max()))
            if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance):
                if computed_in == torch.float32:
                    raise RuntimeError("the compiled network does not answer what torch answers")
                off = f"its logits are off by more than {COMPILED_TOLERANCE[computed_in]:.0%} of the largest"
                text = (
                    f"{str(computed_in).removeprefix('torch.')} is too coarse for this network: {off}; choose float32"
                )
                raise EnvironmentFault("environment.precision", text)
    if trial != shape:
        _reshape(traced, shape)
        model = _core().compile_model(traced, "CPU", _settings(dtype))
        found, cost = _answered(model, torch.zeros(shape))
        if tuple(found.shape) != (*expected.shape[:2], *shape[2:]):
            raise RuntimeError("the compiled network answers in another size than it is asked")
    return Compiled(model, cost)


def _answered(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, BatchCost]:
    """A compiled model's logits, and what they took."""
    collect_garbage()
    held = held_bytes()
    request = model.create_infer_request()
    taken: list[float] = []
    while not taken or (len(taken) < 2 and taken[0] < QUICK_SECONDS):
        start = time.perf_counter()
        answer = request.infer({0: batch.numpy()}, share_inputs=True, share_outputs=True)[0]
        taken.append(time.perf_counter() - start)
    cost = BatchCost(taken[-1], max(held_bytes() - held, answer.nbytes))
    logits = torch.from_numpy(answer).clone()
    del answer, request
    model.release_memory()
    return logits, cost


@lru_cache(maxsize=1)
def _core() -> Any:
    """The one OpenVINO core of this process.

    Each core gives the thread that makes it a stack for signals and frees it in the end. When of two cores the older
    ends first, the thread is left with a freed one, and the next signal (Ctrl-C, a child that ends) kills the process.
    """
    import openvino

    return openvino.Core()


def _settings(dtype: torch.dtype) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }


def usable_cores() -> int:
    """Cores that this process may use: its own, and no more than torch was told to take (OMP_NUM_THREADS)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, torch.get_num_threads())


def cache_dir() -> Path | None:
    """Where compiled networks are kept; None: nowhere."""
    named = os.environ.get(CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()), "napari-seg", "cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "napari-seg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "napari-seg")


def _traced_on_small(network: torch.nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """The smallest of some batches, `shape` being the largest, that the network takes; and OpenVINO's model for it."""
    quarter, half = smaller(shape, 4), smaller(shape)
    longest = max(range(2, len(shape)), key=lambda axis: half[axis])
    longer = tuple(n if axis == longest else m for axis, (m, n) in enumerate(zip(quarter, half, strict=True)))
    # a network that is left with one voxel at its deepest can't normalise it, and is given two
    for small in dict.fromkeys((quarter, longer, half)):
        try:
            return small, _traced(network, small)
        except Exception as error:  # a network of one size only can raise anything
            log.debug("the network can't be traced on windows of %s (%s)", small[2:], type(error).__name__)
    return shape, _traced(network, shape)


def _traced(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    """OpenVINO's model of a network, with shapes that don't change.

    Through the frontend itself: OpenVINO's own `convert_model` reports its use to a server.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    decoder = TorchScriptPythonDecoder(network, example_input=(example,), trace_kwargs={"check_trace": False})
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    _reshape(model, shape)
    split_skips(model)
    return model


def _reshape(model: Any, shape: tuple[int, ...]) -> None:
    from openvino import PartialShape

    model.reshape({model.inputs[0]: PartialShape(shape)})


def _fingerprint(traced: Any, shape: tuple[int, ...], dtype: torch.dtype, version: str) -> str:
    """Of all that a compiled network follows from: its operations, weights and batches, and what will run them."""
    asked = f"{__version__} {_HEAD.format} {version} {usable_cores()} {_processor()} {shape} {dtype}"
    digest = hashlib.sha256(asked.encode())
    numbers: dict[str, int] = {}
    for number, operation in enumerate(traced.get_ordered_ops()):  # their names count up within a process
        numbers[operation.get_friendly_name()] = number
        inputs = [(numbers[i.get_node().get_friendly_name()], i.get_index()) for i in operation.input_values()]
        constant = operation.get_type_name() == "Constant"
        attributes = {} if constant else operation.get_attributes()
        outputs = [str(output.get_partial_shape()) for output in operation.outputs()]
        digest.update(f"{operation.get_type_name()} {inputs} {outputs} {sorted(attributes.items())}".encode())
        if constant:
            digest.update(operation.get_data().tobytes())
    return digest.hexdigest()[:32]


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    told = {line.partition(":")[0].strip(): line for line in lines if line.startswith(("model name", "flags"))}
    return " ".join(told.values()) or platform.processor()


def _kept(blob: Path, dtype: torch.dtype) -> Compiled | None:
    """What was compiled an earlier time; None if it is not there or damaged."""
    import openvino

    try:
        with blob.open("rb") as file:
            *cost, size = _HEAD.unpack(file.read(_HEAD.size))
            if os.fstat(file.fileno()).st_size != _HEAD_BYTES + size:
                raise ValueError("cut short")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        content = openvino.Tensor(np.frombuffer(mapped, np.uint8, offset=_HEAD_BYTES), shared_memory=True)
        model = _core().import_model(content, "CPU", _settings(dtype))
        if hasattr(mmap, "MADV_DONTNEED"):  # the model has laid out the weights anew; these leave memory
            mapped.madvise(mmap.MADV_DONTNEED)
        os.utime(blob)  # it was used
        return Compiled(model, BatchCost(*cost), blob, content)
    except FileNotFoundError:
        return None
    except Exception:  # cut short or damaged: openvino raises anything then
        log.info("the compiled network that was kept can't be read; it is compiled anew")
        return None


def _keep(path: Path, *content: bytes | memoryview) -> None:
    """Written beside and renamed, so that nobody reads half of it; a folder that can't be written to is left alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                for piece in content:
                    part.write(piece)
                part.close()
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        log.info("the compiled network could not be kept (%s)", error.strerror)


def _forget_oldest(folder: Path) -> None:
    """Removes what was not used for longest until all that is kept is no more than it may be."""
    try:
        known = [(path.stat(), path) for path in folder.glob("*.blob")]
    except OSError as error:  # another process was quicker, or the folder is not ours
        log.info("compiled networks could not be looked through (%s)", error.strerror)
        return
    known.sort(key=lambda blob: blob[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in known) - KEPT_BYTES
    for stat, path in known[:-1]:
        if excess <= 0:
            break
        try:
            path.unlink()
            excess -= stat.st_size
        except OSError as error:  # Windows keeps one that a process has in memory
            log.info("a compiled network could not be removed (%s)", error.strerror)
