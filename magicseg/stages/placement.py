"""The placement of a stage's workers: how many processes, on which GPUs.

A stage computes on GPUs if one of its back ends does (`magicseg.backends`, ``device``). It gets one worker per
visible GPU, other stages one per CPU. None of this changes a byte, and none of it is part of a fingerprint.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from magicseg.config.run import Config
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.errors import ConfigError
from magicseg.core.gpus import Gpu, VisibleGpus, shown_gpus, visible_gpus


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks of the placement. ``gpus``: a list like ``0,2``. ``per_gpu``: workers on each GPU."""

    workers: int | None = None
    gpus: str | None = None
    per_gpu: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError if the number of workers is given twice."""
        if self.workers is not None and self.per_gpu is not None:
            raise ConfigError(
                "--workers and --workers-per-gpu both give the number of workers",
                hint="remove one: --workers K spreads K workers evenly over the GPUs",
            )


@dataclass(frozen=True)
class Placement:
    """A number of workers, spread evenly over ``gpus``. Without GPUs, a worker inherits this process's environment.

    ``device``: "GPU" or "CPU", where the stage computes.
    """

    workers: int
    gpus: tuple[Gpu, ...]
    device: str

    def at_most(self, shards: int) -> "Placement":
        """Return the placement of a stage with so many missing shards."""
        workers = min(self.workers, shards)
        return Placement(workers, self.gpus[:workers], self.device)

    def __str__(self) -> str:
        """Return the placement as part of a message: ``4 workers on GPUs 0-3``, ``8 workers (CPU)``."""
        text = f"{self.workers} {'worker' if self.workers == 1 else 'workers'}"
        if self.device == "CPU":
            return f"{text} (CPU)"
        return f"{text} on {shown_gpus(gpu.name for gpu in self.gpus)}" if self.gpus else f"{text}, no GPU was found"


def batches_at_once(config: Config, stage: str) -> int:
    """Return how many batches of a shard are in progress in a worker.

    Two if the stage computes on a GPU and two threads may call its back ends, else one.
    """
    backends = DECLARATIONS[stage].all_backends(config)
    on_gpu = any(each.device() == "cuda" for each in backends)
    return 2 if on_gpu and all(each.is_thread_safe() for each in backends) else 1


def place_workers(
    config: Config, stage: str, wish: Wish | None = None, find: Callable[[], VisibleGpus] = visible_gpus
) -> Placement:
    """Return the placement of a stage's workers on this machine.

    Args: find: lists the visible GPUs; called only for a stage that computes on GPUs.
    Raises ConfigError if a GPU that the user named is not visible; BackendError, ConfigError for an unknown back end.
    """
    wish = wish or Wish()
    devices = stage_devices(config, stage)
    on_gpu = any(device.startswith("cuda") for device in devices)
    if on_gpu or "auto" in devices:
        visible = find()
        gpus = visible.gpus if wish.gpus is None else visible.chosen(wish.gpus)
        if gpus or on_gpu:
            workers = wish.workers or max(len(gpus), 1) * (wish.per_gpu or 1)
            return Placement(workers, gpus[:workers], "GPU")
    return Placement(wish.workers or default_workers(), (), "CPU")


def place_task(config: Config, stage: str, find: Callable[[], VisibleGpus] = visible_gpus) -> Placement:
    """Return the placement of an array task's workers: one per GPU of the job, and one for a stage on CPUs.

    Without a list of the job's GPUs, others may use the GPUs of this machine: one worker gets what torch chooses.
    Raises BackendError, ConfigError for an unknown back end.
    """
    if not can_use_gpus(config, stage):
        return Placement(1, (), "CPU")
    visible = find()
    gpus = visible.gpus if visible.limit is not None else ()
    return Placement(max(len(gpus), 1), gpus, "GPU")


def can_use_gpus(config: Config, stage: str) -> bool:
    """Return whether a stage computes on GPUs where there are some. Raises BackendError, ConfigError."""
    return any(device.startswith("cuda") or device == "auto" for device in stage_devices(config, stage))


def stage_devices(config: Config, stage: str) -> frozenset[str]:
    """Return the devices of all back ends of a stage: "cuda", "auto", "cpu". Raises BackendError, ConfigError."""
    return frozenset(nested.device() for nested in DECLARATIONS[stage].all_backends(config))


def default_workers() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
