"""Check the size of stored chunks before memory is allocated for them and before native code decodes them."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.registry import register_codec

from magicseg.core.documents import open_regular
from magicseg.core.errors import DamageError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

TEXT_BYTES = 1 << 16  # limit on the size of a caption or a quality note
_MAGIC = b"\x28\xb5\x2f\xfd"
_NO_CHUNK = 2**64 - 1
_CHECKSUM = 4


def zstd_size(frame: bytes) -> int:
    """Return the content size, in bytes, from a Zstandard frame's header (RFC 8878, 3.1.1.1).

    Raises: ValueError if the header lacks it. Every frame that magicseg writes has it.
    """
    if len(frame) < 6 or frame[:4] != _MAGIC:
        raise ValueError("it is not a Zstandard frame")
    descriptor = frame[4]
    is_single = bool(descriptor & 0x20)
    start = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(is_single), 2, 4, 8)[descriptor >> 6]
    if not width or len(frame) < start + width:
        raise ValueError("its Zstandard frame does not state its content size")
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 if width == 2 else size


class BoundedZstd(ZstdCodec):
    """Zarr's Zstandard codec, but it refuses a chunk that would expand beyond the size in its array's metadata."""

    def _decode_sync(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        claimed = zstd_size(chunk_bytes.to_bytes()[:18])
        dtype, items = chunk_spec.dtype.to_native_dtype(), math.prod(chunk_spec.shape)
        is_pixels = dtype.kind in "ui"
        most = items * dtype.itemsize if is_pixels else items * (TEXT_BYTES + 4) + 4
        if claimed > most or (is_pixels and claimed != most):
            raise ValueError(f"a chunk expands to {claimed:,} bytes, which does not match its array")
        return super()._decode_sync(chunk_bytes, chunk_spec)


register_codec("zstd", BoundedZstd)
zarr.config.set({"codecs.zstd": f"{BoundedZstd.__module__}.{BoundedZstd.__qualname__}"})


def check_shard_file(path: Path, *, chunks: int, is_sharded: bool) -> None:
    """Check that a shard file is a regular file, and that its index refers only to bytes inside it.

    Args: chunks: number of texts in the file, or of entries in its index. Raises: FileNotFoundError; DamageError.
    """
    with open_regular(path, error=DamageError) as file:
        size = os.fstat(file.fileno()).st_size
        if not is_sharded:
            if size > chunks * (TEXT_BYTES + 4) + (1 << 16):
                raise DamageError(f"{path}: has {size:,} bytes, more than its texts may take")
            return
        index = os.pread(file.fileno(), chunks * 16, max(size - chunks * 16 - _CHECKSUM, 0))
    if len(index) != chunks * 16:
        raise DamageError(f"{path}: is shorter than its index")
    table = np.frombuffer(index, "<u8").reshape(-1, 2)
    parts = table[table[:, 0] != _NO_CHUNK]
    if (parts > size).any() or (parts.sum(axis=1) > size).any():
        raise DamageError(f"{path}: its index refers to chunks beyond its end")
