"""What runs the network on a batch of windows."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Literal, Protocol

import torch

from napari_seg import __version__
from napari_seg.errors import EnvironmentFault

log = logging.getLogger(__name__)

BackendName = Literal["auto", "torch", "openvino"]

WORTH_COMPILING_FLOP = 5e11
"""Operations from which the seconds that OpenVINO takes to read and compile a network are won back."""

CACHE_VARIABLE = "NAPARI_SEG_CACHE"
"""Environment variable with the folder in which compiled networks are kept; empty: they are not kept."""


Run = Callable[[torch.Tensor], torch.Tensor]
"""Logits (N, classes, *size) of windows (N, C, *size)."""


class Backend(Protocol):
    """Runs a network on windows of one size."""

    name: str

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, *size), which the caller may overwrite, of windows (N, C, *size) in main memory.

        The logits are valid until the next call.
        """


class TorchBackend:
    """The network as it is, on its own device."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self.name = f"torch on {device.type}"
        self.network = network
        self.device = device

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        windows = windows.to(self.device)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            return self.network(windows)


class OpenVINOBackend:
    """The network compiled for this processor, in float32 as torch computes it.

    Args:
        network: is traced with a batch of windows; on the CPU.
        shape: (N, C, *size) of the batches that will come; a smaller one is filled up.
        cache_dir: where the compiled network is kept for the next time; None: nowhere.

    Raises:
        Exception: whatever OpenVINO raises of a network that it can't read.
    """

    def __init__(self, network: torch.nn.Module, shape: tuple[int, ...], cache_dir: Path | None = None) -> None:
        import openvino

        self.name = "OpenVINO on cpu"
        self.shape = shape
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": usable_cores(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        blob = None if cache_dir is None else cache_dir / f"{_fingerprint(network, shape, openvino.__version__)}.blob"
        if blob is not None and blob.is_file():
            compiled = core.import_model(blob.read_bytes(), "CPU", settings)
        else:
            compiled = core.compile_model(_traced(network, shape), "CPU", settings)
            if blob is not None:
                _keep(blob, compiled.export_model().getvalue())
        self.request = compiled.create_infer_request()

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        count = len(windows)
        if count < self.shape[0]:
            windows = torch.cat([windows, windows.new_zeros((self.shape[0] - count, *self.shape[1:]))])
        answer = self.request.infer({0: windows.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(answer[0])[:count]


def averaged_over_mirrors(run: Run, axes: Sequence[int]) -> Run:
    """Gives the mean logits of windows and their mirror images, in all combinations of some axes, as nnU-Net does.

    Args:
        run: called 2 ** len(axes) times for each batch.
        axes: spatial axes along which left and right carry no meaning to the network.
    """
    flips = [[2 + axis for axis in some] for n in range(1, len(axes) + 1) for some in combinations(axes, n)]
    if not flips:
        return run

    def averaged(windows: torch.Tensor) -> torch.Tensor:
        total = run(windows).float().clone()  # a backend may use its memory again
        for axes in flips:
            total += run(windows.flip(axes)).flip(axes)
        return total.div_(1 + len(flips))

    return averaged


def make_backend(
    wanted: BackendName, network: torch.nn.Module, device: torch.device, shape: tuple[int, ...], flop: float
) -> Backend:
    """The backend that a person wants, or the quickest one there is.

    Args:
        wanted: "auto": OpenVINO on the CPU where it is installed, reads the network and is worth its start; else torch.
        network: in evaluation mode on `device`.
        device: where it is.
        shape: (N, C, *size) of a batch of windows.
        flop: of all windows together.

    Raises:
        EnvironmentFault: `environment.backend`, OpenVINO is wanted and not there, or can't run the network.
    """
    if wanted == "torch" or (wanted == "auto" and (flop < WORTH_COMPILING_FLOP or device.type != "cpu")):
        return TorchBackend(network, device)
    if find_spec("openvino") is None:
        if wanted == "auto":
            return TorchBackend(network, device)
        raise EnvironmentFault(
            "environment.backend", 'OpenVINO is not installed; pip install "napari-seg[openvino]", or --backend torch'
        )
    if device.type != "cpu":
        raise EnvironmentFault(
            "environment.backend", f"OpenVINO runs on the processor; found device {device.type}; say --device cpu too"
        )
    try:
        return _compiled(network, shape)
    except Exception as error:  # a network can hold anything
        first_line = (str(error).strip().splitlines() or [""])[0]
        why = f"OpenVINO can't run this network ({type(error).__name__}: {first_line})"
        if wanted == "auto":
            log.info("%s; torch does", why)
            return TorchBackend(network, device)
        raise EnvironmentFault("environment.backend", f"{why}; say --backend torch") from error


@lru_cache(maxsize=2)
def _compiled(network: torch.nn.Module, shape: tuple[int, ...]) -> OpenVINOBackend:
    """The last two are kept, for the next scan."""
    return OpenVINOBackend(network, shape, cache_dir())


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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


def _traced(network: torch.nn.Module, shape: tuple[int, ...]) -> object:
    """OpenVINO's model of a network, with shapes that don't change.

    Through the frontend itself: OpenVINO's own `convert_model` reports its use to a server.
    """
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    decoder = TorchScriptPythonDecoder(network, example_input=(torch.zeros(shape),))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: PartialShape(shape)})
    return model


def _fingerprint(network: torch.nn.Module, shape: tuple[int, ...], version: str) -> str:
    """Of all that a compiled network follows from: its code, its weights, what runs it."""
    digest = hashlib.sha256(f"{__version__} {version} {shape} {usable_cores()} {_processor()} {network}".encode())
    for kind in sorted({type(module) for module in network.modules()}, key=lambda kind: kind.__qualname__):
        digest.update(_source(kind))
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy(force=True).tobytes())
    return digest.hexdigest()[:32]


def _source(kind: type) -> bytes:
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):  # made while running, or compiled
        return f"{kind.__module__}.{kind.__qualname__}".encode()


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    return next((line for line in lines if line.startswith(("model name", "flags"))), platform.processor())


def _keep(path: Path, content: bytes) -> None:
    """Written beside and renamed, so that nobody reads half of it; a folder that can't be written to is left alone."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        log.info("the compiled network could not be kept (%s)", error.strerror)
