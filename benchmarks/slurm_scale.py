"""Ten thousand shards are submitted in seconds, with one sbatch per array; their status takes one or two seconds.

References, on the same temporary Slurm cluster: the same arrays of ``sleep`` submitted by bare ``sbatch`` calls, and
one bare ``squeue`` of the same number of waiting tasks. The script needs root and the packages of
tests/slurm/install.sh. It uses only the loopback network.

    python benchmarks/slurm_scale.py
    python benchmarks/slurm_scale.py --shards 2000 --repeats 1
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import medians, print_table

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS)]

from helpers.clusters import commands, started  # noqa: E402
from helpers.tiny_runs import make_run  # noqa: E402

HELD = "--begin=now+1day"


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shards: int = arguments.shards
    with tempfile.TemporaryDirectory() as folder, started(ACCT="1", EXTRA_CONF="MaxJobCount=100000") as cluster:
        line = commands(cluster, Path(folder), TESTS / "faults" / "plugins")
        runs = [
            make_run(Path(folder) / f"run{number}", f"plan.samples={shards}", "plan.shard_size=1", "generate.size=8")
            for number in range(arguments.repeats)
        ]
        fresh = iter(runs)

        def run_magicseg(*words: object) -> None:
            result = line.patiently(*words)
            assert result.code == 0, result.err

        def bare(command: Sequence[str]) -> None:
            subprocess.run(command, env=line.environment, check=True, stdout=subprocess.DEVNULL)

        def submit() -> None:
            held = f"slurm.extra.begin={HELD.partition('=')[2]}"
            options = ("--profile", "cpu", "--shards-per-task", 1, "--set", held)
            run_magicseg("submit", "describe", next(fresh).path, *options)

        def sbatch() -> None:
            for start in range(0, shards, 1000):
                array = f"--array=0-{min(1000, shards - start) - 1}"
                bare(["sbatch", "-o", "/dev/null", "-J", "bare", HELD, array, "--wrap", "sleep 1"])

        submitted = medians({"magicseg submit": submit, "sbatch": sbatch}, arguments.repeats)
        looked = medians(
            {
                "magicseg status": lambda: run_magicseg("status", runs[0].path),
                "magicseg submit, all queued": lambda: run_magicseg(
                    "submit", "describe", runs[0].path, "--profile", "cpu"
                ),
                "squeue": lambda: bare(["squeue", "-h", "-r", "-n", "bare"]),
                "magicseg --help": lambda: run_magicseg("--help"),
            },
            arguments.repeats,
        )
        cluster.cancel_all()
    arrays = -(-shards // 1000)
    print_table(
        f"{shards:,} shards, one per task",
        ("what", "seconds", "reference", "its seconds", "ratio"),
        [
            _row("magicseg submit", submitted, f"{arrays} bare sbatch", "sbatch"),
            _row("magicseg status", looked, "bare squeue -r", "squeue"),
            _row("magicseg submit, all queued", looked, "bare squeue -r", "squeue"),
            _row("magicseg status", looked, "magicseg --help", "magicseg --help"),
        ],
    )


def _row(name: str, seconds: dict[str, float], said: str, reference: str) -> tuple[object, ...]:
    base = seconds[reference]
    return name, seconds[name], said, base, seconds[name] / base


if __name__ == "__main__":
    main()
