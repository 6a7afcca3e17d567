"""Checkpoints: one safetensors file each, written whole or not at all, with scalars as JSON in its header.

    model/NAME  optimizer/NAME/KEY  ema/NAME        whole tensors, also if training shards them

So training resumes from a checkpoint on any number of ranks and with any strategy. Frozen weights are not saved; they
are reloaded from their original source, which the identity names. No state of a random generator is stored, because
each step seeds its own (`magicseg.train.step`). No position in the data is stored, because it follows from the step.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import TypedDict

from magicseg.config.training import TrainSettings
from magicseg.core.distributed import World, broadcast_from_rank_0
from magicseg.core.documents import open_regular, parse_json
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import DataError, PlanMismatch, StoreError
from magicseg.core.files import TEMPORARY, storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.train.optimizer import trained_parameters
from magicseg.train.sharding import like, whole
from magicseg.train.step import Stepper

_FORMAT = 2
_READ = (1, 2)  # format 1 also held the frozen weights, and no averages
# What training did before these settings existed. Their defaults differ.
_BEFORE = {"crop": None, "photometric": False}
_BEFORE_OF_ENCODER = {"position_resize": "bicubic"}  # of open-clip; the encoder by default has no such setting
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW
_NONE = -1  # in place of a step
_NAME = re.compile(r"step-(\d{8})\.safetensors")
_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, DataError)
_log = logging.getLogger(__name__)


class _Scalars(TypedDict):
    format: int
    step: Annotated[int, Field(ge=0)]
    identity: dict[str, Any]
    sums: dict[str, float]
    best: NotRequired[tuple[int, float] | None]
    scaler: NotRequired[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of one file.

    ``step``: steps done. ``identity``: data, seed, classes and settings that training began with. ``sums``: losses
    summed since the last log row. ``best``: the step with the best evaluation so far and its value; None before the
    first evaluation. ``scaler``: the state of fp16's gradient scaler.
    """

    path: Path
    step: int
    identity: Mapping[str, Any]
    sums: Mapping[str, float]
    best: tuple[int, float] | None
    scaler: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @torch.no_grad()
    def restore(self, stepper: Stepper) -> None:
        """Copy weights, buffers, moments and averages into the stepper.

        Raises: StoreError if the tensors are not exactly the model's, or have values that are not finite.
        """
        state = stepper.model.state_dict()
        stored = self._under("model/")
        expected = state.keys() - _frozen(stepper.model)
        if not expected <= stored.keys() <= state.keys():
            missing, unknown = sorted(expected - stored.keys()), sorted(stored.keys() - state.keys())
            raise self._refusal(f"does not fit the model: missing {missing[:3]}, unexpected {unknown[:3]}")
        self._refuse_misfits(stepper)
        for name, value in stored.items():
            state[name].copy_(like(value, state[name]))
        for name, parameter in trained_parameters(stepper.model):
            stepper.optimizer.state[parameter] = {
                key: value.to(parameter.device) if key == "step" else like(value, parameter)
                for key, value in self._under(f"optimizer/{name}/").items()
            }
        if stepper.ema is not None:
            averages = self._under("ema/")
            for name, average in stepper.ema.averages.items():
                average.copy_(like(averages[name], average))
        stepper.scaler.load_state_dict(dict(self.scaler))

    def _refuse_misfits(self, stepper: Stepper) -> None:
        """Raise StoreError for missing moments or averages, other shapes, and values that are not finite."""
        moments = {f"optimizer/{name}": name for name, _ in trained_parameters(stepper.model)}
        wanted = {f"{prefix}/{key}" for prefix in moments for key in _MOMENTS}
        if stepper.ema is not None:
            wanted |= {f"ema/{name}" for name in stepper.ema.averages}
        lacking = sorted(wanted - self.tensors.keys())
        if lacking:
            what = "averages" if lacking[0].startswith("ema/") else "moments"
            raise self._refusal(f"cannot be resumed from: it lacks {what}, such as {lacking[0]}")
        for name, value in self.tensors.items():
            kind, _, rest = name.partition("/")
            owner = rest if kind != "optimizer" else rest.rpartition("/")[0]
            shape = stepper.shapes.get(owner)
            if shape is not None and value.shape != shape and not name.endswith("/step"):
                raise self._refusal(f"does not fit the model: {name} is {tuple(value.shape)}, not {tuple(shape)}")
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise self._refusal(f"{name} holds values that are not finite numbers")

    def _refusal(self, what: str) -> StoreError:
        return StoreError(f"{self.path}: {what}", hint=command("magicseg", "reset", "train", self.path.parents[1]))

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


