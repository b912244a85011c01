"""What runs the network on a batch of windows."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations, product
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from napari_seg.errors import EnvironmentFault, NapariSegError, Notice
from napari_seg.inference.options import BackendName
from napari_seg.inference.windows.layout import divisor

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model

log = logging.getLogger(__name__)

FREE_SHARE = 0.5
"""Of a GPU's free memory, what sums may take; the rest is the network's."""

WORTH_COMPILING_FLOP = 5e11
"""Operations from which the seconds that OpenVINO takes to read and compile a network are won back."""


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


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Within it, torch computes in a type whatever it can; weights are turned into it each time, and not kept so."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


class BatchCost(NamedTuple):
    """What a batch of windows takes: seconds, and bytes of memory, the logits included."""

    seconds: float
    memory: int


class Backend(Protocol):
    """Runs a network on windows of one size.

    Attributes:
        name: for a person.
        batch_cost: what it is known to take for a batch; None: nobody knows.
        device: where it computes.
        dtype: what it computes in.
        home: where its logits are.
        notices: what a person should hear of how it ran.
    """

    notices: list[Notice]
    batch_cost: BatchCost | None
    device: torch.device
    dtype: torch.dtype
    home: torch.device

    @property
    def name(self) -> str: ...

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, *size), which the caller may overwrite, of windows (N, C, *size) in main memory.

        The logits are valid until the next call.
        """

    def rest(self) -> None:
        """Gives back the memory that is kept between batches, all but the logits."""

    def close(self) -> None:
        """Gives back all memory; after the last batch."""


def smaller(shape: tuple[int, ...], times: int = 2) -> tuple[int, ...]:
    """Batches (N, C, *size) of windows about so many times shorter each way, which a convolutional network takes."""
    return (*shape[:2], *(ceil(n / times / divisor(n)) * divisor(n) for n in shape[2:]))


class TorchBackend:
    """The network as it is, on its own device; where that has too little memory it steps down and notices it.

    Fewer windows at once are tried first, then the processor; the logits stay what they are, to rounding.

    Args:
        network: in evaluation mode on `device`.
        device: where it runs.
        dtype: that it computes in, by autocast; float32 if it goes on on the processor.
        home: where logits are wanted; None: where they are made.
        refuge: where the network goes on if not even one window fits; None: nowhere.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        home: torch.device | None = None,
        refuge: torch.device | None = None,
    ) -> None:
        self.batch_cost: BatchCost | None = None
        self.network = network
        self.device = device
        self.dtype = dtype
        self.home = home or device
        self.refuge = refuge
        self.at_once: int | None = None
        self.notices: list[Notice] = []

    @property
    def name(self) -> str:
        return described("torch", self)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        answers, first = [], 0
        while first < len(windows):
            some = windows[first : first + (self.at_once or len(windows))]
            answers.append(self._logits(some))
            first += len(some)
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def rest(self) -> None:
        pass  # torch gives back what it takes, and what it keeps of a GPU's memory it uses again

    def close(self) -> None:
        pass

    def _logits(self, windows: torch.Tensor) -> torch.Tensor:
        try:
            on_device = windows.to(self.device)
            with computing_in(self.dtype, self.device):
                return first_answer(self.network(on_device)).to(self.home)
        except torch.OutOfMemoryError:  # the processor raises another
            if self.refuge is None:
                raise
        # outside of `except`, where the exception would still hold the maps of the network
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(windows) > 1:
            self.at_once = len(windows) // 2
            self._notice(f"for {len(windows)} windows at once; it was given {self.at_once} at a time")
        else:
            self._notice("for one window; the processor went on in its place, which takes longer and main memory")
            self.network, self.device, self.refuge = twin(self.network, self.refuge), self.refuge, None
            self.dtype = torch.float32
        return self(windows)

    def _notice(self, what: str) -> None:
        advice = "close other programs that use the graphics card, or use one with more memory"
        notice = Notice("environment.gpu_memory", f"{self.device} has too little memory {what}; {advice}")
        log.info(notice.message)
        self.notices.append(notice)


def described(program: str, backend: Backend) -> str:
    """Such as "torch on cuda in float16"; float32 is not named."""
    kind = "" if backend.dtype == torch.float32 else f" in {str(backend.dtype).removeprefix('torch.')}"
    return f"{program} on {backend.device.type}{kind}"


def twin(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy of a network with its weights on another device; the network itself may be in use by another thread."""
    moved: dict[int, Any] = {id(p): torch.nn.Parameter(p.to(device), False) for p in network.parameters()}
    moved |= {id(b): b.to(device) for b in network.buffers()}
    return copy.deepcopy(network, moved)


def resting(run: Run, rest: Callable[[], None], before: Callable[[], None]) -> Run:
    """The same logits; after each batch memory is given back by `rest`, and `before` is called just before that."""

    def rested(windows: torch.Tensor) -> torch.Tensor:
        logits = run(windows)
        before()
        rest()
        return logits

    return rested


