"""Check an exported HDF5 file before its content is read: its references to other files, and its sizes in memory.

HDF5 allows datasets in other files (external links, external storage, virtual datasets) and of any declared size.
Both are refused: every dataset must have the shape, type and layout that `magicseg.exchange.hdf5` writes.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from magicseg.config.run import Config
from magicseg.config.stage_declarations import STAGES
from magicseg.core.documents import open_regular
from magicseg.core.errors import DataError

_ATTRIBUTE_BYTES = 16 << 20
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # HDF5's reference to a text
_GZIP, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = {"masks": {_GZIP, _SHUFFLE, _FLETCHER32}, "images": {_LZF, _FLETCHER32}}
_CHECKSUM = 4


class ExportedFile:
    """An exported file, open for reading; a context manager.

    Raises: DataError if it is missing, not a regular file, or not HDF5.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._raw = open_regular(path)
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        self._size = os.fstat(self._raw.fileno()).st_size
        try:
            # Opened by its descriptor: the path may be in any encoding, or refer to another file later. Without
            # locks: some file systems have none, and exports are never modified.
            self.file = h5py.File(f"/proc/self/fd/{self._raw.fileno()}", "r", locking=False)
        except OSError as error:
            self._raw.close()
            raise DataError(f"{path}: cannot be opened as HDF5: {error}") from None

    def __enter__(self) -> "ExportedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self._raw.close()

    def text(self, name: str) -> str:
        """Return a text attribute. Raises: KeyError if it is missing; ValueError if it is not text or too long."""
        attribute = self.file.attrs.get_id(name)
        if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
            raise ValueError(f"the attribute {name!r} is not text")
        if attribute.get_storage_size() > _ATTRIBUTE_BYTES:
            raise ValueError(f"the attribute {name!r} is too long")
        return str(self.file.attrs[name])

    def check_datasets(self, config: Config) -> None:
        """Raise if datasets are stored in other files, or if shapes or types do not match the settings.

        Raises: ValueError, KeyError, TypeError.
        """
        if self.file.userblock_size or self.file.id.get_create_plist().get_sizes() != (8, 8):
            raise ValueError("its address sizes differ from those of magicseg's exports")
        samples, size = config.plan.samples, config.generate.size
        self._check("labels", (samples, config.plan.max_labels), np.dtype("<u2"))
        self._check("captions", (samples, 2), None)
        self._check("quality", (samples, len(STAGES)), None)
        self._check("masks", (samples, size, size), np.dtype("<u2"))
        for name in ("images", "counterfactuals"):
            is_jpeg = config.store.image_codec == "jpeg"
            shape = (samples,) if is_jpeg else (samples, size, size, 3)
            self._check(name, shape, None if is_jpeg else np.dtype("u1"))

    def _check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> None:
        link = self.file.get(name, getlink=True)
        if link is None:
            raise KeyError(f"the dataset {name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise TypeError(f"{name} is a link, not a dataset")
        found = self.file[name]
        if not isinstance(found, h5py.Dataset):
            raise TypeError(f"{name} is not a dataset")
        if found.is_virtual or found.external:
            raise ValueError(f"{name} is stored in another file")
        if found.shape != shape:
            raise ValueError(f"{name} has shape {found.shape}, not {shape} as its settings say")
        plist = found.id.get_create_plist()
        layout, filters = plist.get_layout(), {plist.get_filter(k)[0] for k in range(plist.get_nfilters())}
        if dtype is None or name == "labels":
            self._check_contiguous(name, found, dtype)
            return
        allowed = _FILTERS["masks" if name == "masks" else "images"]
        if found.dtype != dtype or layout != h5py.h5d.CHUNKED or found.chunks != (1, *shape[1:]) or filters - allowed:
            raise ValueError(f"{name} is not stored as magicseg stores it")

    def _check_contiguous(self, name: str, found: h5py.Dataset, dtype: np.dtype[Any] | None) -> None:
        if dtype is None:
            text = h5py.check_string_dtype(found.dtype)
            is_text = text is not None and text.length is None
            element = h5py.check_vlen_dtype(found.dtype)
            is_right = is_text if name in {"captions", "quality"} else element == np.dtype("u1")
        else:
            is_right = found.dtype == dtype
        if not is_right or found.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
            raise ValueError(f"{name} is not stored as magicseg stores it")
        item = _REFERENCE.itemsize if dtype is None else found.dtype.itemsize
        offset, size = found.id.get_offset(), int(np.prod(found.shape, dtype=object)) * item
        if offset is None and dtype is not None:
            raise ValueError(f"{name} was never written")
        if offset is not None and (found.id.get_storage_size() != size or offset + size > self._size):
            raise ValueError(f"{name} is longer than the file")

    def check_samples(self, name: str, start: int, stop: int, *, most: int) -> None:
        """Raise ValueError if a sample takes more than ``most`` bytes in memory."""
        found = self.file[name]
        if found.chunks is None:
            self._check_references(name, found, start, stop, most)
            return
        plist = found.id.get_create_plist()
        filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
        for index in range(start, stop):
            corner = (index, *[0] * (found.ndim - 1))
            info = found.id.get_chunk_info_by_coord(corner)
            if info.byte_offset is None:
                raise ValueError(f"{name} has no sample {index}")
            if info.size > most + most // 8 + 4096 or info.byte_offset + info.size > self._size:
                raise ValueError(f"sample {index} of {name} is larger than the file or the settings allow")
            # HDF5 decompresses gzip without a limit. A set bit in the mask means that the chunk skipped that filter.
            if _GZIP in filters and not info.filter_mask >> filters.index(_GZIP) & 1:
                _, content = found.id.read_direct_chunk(corner)
                stream = zlib.decompressobj()
                try:
                    expanded = stream.decompress(content[:-_CHECKSUM] if found.fletcher32 else content, most + 1)
                except zlib.error as error:
                    raise ValueError(f"sample {index} of {name}: {error}") from None
                if len(expanded) != most or not stream.eof:
                    raise ValueError(f"sample {index} of {name} expands to another size than the settings say")

    def _check_references(self, name: str, found: h5py.Dataset, start: int, stop: int, most: int) -> None:
        offset = found.id.get_offset()
        if offset is None:
            return
        width = found.shape[1] if found.ndim > 1 else 1
        size = (stop - start) * width * _REFERENCE.itemsize
        content = os.pread(self._raw.fileno(), size, offset + start * width * _REFERENCE.itemsize)
        lengths = np.frombuffer(content, _REFERENCE)["length"]
        if len(content) != size or lengths.max(initial=0) > min(most, self._size):
            raise ValueError(
                f"{name} of samples {start} to {stop - 1}: a value is longer than {most} bytes or the file"
            )
