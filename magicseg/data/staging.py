"""Copy a run's samples to the node's own disk, for training to read from.

    STAGE_TO/magicseg-KEY/              dataset.zarr's layout, with only the shards that hold kept samples
    STAGE_TO/magicseg-KEY/lock          held by the process that copies; the node's others wait for it

Every process of a training calls `staged`. The first to get the lock copies missing files, each atomically; the
others wait for it. A killed process frees its lock, and the next one continues. On a disk without locks, several
processes may copy the same file, each under its own temporary name. Files of the right size are not copied again, so
later trainings use a finished copy.
"""

import fcntl
import logging
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from magicseg.core.errors import ConfigError, StoreError
from magicseg.core.files import TEMPORARY, storage_errors, temporary_beside
from magicseg.core.text import command, size_text
from magicseg.data.kept_samples import KeptSamples
from magicseg.store.zarr_store import Dataset

ARRAYS = ("generate/image", "generate/counterfactual", "mask/mask")
_log = logging.getLogger(__name__)
_LOCK_SECONDS = 2 * 3600.0  # longer than a copy takes
_LOCK_POLL_SECONDS = 0.5
_UNSET = "free some space, choose another disk, or read from where the data are: train.stage_to: null"


def staged(samples: KeptSamples, stage_to: str, *, key: str) -> KeptSamples:
    """Copy the samples to ``stage_to`` on this node, and return them as read from there.

    Args: stage_to: a folder, created if needed; $VARIABLES are expanded. key: identifies the data set.
    Raises: ConfigError for an unset variable; StoreError if there is not enough space, or a file cannot be written.
    """
    expanded = os.path.expandvars(os.path.expanduser(stage_to))
    if "$" in expanded:
        unset = re.split(r"[^\w{}]", expanded[expanded.index("$") + 1 :])[0].strip("{}")
        raise ConfigError(
            f"train.stage_to is {stage_to!r}, but ${unset} is not set on this node",
            hint="set it to a folder on the node's own disk, or to null",
        )
    folder = Path(expanded).absolute() / f"magicseg-{key[:16]}"
    sizes = _needed(samples)
    with storage_errors(folder, "train again, or read the original files: train.stage_to: null"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            if _locked(lock, folder):
                _sweep(folder)
            missing = {name: size for name, size in sizes.items() if not _is_there(folder / name, size)}
            _check_space(folder, missing)
            for name, size in missing.items():
                if not _is_there(folder / name, size):
                    _copy(samples.path / name, folder / name, size)
    return replace(samples, path=folder)


def _needed(samples: KeptSamples) -> dict[str, int]:
    """Sizes of the files to copy, by their path inside the store."""
    store = Dataset(samples.path, samples.shard_size, samples.image_size)
    names = {"zarr.json", *(f"{array}/zarr.json" for array in ARRAYS)}
    names |= {f"{array.split('/')[0]}/zarr.json" for array in ARRAYS}
    for shard in np.unique(samples.indices // samples.shard_size).tolist():
        names |= {store.shard_file(array, shard) for array in ARRAYS}
    sizes = {}
    for name in sorted(names):
        try:
            sizes[name] = (samples.path / name).stat().st_size
        except FileNotFoundError as error:
            if name.count("/") == 1 and name.endswith("zarr.json"):
                continue  # a group without a document of its own
            raise StoreError(
                f"{samples.path / name}: is missing", hint=command("magicseg", "verify", samples.path.parent)
            ) from error
    return sizes


def _locked(lock: IO[str], folder: Path) -> bool:
    """Wait for the lock and take it. Returns: False if the disk has no locks.

    Raises StoreError if another process holds it for too long.
    """
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise StoreError(
                    f"{folder}: another process has been copying samples for {_LOCK_SECONDS / 3600:.0f} h",
                    hint=f"is it stuck? fuser {lock.name}; or read without a copy: train.stage_to: null",
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError as error:
            _log.warning("%s: cannot be locked (%s): processes of this node may copy a file twice", lock.name, error)
            return False
        else:
            return True


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind; the lock says that nobody is at it."""
    for orphan in folder.rglob(f"*{TEMPORARY}"):
        orphan.unlink()


def _check_space(folder: Path, missing: dict[str, int]) -> None:
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: staging the samples needs {size_text(needed)} more, but {size_text(free)} are free there",
            hint=_UNSET,
        )


def _copy(source: Path, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        shutil.copyfile(source, temporary)
        copied = temporary.stat().st_size
        if copied != size:
            raise StoreError(
                f"{source}: {copied} bytes were copied of {size}", hint="is it being written? train again"
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
