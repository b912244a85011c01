"""Layers as the channels of a model that needs several images of a patient, without Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import ref

from napari_seg.formats.channel_names import channels_in
from napari_seg.formats.channels import joined
from napari_seg.plugin.foreign_layers import loaded
from napari_seg.plugin.layer_info import volume_of
from napari_seg.volume import Volume

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_seg.plugin.session import Session


class ChannelLayers:
    """Which layer is which channel: the user's choice, otherwise the only layer with the name of the channel.

    Args:
        session: source of the layers.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._chosen: dict[str, ref[Image]] = {}

    @property
    def candidates(self) -> list[Image]:
        """Layers of scans with one channel."""
        return [layer for layer in self._session.scans if (one := volume_of(layer)) is not None and len(one.array) == 1]

    def choose(self, channel: str, layer: Image) -> None:
        """Set the layer of a channel."""
        self._chosen[channel] = ref(layer)  # a removed layer does not stay in memory

    def layers(self, names: Sequence[str]) -> dict[str, Image | None]:
        """Return channel -> layer; None for a channel without a layer.

        Args:
            names: names of the model's channels.
        """
        candidates = self.candidates
        found: dict[str, Image | None] = {}
        for name in names:
            chosen = self._chosen[name]() if name in self._chosen else None
            named = [layer for layer in candidates if channels_in(layer.name, names) == [name]]
            found[name] = chosen if chosen in candidates else named[0] if len(named) == 1 else None
        return found


def input_of(volumes: Mapping[str, Volume]) -> Volume:
    """Return the scan that a model gets: one volume as it is, several joined as channels; slow, call in a job.

    Args:
        volumes: channel -> volume.

    Raises:
        InputError: see `loaded` and `joined`.
    """
    ready = {name: loaded(volume) for name, volume in volumes.items()}
    return joined(ready) if len(ready) > 1 else next(iter(ready.values()))
