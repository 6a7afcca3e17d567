"""Rates of a stage and of a bare loop in alternating turns; idle share of the device, FLOPs, and utilisation."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from magicseg.core.devices import first_line
from magicseg.core.errors import MagicsegError

_SHARE_OF_TIME = 0.3  # of what is left to the stage, for the turns of one row

# Peak rates in FLOP/s, dense, with float32 accumulation: NVIDIA's data sheets. The first name that the device's name
# contains counts.
_PEAKS: Sequence[tuple[str, Mapping[str, float]]] = (
    ("H200", {"float16": 989.4e12, "bfloat16": 989.4e12}),
    ("H100 PCIe", {"float16": 756e12, "bfloat16": 756e12}),
    ("H100 NVL", {"float16": 835.5e12, "bfloat16": 835.5e12}),
    ("H100", {"float16": 989.4e12, "bfloat16": 989.4e12}),
    ("A100", {"float16": 312e12, "bfloat16": 312e12, "float32": 19.5e12}),
    ("L40S", {"float16": 362e12, "bfloat16": 362e12, "float32": 91.6e12}),
    ("RTX 4090", {"float16": 165.2e12, "bfloat16": 165.2e12, "float32": 82.6e12}),
)

Kind = Literal["baseline", "exact", "lossy"]


@dataclass(frozen=True)
class Variant:
    """Settings to measure. ``kind``: "exact" changes the last bits at most, "lossy" changes results visibly.

    ``compile_seconds``: an estimate. The variant is begun only if so much more time is left.
    """

    name: str
    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    compile_seconds: float = 0.0


BASELINE = Variant("defaults", "baseline")


class Clock:
    """Measures the time between its start and its end. The device is idle at both.

    ``seconds``: of wall time. ``busy``: seconds in which the device computed or copied; None without a profiler, and
    on the CPU.
    """

    def __init__(self, device: str, *, profiled: bool = False) -> None:
        self._device = device
        activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity]) if profiled else None
        self.seconds = 0.0
        self.busy: float | None = None

    def __enter__(self) -> Self:
        self._wait()
        if self._profiler is not None:
            self._profiler.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self._began
        if self._profiler is not None:
            self._profiler.stop()
            self.busy = self._busy() if self._device == "cuda" else None

    def _busy(self) -> float:
        """Return the time of kernels and copies. The raw events, because torch takes minutes to make its list."""
        assert self._profiler is not None
        events = self._profiler.profiler.kineto_results.events()
        on_host = torch.autograd.DeviceType.CPU
        return covered(
            (event.start_ns() / 1e9, event.end_ns() / 1e9)
            for event in events
            if event.device_type() != on_host and not event.is_user_annotation()
        )

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans (start, end), because kernels of several streams overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


class Loops(Protocol):
    """A stage and a bare loop that are ready to run, with equal models, settings and inputs."""

    def warm_up(self) -> None:
        """Do what the first turn of the stage would do once."""

    def stage(self, clock: Clock) -> int:
        """Run one turn of the stage under the clock. Returns the number of items."""

    def bare(self, clock: Clock) -> int:
        """Run one turn of the bare loop under the clock. Returns the number of items."""

    def flops(self) -> float:
        """Return the floating-point operations of one item. Called with the default settings only."""

    def remark(self) -> str:
        """Return what the reader of the row must know, or nothing."""


class Workload(Protocol):
    """A stage with its sizes. ``gigabytes``: of its checkpoints on disk."""

    name: str
    title: str
    unit: str
    device: str
    dtype: str
    variants: Sequence[Variant]
    gigabytes: float

    def write(self, folder: Path) -> None:
        """Write checkpoints and data to an empty folder."""

    def opened(self, variant: Variant) -> AbstractContextManager[Loops]:
        """Load the stage with a variant's settings."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurement of one variant. Rates are items per second; shares are 0 to 1; None: not known.

    ``ratio``: the stage's rate over the bare loop's in the same turn, the median over the turns. ``speedup``: the
    stage's rate over its rate with the default settings. ``failure``: why there is no measurement.
    """

    variant: str
    kind: Kind
    settings: Mapping[str, Any]
    rate: float | None = None
    bare_rate: float | None = None
    ratio: float | None = None
    turns: int = 0
    speedup: float | None = None
    idle: float | None = None
    utilisation: float | None = None
    flops: float | None = None
    peak_gib: float | None = None
    start_seconds: float | None = None
    remark: str = ""
    failure: str = ""


def measure_all(
    workload: Workload,
    variants: Iterable[Variant],
    *,
    deadline: float,
    turns: int,
    emit: Callable[[dict[str, Any]], None],
) -> None:
    """Measure variants of a workload in their order, while there is time. The first is the baseline.

    Args: deadline: of `time.monotonic`. emit: gets every row as soon as it is known.
    """
    with Clock(workload.device, profiled=True):  # the profiler wants its first use in the main thread
        _free(workload.device)
    baseline: Row | None = None
    longest = 0.0
    for variant in variants:
        began = time.monotonic()
        need = longest + variant.compile_seconds
        if baseline is not None and began + need > deadline:
            row = _without(variant, "left out: too little time")
        elif baseline is not None and baseline.rate is None:
            row = _without(variant, "left out: the default settings failed")
        else:
            row = _attempt(workload, variant, baseline, deadline, turns)
            if not variant.compile_seconds:
                longest = max(longest, time.monotonic() - began)
        baseline = baseline or row
        emit(asdict(row))


def _without(variant: Variant, failure: str) -> Row:
    return Row(variant=variant.name, kind=variant.kind, settings=variant.settings, failure=failure)


def _attempt(workload: Workload, variant: Variant, baseline: Row | None, deadline: float, turns: int) -> Row:
    try:
        return _measured(workload, variant, baseline, deadline, turns)
    except MagicsegError as error:
        return _without(variant, error.message.splitlines()[0])
    except Exception as error:  # the libraries raise whatever they raise
        return _without(variant, f"{type(error).__name__}: {first_line(error)}")
    finally:
        torch.compiler.reset()
        _free(workload.device)


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _measured(workload: Workload, variant: Variant, baseline: Row | None, deadline: float, turns: int) -> Row:
    device = workload.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    with workload.opened(variant) as loops:
        loops.warm_up()
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        started = time.monotonic() - began
        until = time.monotonic() + _SHARE_OF_TIME * (deadline - time.monotonic())
        found: list[tuple[float, float]] = []
        while not found or (len(found) < turns and time.monotonic() < until):
            found.append((_rate(loops.stage, device), _rate(loops.bare, device)))
        rate = statistics.median(stage for stage, _ in found)
        idle = _idle(loops, device, rate) if device == "cuda" or baseline is None else None
        flops = loops.flops() if baseline is None else baseline.flops
        remark = loops.remark()
    peak_rate = _peak_rate(workload)
    exact = variant.kind != "lossy"  # lossy settings leave operations out, or use other units of the device
    return Row(
        variant=variant.name,
        kind=variant.kind,
        settings=variant.settings,
        rate=rate,
        bare_rate=statistics.median(bare for _, bare in found),
        ratio=statistics.median(stage / bare for stage, bare in found),
        turns=len(found),
        speedup=rate / baseline.rate if baseline is not None and baseline.rate else 1.0,
        idle=idle,
        utilisation=flops * rate / peak_rate if flops and peak_rate and exact else None,
        flops=flops,
        peak_gib=peak,
        start_seconds=started,
        remark=remark,
    )


def _idle(loops: Loops, device: str, rate: float) -> float | None:
    """Return the share of time in which the device neither computes nor copies; None on the CPU.

    The profiler slows the host down, not the kernels: their time in one turn is compared with the time of turns
    without the profiler. Args: rate: items per second without the profiler.
    """
    clock = Clock(device, profiled=True)
    items = loops.stage(clock)
    return None if clock.busy is None else max(0.0, 1 - clock.busy / items * rate)


def _rate(loop: Callable[[Clock], int], device: str) -> float:
    clock = Clock(device)
    items = loop(clock)
    return items / clock.seconds


def _peak_rate(workload: Workload) -> float | None:
    if workload.device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((rates.get(workload.dtype) for known, rates in _PEAKS if known in name), None)


def counted_flops(function: Callable[[], object]) -> float:
    """Return the floating-point operations of a call: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


@contextlib.contextmanager
def library_defaults() -> Iterator[None]:
    """Use torch's default choice of cuDNN algorithms, which a stage replaces by the deterministic ones."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
