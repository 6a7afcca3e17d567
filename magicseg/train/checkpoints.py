"""Checkpoints: one safetensors file each, written whole or not at all, with scalars as JSON in its header.

No state of random generators is stored, because each step seeds its own (`magicseg.train.loop`).
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from magicseg.errors import PlanMismatch, StoreError
from magicseg.run.files import write_atomic
from magicseg.train.distributed import World, from_first
from magicseg.train.optim import trained_parameters

KEPT = 2

_FORMAT = 1
_NONE = -1  # instead of a step
_NAME = re.compile(r"step-(\d{8})\.safetensors")
_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """``step``: steps done. ``identity``: what training began with. ``sums``: losses since the last log."""

    path: Path
    step: int
    identity: Mapping[str, Any]
    sums: Mapping[str, float]
    tensors: Mapping[str, Tensor]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, buffers and the optimiser's moments back."""
        prefix = "model/"
        model.load_state_dict(
            {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        )
        for name, parameter in trained_parameters(model):
            prefix = f"optimizer/{name}/"
            optimizer.state[parameter] = {
                key[len(prefix) :]: value.to(parameter.device)
                for key, value in self.tensors.items()
                if key.startswith(prefix)
            }


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    identity: Mapping[str, Any],
    sums: Mapping[str, float],
) -> Path:
    """Write the state after ``step`` steps and remove all but the newest `KEPT`.

    Raises: StoreError when the disk refuses.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, parameter in trained_parameters(model):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    scalars = {"format": _FORMAT, "step": step, "identity": identity, "sums": sums}
    content = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={"magicseg": json.dumps(scalars)},
    )
    path = _path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        for old in _checkpoint_files(folder)[:-KEPT]:
            old.unlink()
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error}", hint=f"free some space, then: magicseg train {folder.parent}"
        ) from error
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; a damaged one is passed over with a warning.

    Raises: StoreError when there are checkpoints and none can be read.
    """
    files = _checkpoint_files(folder)
    for path in reversed(files):
        try:
            return _read(path)
        except _UNREADABLE as error:
            _log.warning("%s: passed over, it cannot be read: %s", path, error)
    if files:
        raise StoreError(
            f"{folder}: none of {len(files)} checkpoints can be read",
            hint=f"magicseg reset train {folder.parent}",
        )
    return None


def shared_checkpoint(folder: Path, world: World) -> Checkpoint | None:
    """What is the newest that can be read for the first process, on all of them.

    Raises: StoreError as `newest_checkpoint` does, or when another process cannot read it.
    """
    found = newest_checkpoint(folder) if world.leads else None
    step = from_first(world, found.step if found else _NONE)
    if world.leads or step == _NONE:
        return found
    path = _path(folder, step)
    try:
        return _read(path)
    except _UNREADABLE as error:
        raise StoreError(f"{path}: process {world.rank} cannot read what the first one can: {error}") from error


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint that was made with other settings or data.

    Raises: PlanMismatch, naming what differs.
    """
    old, new = _flatten(checkpoint.identity), _flatten(identity)
    differing = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise PlanMismatch(
            f"{checkpoint.path} was made with other settings or data: {'; '.join(differing)}",
            hint=f"set them back, or: magicseg reset train {checkpoint.path.parents[1]}",
        )


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["magicseg"])
        if scalars["format"] != _FORMAT:
            raise ValueError(f"format {scalars['format']!r}; this version reads format {_FORMAT}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return Checkpoint(
        path=path,
        step=scalars["step"],
        identity=scalars["identity"],
        sums=scalars["sums"],
        tensors=tensors,
    )


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _checkpoint_files(folder: Path) -> list[Path]:
    """Oldest first. Temporary files that a kill left are not among them."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
