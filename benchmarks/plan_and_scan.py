"""Planning and scanning 1,000,000 samples (15,625 shards of 64) takes seconds and little memory.

References, measured in the same run:

- plan: drawing the same table with numpy and saving it;
- commits: writing the same bytes to plain files, without and with a flush to disk for each;
- scans: a bare loop over the same files with ``json.loads``, without checksums (three loops for three stages);
- compaction: deleting the same number of plain files.

Ratios are magicseg's seconds over the reference's.

    python benchmarks/plan_and_scan.py
    python benchmarks/plan_and_scan.py --samples 64000 --repeats 3
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measure import in_fresh_process, medians, peak_mib, print_table, timed

from magicseg.config.loading import load_config
from magicseg.core.files import to_json
from magicseg.run import STAGES, Run
from magicseg.run.ledger import CommitRecord, Ledger
from magicseg.run.progress import run_status
from magicseg.run.versions import library_versions
from magicseg.store.plan import write_plan


def _plan(folder: Path, samples: int, shard_size: int) -> tuple[float, float, float]:
    """Return seconds of creating the run and of the plan alone, and MiB in addition to the imports."""
    overrides = [f"plan.samples={samples}", f"plan.shard_size={shard_size}"]
    config = load_config(preset="painted", overrides=overrides)
    Run.create(folder.with_name("small"), load_config(preset="painted"))  # so that all libraries are imported
    before = peak_mib()
    seconds = timed(lambda: Run.create(folder, config))
    memory = peak_mib() - before
    run = Run.open(folder)
    alone = timed(lambda: write_plan(folder.with_name("plan"), config, run.vocabulary))
    return seconds, alone, memory


def _bare_plan(folder: Path, samples: int) -> tuple[float, float]:
    before = peak_mib()
    draw = np.random.default_rng(0)
    seconds = timed(lambda: np.save(folder / "bare.npy", draw.integers(1, 11, (samples, 1), dtype=np.uint16)))
    return seconds, peak_mib() - before


def _record(shard: int, fingerprint: str, shard_size: int) -> CommitRecord:
    return CommitRecord(
        shard=shard,
        fingerprint=fingerprint,
        samples=shard_size,
        kept=f"0-20,22-{shard_size - 1}",
        dropped={"no-difference": 1},
        files={
            f"mask/mask/{shard}.0.0": (f"{shard:064x}", 123_456),
            f"mask/quality/{shard}": (f"{shard + 1:064x}", 2_345),
        },
        seconds=12.3456,
        peak_memory=987_654_321,
        finished="2025-01-01T00:00:00+00:00",
        host="node0123",
        job="4567",
        versions=library_versions(),
    )


def _commit_all(run: Run, stage: str) -> float:
    ledger, fingerprint = run.ledger(stage), run.fingerprints[stage]
    records = [_record(shard, fingerprint.digest, run.plan.shard_size) for shard in range(run.plan.shards)]
    return timed(lambda: [ledger.commit(record, fingerprint) for record in records])


def _bare_files(folder: Path, contents: list[bytes], *, flush: bool) -> None:
    folder.mkdir()
    for number, content in enumerate(contents):
        with (folder / f"{number:08d}.json").open("wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())


def _loop_over_files(ledger: Ledger) -> list[object]:
    folder = ledger.folder / "commits"
    found = []
    for name in sorted(os.listdir(folder)):
        with open(folder / name, "rb") as file:
            found.append(json.loads(file.read()))
    return found


def _loop_over_lines(ledger: Ledger) -> list[object]:
    return [json.loads(line) for line in ledger.compact_path.read_bytes().splitlines()]


def _compact(ledger: Ledger) -> None:
    ledger.compact(ledger.commits())


def _scan_memory(path: Path) -> float:
    run = Run.open(path)
    assert run.plan.shards
    before = peak_mib()
    run_status(run)
    return peak_mib() - before


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "run"
        seconds, alone, memory = in_fresh_process(_plan, path, arguments.samples, arguments.shard_size)
        bare_seconds, bare_memory = in_fresh_process(_bare_plan, folder, arguments.samples)
        run = Run.open(path)
        shards = run.plan.shards
        print_table(
            f"plan {arguments.samples:,} samples, {shards:,} shards (one repeat, fresh process)",
            ["", "seconds", "memory MiB", "ratio"],
            [
                ["Run.create: plan, store, ledgers", seconds, memory, seconds / bare_seconds],
                ["write_plan: draw by sample, save, checksums, flush", alone, "", alone / bare_seconds],
                ["numpy draw and save", bare_seconds, bare_memory, 1.0],
            ],
        )

        commit_seconds = {stage: _commit_all(run, stage) for stage in STAGES}
        ledger = run.ledger("mask")
        contents = [to_json(_record(shard, "f" * 64, arguments.shard_size).__dict__) for shard in range(shards)]
        plain = timed(lambda: _bare_files(folder / "plain", contents, flush=False))
        flushed = timed(lambda: _bare_files(folder / "flushed", contents, flush=True))
        seconds = sorted(commit_seconds.values())[1]
        print_table(
            f"write {shards:,} commit records (median of {len(STAGES)} stages)",
            ["", "seconds", "records/s", "ratio to flushed"],
            [
                ["Ledger.commit: temporary, flush, link, flush", seconds, shards / seconds, seconds / flushed],
                ["plain files, each flushed", flushed, shards / flushed, 1.0],
                ["plain files", plain, shards / plain, plain / flushed],
            ],
        )

        _scans("single files", run, ledger, arguments.repeats, _loop_over_files)
        compacting = sorted(timed(partial(_compact, run.ledger(stage))) for stage in STAGES)[1]
        deleting = timed(lambda: [path.unlink() for path in sorted((folder / "flushed").iterdir())])
        print_table(
            f"compact {shards:,} records into one file (median of {len(STAGES)} stages)",
            ["", "seconds", "ratio"],
            [
                ["Ledger.commits and Ledger.compact", compacting, compacting / deleting],
                ["deleting as many plain files", deleting, 1.0],
            ],
        )
        _scans("compacted", run, ledger, arguments.repeats, _loop_over_lines)


def _scans(title: str, run: Run, ledger: Ledger, repeats: int, loop: object) -> None:
    middle = run.plan.shards // 2
    functions = {
        "bare loop with json.loads": lambda: loop(ledger),  # type: ignore[operator]
        "Ledger.commits (with checksums)": ledger.commits,
        "run_status (all three stages)": lambda: run_status(run),
        "Ledger.committed (one shard)": lambda: ledger.committed(middle),
    }
    found = medians(functions, repeats)
    reference = found["bare loop with json.loads"]
    memory = in_fresh_process(_scan_memory, run.path)
    print_table(
        f"scan {run.plan.shards:,} records, {title} (median of {repeats}; run_status needs {memory:.0f} MiB)",
        ["", "seconds", "ratio"],
        [
            [name, seconds, seconds / reference / (len(STAGES) if name.startswith("run_status") else 1)]
            for name, seconds in found.items()
        ],
    )


if __name__ == "__main__":
    main()
