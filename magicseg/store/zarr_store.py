"""The Zarr v3 store: the layout of its arrays, and writes and reads of whole shards.

    describe/captions         str (samples, 2): caption, counterfactual caption
    generate/image            uint8 (samples, H, W, 3), or one JPEG stream per sample
    generate/counterfactual   as image
    mask/mask                 uint16 (samples, H, W): 0 background, label ids, 65535 ignore
    STAGE/quality             str (samples,): JSON; {"status": "kept" or "dropped", "reason", scores...}

The declarations of the stages list the arrays (`magicseg.config.stage_declarations`). One Zarr shard (or chunk) of
an array holds exactly the samples of one shard of the plan. One writer writes it in one go, because concurrent
partial writes to a Zarr shard lose data. Codecs carry checksums. Chunks that equal the fill value are written too, so
a missing file always means missing work.
"""

import contextlib
import hashlib
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NotRequired

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.dtype import VariableLengthBytes

from magicseg.config.run import Config
from magicseg.config.stage_declarations import ARRAY_KINDS, DECLARATIONS, ArrayKind
from magicseg.core.documents import read_json
from magicseg.core.errors import DamageError, StoreError
from magicseg.core.files import TEMPORARY, fsync_path, storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.images.codecs import decode_jpeg, encode_jpeg
from magicseg.labels import IGNORE
from magicseg.store.plan import Plan
from magicseg.store.size_limits import check_shard_file

_METADATA_BYTES = 1 << 20
_ORPHAN_SECONDS = 600.0  # a temporary file without a write for so long has no living writer
Values = NDArray[Any]


class _ChunkShape(TypedDict):
    chunk_shape: list[int]


class _ChunkGrid(TypedDict):
    configuration: _ChunkShape


class _Codec(TypedDict):
    name: str
    configuration: NotRequired[dict[str, Any]]


class _Metadata(TypedDict):
    """The checked fields of an array's metadata."""

    shape: list[Annotated[int, Field(ge=0, le=2**40)]]
    chunk_grid: _ChunkGrid
    codecs: list[_Codec]


@dataclass(frozen=True)
class _Layout:
    """Everything that the arrays' metadata depend on. ``size`` is the images' height and width in pixels."""

    samples: int
    shard: int
    size: int
    codec: str

    def of(self, kind: ArrayKind) -> dict[str, Any]:
        """Return the shape, chunks and codecs of arrays of a kind, as Zarr's ``create_array`` takes them."""
        samples, shard, size = self.samples, self.shard, self.size
        text = {"dtype": str, "fill_value": "", "compressors": [ZstdCodec(level=3, checksum=True)]}
        pixels = {"compressors": [ZstdCodec(level=1, checksum=True)]}
        if kind is ArrayKind.CAPTIONS:
            return {"shape": (samples, 2), "chunks": (shard, 2), **text}
        if kind is ArrayKind.IMAGE and self.codec == "jpeg":
            return {
                "shape": (samples,),
                "chunks": (1,),
                "shards": (shard,),
                "dtype": VariableLengthBytes(),
                "fill_value": b"",
                "compressors": [Crc32cCodec()],
            }
        if kind is ArrayKind.IMAGE:
            return {
                "shape": (samples, size, size, 3),
                "chunks": (1, size, size, 3),
                "shards": (shard, size, size, 3),
                "dtype": "uint8",
                "fill_value": 0,
                **pixels,
            }
        if kind is ArrayKind.CLASS_MAP:
            return {
                "shape": (samples, size, size),
                "chunks": (1, size, size),
                "shards": (shard, size, size),
                "dtype": "uint16",
                "fill_value": IGNORE,
                **pixels,
            }
        return {"shape": (samples,), "chunks": (shard,), **text}


def metadata_files(plan: Plan, config: Config) -> Mapping[str, bytes]:
    """Return every metadata document of the store, by its path inside the store."""
    return _metadata_files(_Layout(plan.samples, plan.shard_size, config.generate.size, config.store.image_codec))


