"""Check the workers that each stage would get on this machine: their number, their GPUs, and room for the weights."""

import functools
from collections.abc import Iterator, Sequence

from magicseg.config.stage_declarations import DECLARATIONS, STAGES
from magicseg.core.checks import Check, Status, attempt
from magicseg.core.gpus import Gpu, memory_of, visible_gpus
from magicseg.core.text import size_text
from magicseg.run.directory import Run
from magicseg.stages.placement import place_workers
from magicseg.weights.sizes import loaded_bytes


def worker_checks(run: Run) -> Iterator[Check]:
    """Run the check of every stage. Lists the GPUs at most once."""
    find = functools.cache(visible_gpus)
    for stage in STAGES:
        name = f"{stage}: workers"

        def look(stage: str = stage, name: str = name) -> Check:
            placement = place_workers(run.config, stage, find=find)
            if placement.device == "CPU" or not placement.gpus:
                return Check(name, Status.OK if placement.device == "CPU" else Status.NOTE, str(placement))
            return _with_room(name, str(placement), placement.gpus, device_bytes(run, stage), stage)

        yield attempt(name, look)


def _with_room(name: str, seen: str, gpus: Sequence[Gpu], needed: int, stage: str) -> Check:
    """Compare the weights with the memory of the smallest GPU."""
    if needed:
        seen = f"{seen}; their weights take {size_text(needed)} on each"
    memory = memory_of(gpus)
    if not memory:
        return Check(name, Status.OK, seen)
    smallest = min(memory, key=lambda gpu: memory[gpu])
    seen = f"{seen}, GPU {smallest} has {size_text(memory[smallest])}"
    if needed <= memory[smallest]:
        return Check(name, Status.OK, seen)
    return Check(
        name,
        Status.WARNING,
        seen,
        f"choose larger GPUs (--gpus), or in {stage}.options smaller weights, a 16-bit dtype or offload",
    )


def device_bytes(run: Run, stage: str) -> int:
    """Return the bytes of a stage's weights on a GPU, as far as they are on this machine.

    Weights of back ends on the CPU, those that an option ``offload`` keeps in the CPU's memory, and those of a back
    end with an option ``quantization``, do not count.
    """
    total = 0
    for nested in DECLARATIONS[stage].all_backends(run.config):
        options = nested.options
        if nested.device() == "cpu" or getattr(options, "offload", "none") != "none":
            continue
        if getattr(options, "quantization", None) is not None:
            continue
        dtype = getattr(options, "dtype", None)
        if dtype == "auto":
            dtype = "float32" if getattr(options, "AUTOCAST", False) else "bfloat16"
        total += sum(loaded_bytes(weights, dtype) or 0 for weights in nested.weights())
    return total