def averaged(run: Run, mirror_axes: Sequence[int], shifts: int = 1, is_softmax: bool = False) -> Run:
    """Give the mean logits of windows, their mirror images in all combinations of axes, and shifted copies of each.

    A network with strides sees a window on a lattice of every 2nd to every 16th voxel; a shifted copy falls on another
    one. What a shift moves out of the window is averaged over fewer copies.

    Args:
        run: called shifts * 2 ** len(mirror_axes) times for each batch.
        mirror_axes: spatial axes along which left and right carry no meaning to the network.
        shifts: copies, shifted by 0 to shifts - 1 voxels along the diagonal of the axes that are long enough.
        is_softmax: give the logarithms of the mean probabilities, the classes excluding each other.
    """
    flips = [[2 + axis for axis in some] for n in range(len(mirror_axes) + 1) for some in combinations(mirror_axes, n)]
    if len(flips) == 1 and shifts == 1:
        return run

    def averaged(windows: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in range(2, windows.ndim) if windows.shape[axis] > 8 * shifts]
        total: torch.Tensor | None = None
        for shift, flipped in product(range(shifts), flips):
            logits = run(_shifted(windows, axes, shift).flip(flipped)).flip(flipped)
            logits = logits.float().softmax(1) if is_softmax else logits
            if total is None:
                total = logits.to(torch.float32, copy=True)  # a backend may use its memory again
            else:
                _part(total, axes, 0, shift).add_(_part(logits, axes, shift, 0))
        assert total is not None
        total.div_(_copies(total.shape, axes, shifts).to(total.device) * len(flips))
        return total.clamp_(min=torch.finfo(torch.float32).tiny).log_() if is_softmax else total

    return averaged


def _shifted(windows: torch.Tensor, axes: Sequence[int], shift: int) -> torch.Tensor:
    """Moves all voxels towards the far ends, the first ones being repeated."""
    for axis in axes if shift else ():
        index = (torch.arange(windows.shape[axis]) - shift).clamp(min=0)
        windows = windows.index_select(axis, index.to(windows.device))
    return windows


def _part(tensor: torch.Tensor, axes: Sequence[int], first: int, last: int) -> torch.Tensor:
    """A view without so many voxels at the near and far ends."""
    for axis in axes:
        tensor = tensor.narrow(axis, first, tensor.shape[axis] - first - last)
    return tensor


def _copies(shape: Sequence[int], axes: Sequence[int], shifts: int) -> torch.Tensor:
    """How many shifted copies hold each voxel; broadcasts over batches and classes."""
    copies = torch.ones([n if axis in axes else 1 for axis, n in enumerate(shape)])
    for shift in range(1, shifts):
        _part(copies, axes, 0, shift).add_(1)
    return copies


def will_compile(wanted: BackendName, device: torch.device, flop: float) -> bool:
    """Whether a network of so many operations in all will be given to OpenVINO, which may refuse it.

    Args:
        wanted: as for `make_backend`.
        device: where the network is.
        flop: of all windows together.
    """
    worth = wanted == "openvino" or (wanted == "auto" and flop >= WORTH_COMPILING_FLOP)
    return worth and device.type == "cpu" and find_spec("openvino") is not None


def make_backend(
    wanted: BackendName,
    model: Model,
    shape: tuple[int, ...],
    flop: float,
    sums_bytes: int = 0,
) -> Backend:
    """The backend that a person wants, or the quickest one there is.

    Args:
        wanted: "auto": OpenVINO on the CPU where it is installed, reads the network and is worth its start; else torch.
        model: whose network is run.
        shape: (N, C, *size) of a batch of windows.
        flop: of all windows together.
        sums_bytes: of all that is made of the logits; where a GPU has no room for it, main memory has.

    Raises:
        EnvironmentFault: `environment.backend`, OpenVINO is wanted and not there, or can't run the network;
            `environment.precision`, what the model computes in is too coarse for it.
    """
    if not will_compile(wanted, model.device, flop):
        if wanted != "openvino":
            return _torch_backend(model, sums_bytes)
        if find_spec("openvino") is None:
            raise EnvironmentFault(
                "environment.backend",
                'OpenVINO is not installed; pip install "napari-seg[openvino]", or --backend torch',
            )
        raise EnvironmentFault(
            "environment.backend",
            f"OpenVINO runs on the processor; found device {model.device.type}; say --device cpu too",
        )
    from napari_seg.inference.backends.openvino import OpenVINOBackend, compiled_once

    try:
        return OpenVINOBackend(compiled_once(model, shape), shape, model.dtype)
    except NapariSegError:  # its weights can't be read again, or it can't do with so few bits
        raise
    except Exception as error:  # a network can hold anything
        first_line = (str(error).strip().splitlines() or [""])[0]
        why = f"OpenVINO can't run this network ({type(error).__name__}: {first_line})"
        if wanted == "auto":
            log.info("%s; torch does", why)
            return _torch_backend(model, sums_bytes)
        raise EnvironmentFault("environment.backend", f"{why}; say --backend torch") from error


def room_for_sums(device: torch.device) -> int:
    """Return the bytes of a GPU's own memory that sums of windows may take; 0 of a processor."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept from the scan before
    return int(FREE_SHARE * free)


def _torch_backend(model: Model, sums_bytes: int) -> TorchBackend:
    cpu = torch.device("cpu")
    network, device, dtype = model.network, model.device, model.dtype
    if device.type != "cuda":
        return TorchBackend(network, device, dtype)
    if sums_bytes <= room_for_sums(device):
        return TorchBackend(network, device, dtype, refuge=cpu)
    log.info("the sums of overlapping windows are kept in main memory; %s has too little for them", device)
    return TorchBackend(network, device, dtype, home=cpu, refuge=cpu)
