"""Write training's numbers to ``train.jsonl``, TensorBoard and Weights & Biases.

A resumed training appends as if it had never stopped. Rows that an earlier call wrote for later steps are removed
(``train.jsonl``), hidden (TensorBoard's ``purge_step``), or written again with the same numbers, of which Weights &
Biases keeps the first.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from magicseg.config.training import TrainSettings
from magicseg.core.documents import parse_json, read_bytes, without_nan
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import BackendError, DataError
from magicseg.core.files import to_json, write_atomic
from magicseg.core.text import command

_LOG_BYTES = 1 << 30
Row = Mapping[str, Any]


class Log:
    """The log of one call of training, on rank 0. Call `close` at the end."""

    def __init__(self, out_dir: Path, settings: TrainSettings, *, done: int, identity: Mapping[str, Any]) -> None:
        """Args: done: steps already done, by the checkpoint. Raises: BackendError if a library is missing."""
        self._path = out_dir / "train.jsonl"
        out_dir.mkdir(parents=True, exist_ok=True)
        try:
            lines = read_bytes(self._path, limit=_LOG_BYTES, hint=command("rm", self._path)).splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        kept = [line for line in lines if line.endswith(b"\n") and _step(line, self._path) <= done]
        if kept != lines:
            write_atomic(self._path, b"".join(kept))
        self._others: list[Callable[[int, dict[str, float]], None]] = []
        self._closing: list[Callable[[], None]] = []
        if done == settings.steps:
            return  # training has finished: no row will follow
        if settings.tensorboard:
            self._open_tensorboard(out_dir / "tensorboard", done)
        if settings.wandb is not None:
            self._open_wandb(settings.wandb, out_dir, identity)

    def write(self, row: Row) -> None:
        """Write one row: its ``step``, numbers, and mappings of numbers."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(row), allow_nan=False) + "\n")
        scalars = {name: value for name, value in flattened(row, "/").items() if name != "step"}
        for write in self._others:
            write(row["step"], scalars)

    def close(self) -> None:
        """Close TensorBoard's writer and end the run at Weights & Biases."""
        for close in self._closing:
            close()

    def _open_tensorboard(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendError(
                f"train.tensorboard: {error}", hint="pip install 'magicseg[models]', or set train.tensorboard=false"
            ) from error
        writer = SummaryWriter(str(folder), purge_step=done + 1)

        def write(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._others.append(write)
        self._closing.append(writer.close)

    def _open_wandb(self, project: str, out_dir: Path, identity: Mapping[str, Any]) -> None:
        """Open a run whose id follows from folder and settings, so that a resumed training continues it."""
        try:
            import wandb
        except ImportError as error:
            raise BackendError(
                f"train.wandb is {project!r}, but wandb cannot be imported: {error}",
                hint="pip install 'magicseg[wandb]', or set train.wandb=null",
            ) from error
        key = to_json([str(out_dir.resolve()), identity])
        run = wandb.init(
            project=project,
            id=hashlib.sha256(key).hexdigest()[:16],
            name=out_dir.name,
            resume="allow",
            dir=str(out_dir),
            config=dict(identity),
        )
        self._others.append(lambda step, scalars: run.log(scalars, step=step))
        self._closing.append(run.finish)


class _Step(TypedDict):
    step: int


def _step(line: bytes, path: Path) -> float:
    """Return the step of a line; a line without a step sorts after all steps."""
    try:
        return parse_json(line, _Step, source=path, nan=True)["step"]
    except DataError:
        return math.inf
