"""Kill workers and whole commands at random moments, resume, and compare the digest.

python tests/faults/kill_many.py --kills 200
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

PLUGINS = Path(__file__).parent / "plugins"
sys.path[:0] = [str(PLUGINS), str(Path(__file__).parents[1])]

from helpers.tiny_runs import do, make_run  # noqa: E402
from magicseg.run import STAGES, Run  # noqa: E402
from magicseg.run.claims import is_live  # noqa: E402
from magicseg.run.digest import logical_digest  # noqa: E402
from magicseg.run.verify import inspect  # noqa: E402

# Twelve shards; the back ends sleep before each batch, so that kills hit active workers.
SLOW = (
    "plan.shard_size=8",
    *(
        f"{stage}.{setting}"
        for stage in STAGES
        for setting in ("backend=faulty", "options.seconds=0.08", "batch_size=4")
    ),
)
KINDS = ("worker", "worker", "worker", "group", "parent")


def start(stage: str, path: Path) -> "subprocess.Popen[str]":
    """Start ``magicseg STAGE`` in a new process group."""
    paths = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", "from magicseg.cli import main; main()", stage, str(path), "--workers", "3"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_once(process: "subprocess.Popen[str]", kind: str, rng: random.Random) -> bool:
    """Send SIGKILL to a worker, to the command, or to the whole group. Return False if the process had ended."""
    if process.poll() is not None:
        return False
    if kind == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "parent":
        process.kill()
    else:
        workers = psutil.Process(process.pid).children(recursive=True)  # including the fork server
        if not workers:
            return False
        try:
            rng.choice(workers).kill()
        except psutil.NoSuchProcess:
            return False
    return True


def disturb(run: Run, stage: str, kills: int, rng: random.Random) -> Counter[str]:
    """Finish a stage with up to ``kills`` kills. Returns: the number of kills by kind."""
    done: Counter[str] = Counter()
    claims = run.path / "ledger" / stage / "claims"
    while True:
        process = start(stage, run.path)
        while process.poll() is None:
            if done.total() >= kills:
                break
            began = time.monotonic()
            while not any(claims.iterdir()) and process.poll() is None and time.monotonic() - began < 10:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.25)
            kind = rng.choice(KINDS)
            done[kind] += kill_once(process, kind, rng)
        _, err = process.communicate(timeout=120)
        if "Traceback" in err and "KeyboardInterrupt" not in err:
            raise AssertionError(err)
        if process.returncode == 0:
            return done


def check(run: Run, expected: str) -> None:
    """Check that a killed and resumed run equals an undisturbed run."""
    opened = Run.open(run.path)
    assert (actual := logical_digest(opened)) == expected, f"{run.path}: {actual}, not {expected}"
    assert inspect(opened).sound, inspect(opened).damage
    for stage in STAGES:
        ledger = opened.ledger(stage)
        assert len(ledger.commits()) == opened.plan.shards
        assert not any(is_live(ledger.claim_path(shard)) for shard in ledger.claimed())


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = make_run(Path(folder) / "undisturbed")
        do(undisturbed)
        expected = logical_digest(undisturbed)
        kills: Counter[str] = Counter()
        rounds = 0
        while kills.total() < options.kills:
            rounds += 1
            run = make_run(Path(folder) / f"round{rounds}", *SLOW)
            for stage in STAGES:
                kills += disturb(run, stage, rng.randint(1, 10), rng)
            check(run, expected)
            print(f"{kills.total()} kills in {rounds} runs, {dict(kills)}: every digest is equal", flush=True)


if __name__ == "__main__":
    main()
