"""What a step found, read one step late: the copy from the device is then there, and nothing had to wait for it.

All processes read the same numbers of the same step, so what they decide by them they decide alike.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magicseg.core.errors import DataError, IncompleteError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of ``step`` (from 1): ``losses`` over all processes; whether any wants to ``stop``; the ``rate`` of learning;
    the ``scale`` of the gradients (1 but in fp16) and their ``norm`` before clipping; ``at``: when the step was given
    to the device, by ``time.perf_counter``.
    """

    step: int
    losses: Mapping[str, float]
    stop: bool
    rate: float
    scale: float
    norm: float
    at: float


class Late:
    """A queue of one step."""

    def __init__(self) -> None:
        self._waiting: tuple[int, Sequence[str], float, float, Tensor, torch.cuda.Event | None] | None = None

    def push(self, values: Tensor, *, step: int, names: Sequence[str], rate: float) -> Outcome | None:
        """Take in what `magicseg.train.step.Stepper` returned for ``step`` (from 1); give the step before.

        Raises: as `flush`, of the step before.
        """
        at, event = time.perf_counter(), None
        if values.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            values = values.to("cpu", non_blocking=True)  # to pinned memory
            event.record()
        before = self.flush()
        self._waiting = step, names, rate, at, values, event
        return before

    def flush(self) -> Outcome | None:
        """The step that waits, if one does: wait for it.

        Raises: IncompleteError when its loss or gradients were not finite; DataError when its masks held unknown
            classes. The weights are then those before the step.
        """
        if self._waiting is None:
            return None
        step, names, rate, at, values, event = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        numbers = values.tolist()
        losses = dict(zip(names, numbers, strict=False))
        stop, failed, unknown, scale, norm = numbers[len(names) :]
        if unknown:
            raise DataError(
                f"{unknown:.0f} pixels of the masks of step {step} hold class ids that the vocabulary lacks",
                hint="magicseg verify RUN",
            )
        if failed:
            what = "gradient" if math.isfinite(losses["loss"]) else "loss"
            raise IncompleteError(
                f"the {what} of step {failed:.0f} is not a finite number: {losses}",
                hint="lower train.learning_rate or set train.gradient_clip=1.0, then train anew; "
                "if it happens at once, look at the data with `magicseg report RUN`",
            )
        return Outcome(step=step, losses=losses, stop=stop > 0, rate=rate, scale=scale, norm=norm, at=at)
