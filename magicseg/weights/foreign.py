"""Check the configuration files in a weights folder before a model library reads them.

They may not enable code, refer to files outside the folder, or declare excessive numbers of layers. Every call of a
model library also passes ``trust_remote_code=False``; this check covers the remaining cases.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from magicseg.core.documents import read_bytes
from magicseg.core.errors import BackendError
from magicseg.core.text import printable
from magicseg.weights.pinned import Weights

MOST_LAYERS = 1000  # of one kind; the deepest published models have about two hundred
_CONFIG_BYTES = 64 << 20
_DATA = frozenset({"tokenizer.json", "vocab.json"})  # large vocabularies: data of a tokenizer, not configuration
_ATTENTION = frozenset({"eager", "sdpa"})  # torch's own; other names refer to packages or to kernels on the hub
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
_ALWAYS = 1 << 24  # number of values that is always allowed, whatever the size of the weights
_VALUES_PER_BYTE = 2  # with 4-bit weights
_INDEX = ".index.json"


def refuse_foreign_code(folder: Path, where: str, *, depth: int = 1) -> None:
    """Check all JSON files in a weights folder, ``depth`` folders deep.

    Args: where: the setting and the weights, for messages.
    Raises: BackendError if a file enables code from the folder or the hub, refers to a file outside the folder,
    declares more than `MOST_LAYERS` layers or matrices larger than the folder's files, cannot be read, or is nested
    too deeply.
    """
    hint = "use weights that load without code of their own, or remove the entry if you know that it is not needed"
    files = list(_files(folder, depth))
    capacity = _VALUES_PER_BYTE * sum(path.stat().st_size for path in files if path.is_file())
    for path in files:
        if path.name == "adapter_config.json":
            raise BackendError(
                f"{where}: {path}: is an adapter, which refers to other weights", hint="merge it into its base model"
            )
        if path.suffix != ".json" or path.name in _DATA:
            continue
        try:
            value = json.loads(read_bytes(path, limit=_CONFIG_BYTES, error=BackendError).decode("utf-8"))
        except RecursionError:
            raise BackendError(f"{where}: {path}: is nested too deeply", hint=hint) from None
        except ValueError as error:
            if isinstance(error, BackendError):
                raise
            continue  # the libraries cannot read it either, and report it if they need it
        reason = forbidden(value) or _too_large(value, capacity)
        if path.name.endswith(_INDEX):
            reason = reason or _outside(value)
        if reason:
            raise BackendError(f"{where}: {path}: {reason}", hint=hint)


def refuse_foreign_weights(weights: Weights, place: Path) -> None:
    """Check the folder of ``weights``, see `refuse_foreign_code`."""
    if place.is_dir():
        refuse_foreign_code(place, f"{weights.setting}: {weights.name}", depth=weights.depth)


def forbidden(configuration: Any) -> str | None:
    """Return why a parsed configuration is refused, as text for a message; None if it is allowed."""
    for key, value in _entries(configuration):
        if key in _CODE and (value is True or (value and isinstance(value, str | list | dict))):
            return f"{key} is {_shown(value)}: it would run code that comes with the weights"
        if _NAMES_A_KERNEL.fullmatch(key):
            for name in _texts(value):
                if name not in _ATTENTION:
                    return f"{key} is {_shown(name)}; allowed are {', '.join(sorted(_ATTENTION))}"
        if _COUNTS.fullmatch(key):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, int | float) and number > MOST_LAYERS:
                    return f"{key} is {_shown(number)}; at most {MOST_LAYERS} are allowed"
    return None


def _too_large(configuration: Any, capacity: int) -> str | None:
    """Return, as text, a declared size that needs more values than the weights have, or None.

    A library would allocate memory for it.
    """
    for key, value in _entries(configuration):
        if isinstance(value, int | float):
            needed = value * value if _WIDTHS.fullmatch(key) else value if _ROWS.fullmatch(key) else 0
            if needed > capacity + _ALWAYS:
                return f"{key} is {_shown(value)}, but the weights hold at most {capacity} values"
    return None


def is_plain_name(name: object) -> bool:
    """Return whether a name refers to a file in the same folder, on every operating system."""
    return (
        isinstance(name, str)
        and name not in {"", ".", ".."}
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the files in a folder, ``depth`` folders deep. Symlinks to files are followed."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".json" or entry.is_file():
            yield entry
        elif entry.is_dir():
            if depth > 1:
                yield from _files(entry, depth - 1)
        elif entry.exists():  # a library would wait for the writer of a pipe
            raise BackendError(f"{entry}: is not a regular file", hint="fetch the weights again")


def _outside(index: Any) -> str | None:
    """Return, as text, a file outside the folder that an index of shards refers to, or None."""
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    names = files.values() if isinstance(files, Mapping) else ()
    for name in names:
        if not is_plain_name(name):
            return f"its weight_map names {_shown(name)}, which is not a file in its folder"
    return None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys at any depth, with their values."""
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
