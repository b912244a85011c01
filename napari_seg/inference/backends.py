"""What runs the network on a batch of windows."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from napari_seg import __version__
from napari_seg.errors import EnvironmentFault

log = logging.getLogger(__name__)

BackendName = Literal["auto", "torch", "openvino"]

WORTH_COMPILING_FLOP = 5e11
"""Operations from which the seconds that OpenVINO takes to read and compile a network are won back."""

COMPILED_TOLERANCE = 1e-3
"""By how much of the largest logit a compiled network may differ from torch."""

CACHE_VARIABLE = "NAPARI_SEG_CACHE"
"""Environment variable with the folder in which compiled networks are kept; empty: they are not kept."""


Run = Callable[[torch.Tensor], torch.Tensor]
"""Logits (N, classes, *size) of windows (N, C, *size)."""


def first_answer(answer: Any) -> torch.Tensor:
    """A network's logits: what it gives alone, or first in a list, a tuple or a dictionary.

    Raises:
        TypeError: there is no tensor.
    """
    first = next(iter(answer.values())) if isinstance(answer, Mapping) else answer
    first = first[0] if isinstance(first, list | tuple) else first
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"the network answered {type(first).__name__}; expected logits as a tensor")
    return first


def check_answer(logits: torch.Tensor, count: int, size: Sequence[int], classes: int = 1) -> None:
    """Whether a network answered what it was asked.

    Args:
        logits: its answer.
        count: windows it was given.
        size: theirs.
        classes: that it must have at least.

    Raises:
        ValueError: it did not; says what was found and expected.
    """
    if len(logits) != count or tuple(logits.shape[2:]) != tuple(size) or logits.shape[1] < classes:
        expected = f"expected {count} with {classes} classes or more of the image's size {tuple(size)}"
        raise ValueError(f"it answered {tuple(logits.shape)}; {expected}")


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
            return first_answer(self.network(windows))


class OpenVINOBackend:
    """A network compiled for this processor, in float32 as torch computes it.

    Args:
        compiled: by `compile_network`; shared, while what it is asked and answers is this backend's own.
        shape: (N, C, *size) of the batches that it was compiled for; a smaller one is filled up.
    """

    name = "OpenVINO on cpu"

    def __init__(self, compiled: Any, shape: tuple[int, ...]) -> None:
        self.request = compiled.create_infer_request()
        self.shape = shape

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        count = len(windows)
        if count < self.shape[0]:
            windows = torch.cat([windows, windows.new_zeros((self.shape[0] - count, *self.shape[1:]))])
        answer = self.request.infer({0: windows.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(answer[0])[:count]


def compile_network(network: torch.nn.Module, shape: tuple[int, ...], cache_dir: Path | None = None) -> Any:
    """OpenVINO's compiled model of a network, checked against torch.

    Args:
        network: in evaluation mode, on the CPU.
        shape: (N, C, *size) of the batches that will come.
        cache_dir: where it is kept for the next time; None: nowhere.

    Raises:
        Exception: OpenVINO can't read the network, or does not compute what torch does.
    """
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    traced = _traced(network, shape)
    blob = None if cache_dir is None else cache_dir / f"{_fingerprint(traced, openvino.__version__)}.blob"
    if blob is not None and blob.is_file():
        try:
            return core.import_model(blob.read_bytes(), "CPU", settings)
        except Exception:  # cut short or damaged: openvino raises anything then
            log.info("the compiled network that was kept can't be read; it is compiled anew")
    compiled = core.compile_model(traced, "CPU", settings)
    _check_against_torch(OpenVINOBackend(compiled, shape), network, shape)
    if blob is not None:
        _keep(blob, compiled.export_model().getvalue())
    return compiled


def _check_against_torch(backend: OpenVINOBackend, network: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """On windows that a branch on their values would tell apart, because tracing keeps one branch only."""
    window = torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(1))
    for shown in (window, -window.abs()):
        with torch.inference_mode():
            expected = first_answer(network(shown))
        found = backend(shown)
        tolerance = COMPILED_TOLERANCE * max(1.0, float(expected.abs().max()))
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance):
            raise RuntimeError("the compiled network does not answer what torch answers")


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
        return OpenVINOBackend(_compiled(network, shape), shape)
    except Exception as error:  # a network can hold anything
        first_line = (str(error).strip().splitlines() or [""])[0]
        why = f"OpenVINO can't run this network ({type(error).__name__}: {first_line})"
        if wanted == "auto":
            log.info("%s; torch does", why)
            return TorchBackend(network, device)
        raise EnvironmentFault("environment.backend", f"{why}; say --backend torch") from error


@lru_cache(maxsize=2)
def _compiled(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    """The last two are kept, for the next scan."""
    return compile_network(network, shape, cache_dir())


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


def _traced(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    """OpenVINO's model of a network, with shapes that don't change.

    Through the frontend itself: OpenVINO's own `convert_model` reports its use to a server.
    """
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    decoder = TorchScriptPythonDecoder(network, example_input=(example,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: PartialShape(shape)})
    return model


def _fingerprint(traced: Any, version: str) -> str:
    """Of all that a compiled network follows from: its operations and weights, and what will run them."""
    digest = hashlib.sha256(f"{__version__} {version} {usable_cores()} {_processor()}".encode())
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


def _keep(path: Path, content: bytes) -> None:
    """Written beside and renamed, so that nobody reads half of it; a folder that can't be written to is left alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                part.write(content)
                part.close()
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        log.info("the compiled network could not be kept (%s)", error.strerror)
