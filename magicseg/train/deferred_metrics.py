"""A step's numbers, read one step late: by then they have been copied from the device, and nothing has to wait.

All ranks read the same numbers of the same step, so they take the same decisions.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magicseg.core.errors import DataError, IncompleteError


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The numbers of one step over all ranks: float64 tensors on the device.

    ``names``: of the losses: ``loss``, the weighted sum, then its terms. ``losses``: (len(names),). The others are
    scalars (). ``stops``: ranks that want training to end. ``failed_step``: the first step that failed, from 1; 0 if
    none did. ``unknown_pixels``: pixels whose class the vocabulary lacks. ``scale``: of the gradients, 1 unless in
    fp16. ``norm``: of the gradient, before clipping.
    """

    names: tuple[str, ...]
    losses: Tensor
    stops: Tensor
    failed_step: Tensor
    unknown_pixels: Tensor
    scale: Tensor
    norm: Tensor

    def to_host(self) -> "StepReport":
        """Return the same numbers in host memory, in one copy that nothing waits for (see `Late`)."""
        scalars = torch.stack([self.stops, self.failed_step, self.unknown_pixels, self.scale, self.norm])
        values = torch.cat([self.losses, scalars]).to("cpu", non_blocking=True)  # from a GPU: to pinned memory
        stops, failed_step, unknown_pixels, scale, norm = values[len(self.names) :]
        return replace(
            self,
            losses=values[: len(self.names)],
            stops=stops,
            failed_step=failed_step,
            unknown_pixels=unknown_pixels,
            scale=scale,
            norm=norm,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A step's numbers as Python numbers.

    ``step``: from 1. ``losses``: by name, over all ranks. ``stop``: whether any rank wants training to end. ``rate``:
    the learning rate. ``scale``: of the gradients, 1 unless in fp16. ``norm``: of the gradient, before clipping.
    ``at``: when the step was given to the device, by ``time.perf_counter``.
    """

    step: int
    losses: Mapping[str, float]
    stop: bool
    rate: float
    scale: float
    norm: float
    at: float


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    report: StepReport
    copied: torch.cuda.Event | None
    step: int
    rate: float
    at: float


class Late:
    """A queue of one step."""

    def __init__(self) -> None:
        self._waiting: _Waiting | None = None

    def push(self, report: StepReport, *, step: int, rate: float) -> Outcome | None:
        """Take in the report of ``step`` (from 1); return the outcome of the step before, if it waits.

        Raises: as `flush`, for the step before.
        """
        at, copied = time.perf_counter(), None
        on_gpu = report.losses.is_cuda
        report = report.to_host()
        if on_gpu:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        before = self.flush()
        self._waiting = _Waiting(report=report, copied=copied, step=step, rate=rate, at=at)
        return before

    def flush(self) -> Outcome | None:
        """Wait for the step in the queue and return its outcome; None if the queue is empty.

        Raises: IncompleteError if its loss or gradient was not finite; DataError if its masks held unknown classes.
            The weights are then those before the step.
        """
        if self._waiting is None:
            return None
        waiting, self._waiting = self._waiting, None
        if waiting.copied is not None:
            waiting.copied.synchronize()
        report = waiting.report
        losses = dict(zip(report.names, report.losses.tolist(), strict=True))
        unknown, failed = float(report.unknown_pixels), int(report.failed_step)
        if unknown:
            raise DataError(
                f"{unknown:.0f} pixels of the masks of step {waiting.step} hold class ids that the vocabulary lacks",
                hint="magicseg verify RUN",
            )
        if failed:
            what = "gradient" if math.isfinite(losses["loss"]) else "loss"
            raise IncompleteError(
                f"the {what} of step {failed} is not a finite number: {losses}",
                hint="lower train.learning_rate or set train.gradient_clip=1.0, then train again; "
                "if it happens in the first steps, look at the data with `magicseg report RUN`",
            )
        return Outcome(
            step=waiting.step,
            losses=losses,
            stop=float(report.stops) > 0,
            rate=waiting.rate,
            scale=float(report.scale),
            norm=float(report.norm),
            at=waiting.at,
        )
