"""Pack a batch into one tensor to send it from a reader process, because every sent tensor needs a connection."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 64  # bytes

Part = tuple[torch.dtype, tuple[int, ...]]


class Packed(NamedTuple):
    """``data``: uint8, all tensors' bytes, each from a multiple of 64 bytes on; ``parts``: their types and shapes.

    A tensor lies in shared memory, and only its handle is sent. An array is sent itself, through a pipe.
    """

    data: Tensor | NDArray[np.uint8]
    parts: tuple[Part, ...]

    def pin_memory(self) -> "Packed":
        """Return a copy in pinned memory. torch's loader calls this method."""
        return Packed(torch.as_tensor(self.data).pin_memory(), self.parts)


def pack(batch: tuple[Tensor, ...]) -> Packed:
    """Copy the tensors of a batch into shared memory, or into an array if shared memory has no room."""
    parts = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in batch)
    size = _places(parts)[-1]
    data: Tensor | NDArray[np.uint8]
    try:
        # Reserves the room, or raises.
        data = torch.empty(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError):
        data = np.empty(size, np.uint8)
    for into, tensor in zip(_views(torch.as_tensor(data), parts), batch, strict=True):
        into.copy_(tensor)
    return Packed(data, parts)


def unpack(packed: Packed) -> list[Tensor]:
    """The tensors again, as views of ``data``."""
    return _views(torch.as_tensor(packed.data), packed.parts)


def _views(data: Tensor, parts: tuple[Part, ...]) -> list[Tensor]:
    return [
        data[place : place + _bytes(part)].view(part[0]).view(part[1])
        for place, part in zip(_places(parts), parts, strict=False)
    ]


def _places(parts: tuple[Part, ...]) -> list[int]:
    """Where each part begins, and last where all end."""
    places = [0]
    for part in parts:
        places.append(places[-1] + -(-_bytes(part) // _ALIGNED) * _ALIGNED)
    return places


def _bytes(part: Part) -> int:
    return part[0].itemsize * math.prod(part[1])
