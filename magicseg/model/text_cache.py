"""Cache the text embeddings of a frozen text tower on disk, so that each set of classes is computed once.

A file's name is a digest of everything that decides its values: the text tower's weights, the tokenizer, the
templates, the names, the kind of device and the libraries' versions. Its header holds the same, and a digest of the
tensor's bytes. A file that does not match is recomputed. The cache can be removed at any time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from magicseg.core.digests import json_sha256
from magicseg.core.documents import open_regular
from magicseg.core.errors import DataError
from magicseg.core.files import write_atomic

_FORMAT = 1


def text_key(
    identity: Mapping[str, str], *, templates: Sequence[str], names: Sequence[Sequence[str]], device: torch.device
) -> dict[str, Any]:
    """Return everything that decides the embeddings' values. Args: identity: of `Encoder.text_identity`."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "format": _FORMAT,
        "encoder": dict(identity),
        "templates": list(templates),
        "names": [list(each) for each in names],
        "device": kind,
        "versions": {name: version(name) for name in ("torch", "open-clip-torch")},
    }


def cached_texts(key: Mapping[str, Any], compute: Callable[[], Tensor], *, folder: Path | None = None) -> Tensor:
    """Return the tensor stored under ``key``; compute and store it first if the key is missing.

    Args: folder: replaces the user's cache. Returns: float32 (K, D), on the CPU.
    """
    folder = folder or default_folder()
    path = folder / f"{json_sha256(key)[:32]}.safetensors"
    found = _stored(path, key)
    if found is not None:
        return found
    texts = compute().detach().float().cpu().contiguous()
    header = {"magicseg": json.dumps({"key": key, "digest": _digest(texts)})}
    with contextlib.suppress(OSError):  # without a writable cache the next call only takes longer
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"texts": texts}, metadata=header))
    return texts


def default_folder() -> Path:
    """Return ``magicseg/texts`` in XDG_CACHE_HOME, or in ``~/.cache`` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "magicseg", "texts")


def _stored(path: Path, key: Mapping[str, Any]) -> Tensor | None:
    try:
        open_regular(path).close()  # safetensors would wait for the writer of a pipe
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["magicseg"])
            texts: Tensor = file.get_tensor("texts")
    except (DataError, OSError, SafetensorError, ValueError, KeyError, TypeError):  # missing or damaged
        return None
    return texts if header == {"key": key, "digest": _digest(texts)} else None


def _digest(texts: Tensor) -> str:
    return hashlib.sha256(texts.numpy().tobytes()).hexdigest()
