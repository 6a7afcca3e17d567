"""A batch as one tensor, for its way from a reading process: every tensor sent costs a connection of its own."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNED = 64  # bytes

Part = tuple[torch.dtype, tuple[int, ...]]


class Packed(NamedTuple):
    """``data``: uint8, all tensors' bytes, each from a multiple of 64 bytes on; ``parts``: their types and shapes."""

    data: Tensor
    parts: tuple[Part, ...]


def pack(batch: tuple[Tensor, ...]) -> Packed:
    """Copies the tensors of a batch."""
    parts = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in batch)
    data = torch.empty(_places(parts)[-1], dtype=torch.uint8)
    for into, tensor in zip(_views(data, parts), batch, strict=True):
        into.copy_(tensor)
    return Packed(data, parts)


def unpack(packed: Packed) -> list[Tensor]:
    """The tensors again, as views of ``data``."""
    return _views(packed.data, packed.parts)


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
