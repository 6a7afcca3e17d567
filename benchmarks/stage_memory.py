"""A stage needs the same memory for 20,000 samples as for 1,000.

Each stage runs with one worker process for all shards, which shows a leak most clearly. "Worker" is the worker's peak
resident memory from the commit records. "Parent" is the peak of the main process. Ratios are the large run over the
small run; without a leak they are 1.

    python benchmarks/stage_memory.py
    python benchmarks/stage_memory.py --samples 256 2560
"""

import argparse
import tempfile
from pathlib import Path

from measure import in_fresh_process, peak_mib, print_table, timed

from magicseg.config.loading import load_config
from magicseg.run import STAGES, Run
from magicseg.stages.pool import run_stage


def _stage(path: Path, stage: str) -> tuple[float, float, float]:
    """Return the worker's peak MiB, the parent's peak MiB, and the seconds."""
    run = Run.open(path)
    seconds = timed(lambda: run_stage(run, stage, workers=1, shards_per_job=run.plan.shards))
    records = run.ledger(stage).commits()
    if len(records) != run.plan.shards:
        raise RuntimeError(f"{stage}: only {len(records)} of {run.plan.shards} shards were committed")
    return max(record.peak_memory for record in records.values()) / 2**20, peak_mib(), seconds


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=[1_000, 20_000], metavar=("FEW", "MANY"))
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--shard-size", type=int, default=64)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {stage: [] for stage in STAGES}
    for samples in arguments.samples:
        with tempfile.TemporaryDirectory() as temporary:
            overrides = [
                f"plan.samples={samples}",
                f"plan.shard_size={arguments.shard_size}",
                f"generate.size={arguments.size}",
            ]
            run = Run.create(Path(temporary, "run"), load_config(preset="painted", overrides=overrides))
            for stage in STAGES:
                found[stage].append(in_fresh_process(_stage, run.path, stage))
    few, many = (f"{count:,}" for count in arguments.samples)
    print_table(
        f"peak resident memory, MiB, {arguments.size} px, shards of {arguments.shard_size}",
        ["", f"worker {few}", f"worker {many}", "ratio", f"parent {few}", f"parent {many}", "ratio", "samples/s"],
        [
            [
                stage,
                small[0],
                large[0],
                large[0] / small[0],
                small[1],
                large[1],
                large[1] / small[1],
                arguments.samples[1] / large[2],
            ]
            for stage, (small, large) in found.items()
        ],
    )


if __name__ == "__main__":
    main()