def gather(stepper: Stepper, world: World) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, unsharded and on the CPU. All ranks call this; only rank 0 gets any."""
    frozen = _frozen(stepper.model)
    gathered = {}

    def keep(key: str, value: Tensor, shape: torch.Size) -> None:
        tensor = whole(value.detach())
        if world.is_rank_0:
            gathered[key] = tensor.cpu().contiguous().reshape(shape)

    for name, value in stepper.model.state_dict().items():
        if name not in frozen:
            keep(f"model/{name}", value, stepper.shapes[name])
    for name, parameter in trained_parameters(stepper.model):
        for key, value in stepper.optimizer.state[parameter].items():
            keep(f"optimizer/{name}/{key}", value, value.shape if key == "step" else stepper.shapes[name])
    if stepper.ema is not None:
        for name, value in stepper.ema.averages.items():
            keep(f"ema/{name}", value, stepper.shapes[name])
    return gathered


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    step: int,
    identity: Mapping[str, Any],
    sums: Mapping[str, float],
    best: tuple[int, float] | None,
    scaler: Mapping[str, Any],
    settings: TrainSettings,
) -> Path:
    """Write the state after ``step`` steps, as `gather` returns it, and remove old checkpoints.

    The newest ``keep_checkpoints`` stay, and those of every ``keep_every`` steps, and the best by evaluation.

    Raises: StoreError if it cannot be written; all older checkpoints are then still there.
    """
    scalars = {"format": _FORMAT, "step": step, "identity": identity, "sums": sums, "best": best, "scaler": scaler}
    content = save(dict(tensors), metadata={"magicseg": json.dumps(scalars)})
    path = _path(folder, step)
    with storage_errors(path, command("magicseg", "train", folder.parent)):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"step-*{TEMPORARY}"):  # by a killed training: the claim keeps other writers away
            left.unlink(missing_ok=True)
        write_atomic(path, content)
        for old in _checkpoint_files(folder)[: -settings.keep_checkpoints]:
            milestone = settings.keep_every is not None and _step(old) % settings.keep_every == 0
            if not milestone and (best is None or _step(old) != best[0]):
                old.unlink()
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest readable checkpoint; skip damaged ones with a warning. None if there are no checkpoints.

    Raises: StoreError if there are checkpoints and none can be read.
    """
    files = _checkpoint_files(folder)
    for path in reversed(files):
        try:
            return _read(path)
        except _UNREADABLE as error:
            _log.warning("%s: skipped, because it cannot be read: %s", path, error)
    if files:
        raise StoreError(
            f"{folder}: none of {len(files)} checkpoints can be read",
            hint=command("magicseg", "reset", "train", folder.parent),
        )
    return None


def shared_checkpoint(folder: Path, world: World) -> Checkpoint | None:
    """Return rank 0's newest readable checkpoint on every rank.

    Raises: StoreError as `newest_checkpoint` does, or if another rank cannot read it.
    """
    found = newest_checkpoint(folder) if world.is_rank_0 else None
    step = int(broadcast_from_rank_0(world, found.step if found else _NONE))
    if world.is_rank_0 or step == _NONE:
        return found
    path = _path(folder, step)
    try:
        return _read(path)
    except _UNREADABLE as error:
        raise StoreError(
            f"{path}: rank {world.rank} cannot read this checkpoint, which rank 0 can: {error}"
        ) from error


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise PlanMismatch, with the differences, if the checkpoint was made with other settings or data."""
    differing = differences(checkpoint.identity, identity)
    if differing:
        raise PlanMismatch(
            f"{checkpoint.path} was made with other settings or data: {'; '.join(differing)}",
            hint=f"set them back, or: {command('magicseg', 'reset', 'train', checkpoint.path.parents[1])}",
        )


def differences(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between a stored identity of a training and the current one.

    A setting that the stored identity does not name is newer than it. It counts as its default, or as `_BEFORE` says.
    """
    defaults = TrainSettings().model_dump(mode="json", exclude=set(TrainSettings.NEUTRAL)) | _BEFORE
    defaults["encoder"] |= _BEFORE_OF_ENCODER
    new = flattened(identity)
    known = {key: value for key, value in flattened({"train": defaults}).items() if key in new}
    old = known | flattened(stored)
    return [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _read(path: Path) -> Checkpoint:
    open_regular(path).close()
    with safe_open(path, framework="pt") as file:
        scalars = parse_json(file.metadata()["magicseg"], _Scalars, source=path, nan=True)
        if scalars["format"] not in _READ:
            raise ValueError(f"format {scalars['format']!r}; this version reads {', '.join(map(str, _READ))}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return Checkpoint(
        path=path,
        step=scalars["step"],
        identity=scalars["identity"],
        sums=scalars["sums"],
        best=scalars.get("best"),
        scaler=scalars.get("scaler", {}),
        tensors=tensors,
    )


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints' paths, oldest first, without temporary files of a killed training."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def _frozen(model: nn.Module) -> set[str]:
    """Return the names of frozen parameters, and of buffers of modules whose parameters are all frozen."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            frozen |= {f"{prefix}.{name}" if prefix else name for name, _ in module.named_buffers(recurse=False)}
    return frozen
