"""The memory that weights take on a device, from their files. Does not load them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from magicseg.core.documents import open_regular, parse_json
from magicseg.core.errors import DataError
from magicseg.weights.cache import snapshot
from magicseg.weights.hashing import folder_files
from magicseg.weights.pinned import Weights

_HEADER_BYTES = 100_000_000  # the largest header that the safetensors library accepts
_TENSORS = frozenset({".safetensors", ".bin", ".pth", ".pt", ".gguf"})
# Bytes of a value in files, by safetensors' name of the type, and in memory, by torch's. Integers keep their type.
_IN_FILES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_IN_MEMORY = {"float32": 4, "float16": 2, "bfloat16": 2}


def loaded_bytes(weights: Weights, dtype: str | None) -> int | None:
    """Return the bytes that weights take in memory; None if they are not on this machine.

    Of files other than safetensors, the size of the file counts.

    Args: dtype: torch's name of the type that they are loaded as; None for the type in the files.
    Raises BackendError if a folder holds no weights, OSError if a file cannot be read.
    """
    place = snapshot(weights) if weights.by_name else weights.path
    if place.is_file():
        return _file_bytes(place, dtype)
    if not place.is_dir():
        return None
    names = folder_files(replace(weights, model=str(place), revision=None), weights.setting)
    return sum(_file_bytes(place / name, dtype) for name in names if Path(name).suffix in _TENSORS)


_Offset = Annotated[int, Field(ge=0, lt=1 << 50)]


class _Tensor(TypedDict, total=False):
    """A tensor in the header of a safetensors file. ``data_offsets``: its first byte, and the byte after its last.

    The header's entry ``__metadata__`` has neither.
    """

    dtype: str
    data_offsets: tuple[_Offset, _Offset]


def _file_bytes(path: Path, dtype: str | None) -> int:
    size = path.stat().st_size
    if path.suffix != ".safetensors" or dtype not in _IN_MEMORY:
        return size
    try:
        return sum(_tensor_bytes(tensor, _IN_MEMORY[dtype]) for tensor in _tensors(path))
    except DataError:  # loading reports a damaged file
        return size


def _tensors(path: Path) -> list[_Tensor]:
    """Return the tensors in a safetensors file: a length of 8 bytes, and so many bytes of JSON. Raises DataError."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_BYTES:
            raise DataError(f"{path}: its header is too long")
        content = file.read(length)
    entries = parse_json(content, dict[str, _Tensor], source=path)
    return [entry for entry in entries.values() if "data_offsets" in entry]


def _tensor_bytes(tensor: _Tensor, value_bytes: int) -> int:
    first, last = tensor["data_offsets"]
    in_file = _IN_FILES.get(tensor.get("dtype", ""))
    return (last - first) * value_bytes // in_file if in_file else last - first
