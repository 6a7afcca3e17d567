"""Single samples straight out of a shard's file: one read, one decoding.

For one chunk of 600 kB Zarr's own way takes about three times as long as the decoding. Training in random order
asks for little else, so this reads the same bytes: a shard's file ends with an index of its chunks (uint64 offset
and length each, then a CRC32C), see the Zarr v3 specification of "sharding_indexed". Whole shards are read by
`magicseg.store.zarr_store`.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from magicseg.core.documents import open_regular
from magicseg.core.errors import DamageError
from magicseg.core.text import command
from magicseg.images.codecs import decode_jpeg
from magicseg.store.size_limits import zstd_size
from magicseg.store.zarr_store import Dataset

_CHECKSUM = 4
_NO_CHUNK = 2**64 - 1
_HEADER = 8  # of a chunk with one byte string: how many there are, and its length
_OPEN_FILES = 256


class SampleFiles:
    """The samples of a store's image arrays and masks, one at a time. Files stay open while they are in use."""

    def __init__(self, path: Path, *, shard_size: int, image_size: int) -> None:
        self._store = Dataset(path, shard_size, image_size)
        self._path, self._shard_size, self._size = path, shard_size, image_size
        self._codec = Zstd()
        self._shard = lru_cache(maxsize=_OPEN_FILES)(self._opened)
        self._jpeg = {name: self._store.is_jpeg(name) for name in ("generate/image", "generate/counterfactual")}

    def image(self, name: str, index: int) -> NDArray[np.uint8]:
        """Uint8 (H, W, 3), RGB. Raises: DamageError if it is damaged or missing."""
        size, chunk = self._size, self._chunk(name, index)
        if not self._jpeg[name]:
            return self._decoded(name, index, chunk, np.dtype(np.uint8)).reshape(size, size, 3)
        stream, checksum = chunk[:-_CHECKSUM], chunk[-_CHECKSUM:]
        if google_crc32c.value(stream) != int.from_bytes(checksum, "little"):
            raise self._damaged(name, index, "checksum differs")
        try:
            return decode_jpeg(stream[_HEADER:], size)
        except (OSError, ValueError) as error:
            raise self._damaged(name, index, error) from error

    def mask(self, index: int) -> NDArray[np.uint16]:
        """Uint16 (H, W). Raises: DamageError if it is damaged or missing."""
        name = "mask/mask"
        values = self._decoded(name, index, self._chunk(name, index), np.dtype("<u2"))
        return values.reshape(self._size, self._size)

    def _decoded(self, name: str, index: int, chunk: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
        channels = 1 if name == "mask/mask" else 3
        try:
            if zstd_size(chunk) != self._size**2 * channels * dtype.itemsize:
                raise ValueError("it expands to another size than its array has")
            return np.frombuffer(self._codec.decode(chunk), dtype)  # checks zstd's own checksum
        except (RuntimeError, ValueError) as error:
            raise self._damaged(name, index, error) from error

    def _chunk(self, name: str, index: int) -> bytes:
        shard, place = divmod(index, self._shard_size)
        file, table = self._shard(name, shard)
        offset, length = table[place].tolist()
        if offset == _NO_CHUNK:
            raise self._damaged(name, index, "was never written")
        if offset + length > os.fstat(file.fileno()).st_size:
            raise self._damaged(name, index, "the file is cut short")
        chunk = os.pread(file.fileno(), length, offset)
        if len(chunk) != length:
            raise self._damaged(name, index, "the file is cut short")
        return chunk

    def _opened(self, name: str, shard: int) -> tuple[BinaryIO, NDArray[np.uint64]]:
        path = self._path / self._store.shard_file(name, shard)
        first = shard * self._shard_size
        try:
            file = open_regular(path, error=DamageError)
            size = self._shard_size * 16
            file.seek(-(size + _CHECKSUM), os.SEEK_END)
            content = file.read(size + _CHECKSUM)
        except (OSError, DamageError) as error:
            raise self._damaged(name, first, error) from error
        table, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if google_crc32c.value(table) != int.from_bytes(checksum, "little"):
            raise self._damaged(name, first, "the index of the shard is damaged")
        return file, np.frombuffer(table, "<u8").reshape(-1, 2)

    def _damaged(self, name: str, index: int, error: object) -> DamageError:
        return DamageError(
            f"{self._path / self._store.shard_file(name, index // self._shard_size)}: sample {index} cannot be read: "
            f"{error}",
            hint=f"{command('magicseg', 'verify', self._path.parent)}, then "
            + command("magicseg", "repair", self._path.parent),
        )
