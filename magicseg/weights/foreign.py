"""Check the configurations that come with weights before a model library reads them.

Nothing that lies beside weights may switch on code, name files outside its folder, or claim layers without end. Every
call of a model library says so too (``trust_remote_code=False``); this check covers what such calls cannot say.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from magicseg.core.documents import read_bytes
from magicseg.core.text import printable
from magicseg.errors import BackendError
from magicseg.weights.pinned import Weights

MOST_LAYERS = 1000  # of one kind; the deepest models that are published have some two hundred
_CONFIG_BYTES = 64 << 20
_DATA = frozenset({"tokenizer.json", "vocab.json"})  # large vocabularies, which are data for a tokenizer
_ATTENTION = frozenset({"eager", "sdpa"})  # torch's own; other names stand for packages and for kernels on the hub
_NAMES_A_KERNEL = re.compile(r"_?(?:attn|experts)_implementation(?:_internal)?")
_CODE = frozenset(
    {
        "trust_remote_code",
        "allow_all_kernels",
        "use_kernels",
        "kernel_config",
        "custom_pipeline",
        "custom_generate",
    }
)
_COUNTS = re.compile(r".*(?:layers|depths?|experts|n_layer|layers_per_block|num_blocks|num_stages)")
_WIDTHS = re.compile(r"(?:.*_)?(?:hidden_size|hidden_dim|d_model|embed_dim|width|n_embd)")  # of square matrices
_ROWS = re.compile(r"(?:.*_)?(?:vocab_size|intermediate_size|ffn_dim|max_position_embeddings)")
_ALWAYS = 1 << 24  # values that are allowed whatever the size of the weights
_VALUES_PER_BYTE = 2  # of weights in four bits
_INDEX = ".index.json"


def refuse_foreign_code(folder: Path, where: str, *, depth: int = 1) -> None:
    """Check all JSON files of a folder of weights, ``depth`` folders deep.

    Args: where: the setting and the weights, for messages.
    Raises: BackendError if a file turns on code of the folder or of the hub, names a file elsewhere, has more layers
    than `MOST_LAYERS` or matrices that the folder's files could not hold; also if it cannot be read or is too deep.
    """
    hint = "use weights that load without code of their own, or remove the entry if you know that it is not needed"
    if (folder / "adapter_config.json").exists():
        raise BackendError(
            f"{where}: {folder / 'adapter_config.json'}: an adapter, which names other weights", hint="merge it first"
        )
    files = list(_files(folder, depth))
    capacity = _VALUES_PER_BYTE * sum(path.stat().st_size for path in files if path.is_file())
    for path in files:
        if path.suffix != ".json" or path.name in _DATA:
            continue
        try:
            value = json.loads(read_bytes(path, limit=_CONFIG_BYTES, error=BackendError).decode("utf-8"))
        except RecursionError:
            raise BackendError(f"{where}: {path}: is nested too deeply", hint=hint) from None
        except ValueError as error:
            if isinstance(error, BackendError):
                raise
            continue  # the libraries cannot read it either, and say so where they need it
        reason = forbidden(value) or _too_large(value, capacity)
        if path.name.endswith(_INDEX):
            reason = reason or _outside(value)
        if reason:
            raise BackendError(f"{where}: {path}: {reason}", hint=hint)


def refuse_foreign_weights(weights: Weights, place: Path) -> None:
    """Check the folder where weights lie: see `refuse_foreign_code`."""
    if place.is_dir():
        refuse_foreign_code(place, f"{weights.setting}: {weights.name}", depth=weights.depth)


def forbidden(configuration: Any) -> str | None:
    """Return what in a parsed configuration is refused, as text for a message; None if nothing is."""
    for key, value in _entries(configuration):
        if key in _CODE and (value is True or (value and isinstance(value, str | list | dict))):
            return f"{key} is {_shown(value)}: it would run code that comes with the weights"
        if _NAMES_A_KERNEL.fullmatch(key):
            for name in _texts(value):
                if name not in _ATTENTION:
                    return f"{key} is {_shown(name)}; known are {', '.join(sorted(_ATTENTION))}"
        if _COUNTS.fullmatch(key):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, int | float) and number > MOST_LAYERS:
                    return f"{key} is {_shown(number)}; at most {MOST_LAYERS} are built"
    return None


def _too_large(configuration: Any, capacity: int) -> str | None:
    """Return a size that needs more values than the weights have, for which a library would allocate memory."""
    for key, value in _entries(configuration):
        if isinstance(value, int | float):
            needed = value * value if _WIDTHS.fullmatch(key) else value if _ROWS.fullmatch(key) else 0
            if needed > capacity + _ALWAYS:
                return f"{key} is {_shown(value)}, and the files beside it hold at most {capacity} values"
    return None


def is_plain_name(name: object) -> bool:
    """Return whether a name stands for a file of the same folder, on every system."""
    return (
        isinstance(name, str)
        and name not in {"", ".", ".."}
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """What lies in a folder, ``depth`` folders deep; a link to a file stands for that file."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".json" or entry.is_file():
            yield entry
        elif depth > 1 and entry.is_dir():
            yield from _files(entry, depth - 1)


def _outside(index: Any) -> str | None:
    """Return a file that an index of shards names outside its own folder."""
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    names = files.values() if isinstance(files, Mapping) else ()
    for name in names:
        if not is_plain_name(name):
            return f"its weight_map names {_shown(name)}, which is no file beside it"
    return None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys at any depth, with their values."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from ((key, each) for key, each in node.items() if isinstance(key, str))
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    return []


def _shown(value: Any) -> str:
    return printable(json.dumps(value), 100)