@lru_cache(maxsize=8)
def _metadata_files(layout: _Layout) -> Mapping[str, bytes]:
    """Cached: Zarr takes about 20 ms to write them, and a check of a store needs them twice, a repair three times."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no Zarr v3 specification yet" for text and byte strings
        root = zarr.create_group(folder, zarr_format=3)
        for name, kind in ARRAY_KINDS.items():
            root.create_array(
                name,
                chunk_key_encoding={"name": "v2", "separator": "."},
                config={"write_empty_chunks": True},
                **layout.of(kind),
            )
        paths = sorted(Path(folder).rglob("zarr.json"))
        return MappingProxyType({str(path.relative_to(folder)): path.read_bytes() for path in paths})


def _remove_orphans(folder: Path, shard: int) -> None:
    """Delete temporary files of killed writers of a shard. Recent files stay: their writer may still be alive."""
    for orphan in folder.glob(f"{shard}.*{TEMPORARY}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - orphan.stat().st_mtime > _ORPHAN_SECONDS:
                orphan.unlink()


@dataclass(frozen=True)
class Dataset:
    """The store of one run. Its arrays stay open, because to open one costs more than to read a sample.

    ``shard_size`` is in samples, ``image_size`` (height and width) in pixels.
    """

    path: Path
    shard_size: int
    image_size: int
    _arrays: dict[str, zarr.Array[Any]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def create(self, plan: Plan, config: Config) -> None:
        """Write the metadata of all arrays. Existing data stay."""
        for name, content in metadata_files(plan, config).items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, content)
        self._arrays.clear()

    def recreate(self, stage: str, plan: Plan, config: Config) -> None:
        """Empty the arrays of one stage, and write the metadata of all arrays."""
        for name in DECLARATIONS[stage].store_arrays:
            for path in (self.path / name).iterdir():
                path.unlink()
        self.create(plan, config)

    @cached_property
    def _group(self) -> zarr.Group:
        with storage_errors(self.path, command("magicseg", "repair", self.path.parent)):
            try:
                return zarr.open_group(self.path, mode="r+", zarr_format=3)
            except (ValueError, KeyError) as error:
                raise self._damaged("zarr.json", error) from error

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array, opened once. Raises DamageError if its metadata cannot be read."""
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def _open(self, name: str) -> zarr.Array[Any]:
        self._check_metadata(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = self._group[name]
            except (ValueError, KeyError, OSError) as error:
                raise self._damaged(f"{name}/zarr.json", error) from error
        if not isinstance(found, zarr.Array):
            raise self._damaged(name, "is not an array")
        return found.with_config({"write_empty_chunks": True})

    def _check_metadata(self, name: str) -> None:
        """Check metadata before Zarr reads it. Raises DamageError if it does not match this store's sizes."""
        where = f"{name}/zarr.json"
        path = self.path / where
        try:
            found = read_json(path, _Metadata, limit=_METADATA_BYTES, error=DamageError)
        except FileNotFoundError:
            raise self._damaged(where, "is missing") from None
        except DamageError as error:
            raise self._damaged(where, error.message.removeprefix(f"{path}: ")) from error
        kind = ARRAY_KINDS[name]
        codec = "jpeg" if kind is ArrayKind.IMAGE and len(found["shape"]) == 1 else "lossless"
        samples = found["shape"][0] if found["shape"] else 0
        wanted = _Layout(samples, self.shard_size, self.image_size, codec).of(kind)
        chunk = wanted.get("shards", wanted["chunks"])
        codecs = ["sharding_indexed"] if "shards" in wanted else ["vlen-utf8", "zstd"]
        facts = (found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"])
        if facts != (list(wanted["shape"]), list(chunk)) or [each["name"] for each in found["codecs"]] != codecs:
            raise self._damaged(where, f"shape, chunks or codecs do not match {self.shard_size} samples per shard")
        if "shards" in wanted:
            inner = found["codecs"][0].get("configuration", {})
            names = [each.get("name") for each in inner.get("codecs", []) if isinstance(each, dict)]
            expected = ["vlen-bytes", "crc32c"] if codec == "jpeg" else ["bytes", "zstd"]
            if inner.get("chunk_shape") != list(wanted["chunks"]) or names != expected:
                raise self._damaged(where, "the inner chunks of its shards are not those that magicseg writes")

    def is_jpeg(self, name: str) -> bool:
        """Return whether an image array holds JPEG streams."""
        return self.array(name).ndim == 1

    def shard_file(self, name: str, shard: int) -> str:
        """Return the path of a shard's file inside the store."""
        return f"{name}/{'.'.join([str(shard), *['0'] * (self.array(name).ndim - 1)])}"

    def write_shard(self, shard: int, samples: range, values: Mapping[str, Values]) -> dict[str, tuple[str, int]]:
        """Write one shard of several arrays, flushed to disk.

        Args: values: the shard's whole content by array; JPEG streams are object arrays of bytes.
        Returns: SHA-256 and size in bytes of every written file, by path inside the store.
        Raises StoreError if the storage fails.
        """
        files: dict[str, tuple[str, int]] = {}
        with storage_errors(self.path, command("magicseg", "run", self.path.parent)):
            for name, content in values.items():
                folder = self.path / name
                _remove_orphans(folder, shard)
                file = self.shard_file(name, shard)
                try:
                    self.array(name)[samples.start : samples.stop] = content
                except OSError:
                    raise
                except Exception:
                    # The last shard may be partial. Zarr then merges it with the existing file, and fails if that
                    # file is damaged.
                    if not (self.path / file).exists():
                        raise
                    (self.path / file).unlink()
                    self.array(name)[samples.start : samples.stop] = content
                fsync_path(self.path / file)
                data = (self.path / file).read_bytes()
                files[file] = (hashlib.sha256(data).hexdigest(), len(data))
            for name in values:
                fsync_path(self.path / name)
        return files

    def read(self, name: str, start: int, stop: int) -> Values:
        """Return samples ``start`` to ``stop - 1`` of an array, as stored. Raises DamageError if they are damaged."""
        try:
            array = self.array(name)
            length = (array.shards or array.chunks)[0]
            for shard in range(start // length, -(-stop // length)):
                # Zarr would return the fill value for a missing file.
                file = self.shard_file(name, shard)
                parts = length if array.shards else length * math.prod(array.shape[1:])
                try:
                    check_shard_file(self.path / file, chunks=parts, is_sharded=array.shards is not None)
                except FileNotFoundError:
                    raise self._damaged(file, "is missing") from None
                except DamageError as error:
                    raise self._damaged(file, error.message.removeprefix(f"{self.path / file}: ")) from error
            values = np.asarray(array[start:stop])
        except StoreError:
            raise
        except Exception as error:
            # Each codec raises its own class: zstd RuntimeError, CRC ValueError, the index KeyError.
            raise self._damaged(f"{name}, samples {start} to {stop - 1}", error) from error
        if len(values) != stop - start:
            raise self._damaged(f"{name}/zarr.json", f"it has {array.shape[0]} samples")
        return values

    def read_images(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return pixels: uint8 (samples, H, W, 3), RGB; zeros for dropped samples."""
        values = self.read(name, start, stop)
        if values.ndim > 1:
            return values
        size = self.image_size
        try:
            decoded = [decode_jpeg(stream, size) if stream else None for stream in values]
        except (OSError, ValueError) as error:
            raise self._damaged(f"{name}, samples {start} to {stop - 1}", error) from error
        empty = np.zeros((size, size, 3), np.uint8)
        return np.stack([image if image is not None else empty for image in decoded])

    def encoded(self, image: NDArray[np.uint8], config: Config) -> NDArray[np.uint8] | bytes:
        """Return an image as `pack_images` takes it: a JPEG stream, or the pixels unchanged."""
        is_jpeg = config.store.image_codec == "jpeg"
        return encode_jpeg(image, config.store.jpeg_quality) if is_jpeg else image

    def pack_images(self, images: Sequence[NDArray[np.uint8] | bytes | None], config: Config) -> Values:
        """Return a shard's `encoded` images as `write_shard` takes them. None stands for a dropped sample."""
        size = config.generate.size
        if config.store.image_codec == "jpeg":
            streams = np.empty(len(images), dtype=object)
            streams[:] = [image if image is not None else b"" for image in images]
            return streams
        pixels = np.zeros((len(images), size, size, 3), dtype=np.uint8)
        for position, image in enumerate(images):
            if image is not None:
                pixels[position] = image
        return pixels

    def _damaged(self, what: str, error: object) -> DamageError:
        return DamageError(
            f"{self.path}: {what} cannot be read: {error}",
            hint=f"{command('magicseg', 'verify', self.path.parent)}, then "
            + command("magicseg", "repair", self.path.parent),
        )
