"""What a checkpoint on disk is: its pipeline's class and a digest of its files, without any model library."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from magicseg.errors import BackendError
from magicseg.generate.families import FAMILIES
from magicseg.generate.options import DiffusersOptions
from magicseg.run.files import to_json, write_atomic

INDEX = "model_index.json"
_DECIDING = frozenset({".json", ".safetensors", ".txt", ".model"})  # what a pipeline reads of its components
_BLOCK = 1 << 22


def weights_identity(options: DiffusersOptions) -> str:
    """``NAME@REVISION``, or ``sha256:...`` of the files of a path. Raises: BackendError if the path holds none."""
    folder = options.folder
    if folder is None:
        return f"{options.model}@{options.revision}"
    return f"sha256:{checkpoint_digest(folder)}"


def read_index(folder: Path) -> Mapping[str, Any]:
    """A checkpoint's model_index.json. Raises: BackendError if the folder holds no pipeline of a known family."""
    where = f"generate.options.model: {folder}"
    if not folder.is_dir():
        if folder.is_file():
            raise BackendError(
                f"{where} is a file, not the folder of a pipeline",
                hint="convert it: diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)",
            )
        raise BackendError(
            f"{where}: there is no such folder", hint="give the path of a folder with model_index.json"
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackendError(
            f"{where} holds no {INDEX}: it is not a diffusers pipeline",
            hint="give the folder that save_pretrained wrote, or a snapshot of the hub's repository",
        ) from None
    except (OSError, ValueError) as error:
        raise BackendError(f"{folder / INDEX} cannot be read: {error}", hint="fetch the checkpoint anew") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    refuse_unknown_family(str(name), where)
    lacking = [component for component in _components(index) if not (folder / component).is_dir()]
    if lacking:
        raise BackendError(f"{where} lacks the folder {lacking[0]!r}", hint="fetch the checkpoint anew")
    return dict(index)


def _components(index: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline that have a folder each."""
    return sorted(name for name, source in index.items() if isinstance(source, list) and source[0] is not None)


def refuse_unknown_family(name: str, where: str) -> None:
    """Raises: BackendError if ``name`` is not the class of a pipeline that we drive."""
    if name not in FAMILIES:
        raise BackendError(
            f"{where} is a {name}, which this back end does not drive",
            hint=f"it drives: {', '.join(family.title for family in FAMILIES.values())}",
        )


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the pipeline's files.

    Files are hashed once: digests are remembered in the user's cache by path, size and time of change, so that a task
    costs a few calls of stat. Raises: BackendError if the folder holds no pipeline.
    """
    index = read_index(folder)
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder, index)}
    try:
        stamps = {name: _stamp(path) for name, path in files.items()}
        remembered = _remembered(folder)
        digests = {name: remembered[name][1] for name in files if remembered.get(name, (None,))[0] == stamps[name]}
        unknown = [name for name in files if name not in digests]
        if unknown:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter's lock
                digests.update(zip(unknown, pool.map(lambda name: _sha256(files[name]), unknown), strict=True))
            _remember(folder, {name: (stamps[name], digests[name]) for name in files})
    except OSError as error:
        raise BackendError(f"generate.options.model: {folder} cannot be read: {error}") from error
    return hashlib.sha256(to_json(digests)).hexdigest()


def _files(folder: Path, index: Mapping[str, Any]) -> Iterator[Path]:
    yield folder / INDEX
    for component in _components(index):
        yield from sorted(
            path for path in (folder / component).rglob("*") if path.suffix in _DECIDING and path.is_file()
        )


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _memory(folder: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(
        base, "magicseg", "weights", hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32] + ".json"
    )


def _remembered(folder: Path) -> dict[str, tuple[list[int], str]]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RuntimeError):  # then hash anew
        data = json.loads(_memory(folder).read_bytes())
        return {str(name): (list(stamp), str(digest)) for name, (stamp, digest) in data.items()}
    return {}


def _remember(folder: Path, digests: Mapping[str, tuple[list[int], str]]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # a cache: nothing depends on it
        path = _memory(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(digests))
