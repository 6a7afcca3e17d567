"""Pretrained weights: where they are, and what identifies them. Imports no model library."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from magicseg.errors import BackendError

# What model libraries read from a folder; other files (README, .cache) may change without notice.
_READ = frozenset({".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".pth", ".pt"})
_WHOLE = 4 * 2**20  # files up to here are hashed whole
_BLOCKS, _BLOCK = 256, 16 * 2**10

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_path(model: str) -> bool:
    """Whether a model's name is a folder's: it looks like one, or there is one."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def pinned(model: str, revision: str | None) -> str:
    """Check how weights are named, for settings: a folder, or a name on the hub with a commit.

    Returns: the name, or the folder's absolute path (jobs start elsewhere).
    Raises: ValueError.
    """
    if is_path(model):
        if revision is not None:
            raise ValueError(f"revision goes with a name on the hub, but model is a folder: {model!r}")
        return str(Path(model).expanduser().absolute())
    if not _NAME.fullmatch(model):
        raise ValueError(f"model is neither a folder nor a name on the hub: {model!r}")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"model {model!r} needs a revision: the commit, 40 hexadecimal digits, from the history of its files on "
            f"the hub, so that the weights cannot change; got {revision!r}"
        )
    return model


def weights_identity(model: str, revision: str | None, files: Collection[str] = ()) -> str:
    """What identifies weights that `pinned` accepted: ``name@commit``, or a digest of a folder's files.

    The digest is cheap, whatever the size: files above 4 MiB count by their size and 256 blocks of 16 KiB spread
    over them. It tells models apart, and is no check against damage.

    Args: files: names inside the folder; all that hold weights, settings or a tokenizer if there are none.
    Raises: BackendError if the folder or a file is not there.
    """
    if revision is not None:
        return f"{model}@{revision}"
    folder = Path(model)
    if not folder.is_dir():
        raise BackendError(f"{folder}: there is no such folder of weights", hint="mend the path in options.model")
    names = sorted(files) or sorted(p.name for p in folder.iterdir() if p.suffix in _READ and p.is_file())
    if not names:
        raise BackendError(f"{folder}: holds no weights", hint=f"its files end in {', '.join(sorted(_READ))}")
    digest = hashlib.sha256()
    try:
        for name in names:
            digest.update(f"{name}\0{_file_digest(folder / name)}\n".encode())
    except OSError as error:
        raise BackendError(
            f"{error.filename}: cannot be read: {error.strerror}", hint=f"there are: {', '.join(_listing(folder))}"
        ) from None
    return f"sha256:{digest.hexdigest()}"


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:20]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        size = path.stat().st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
