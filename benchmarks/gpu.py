"""The stages on one GPU against bare loops of the libraries, and what each speed setting brings.

The models have the sizes of Stable Diffusion 1.5 and XL, FLUX.1-dev (with 2 of its 24 layers of T5), GroundingDINO
Swin-T, SAM ViT-H, and CLIP ViT-B/16 in training. Their weights are random, which does not affect the time. They are
written to a temporary folder (up to 28 GB at a time; ``TMPDIR`` chooses the disk) and loaded as in a run. Nothing is
downloaded.

For each stage, the default settings come first, then combinations, then each setting alone. The stage and a bare loop
with the same models, settings and inputs take turns. ``ratio`` is the stage's rate over the loop's in the same turn,
``times`` its rate over that with the default settings: medians over the turns. ``idle`` is the share of time in which
the GPU neither computes nor copies (torch.profiler), ``MFU`` the counted FLOPs over the card's peak rate. A setting
that fails is listed with its reason. When time is short, the last settings are left out.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --stages flux train --minutes 5
    python benchmarks/gpu.py --device cpu --tiny       # tiny models: tests the script, says nothing about speed
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import print_table

if TYPE_CHECKING:
    from gpu_measure import Workload

# Shares of the time.
_WEIGHTS = {"sd15": 4.0, "sdxl": 4.0, "flux": 6.0, "detect": 0.8, "segment": 1.4, "mask": 1.4, "train": 2.0}
STAGES = tuple(_WEIGHTS)
_GENERATE = ("sd15", "sdxl", "flux")
_END_SHARE = 0.05  # of a stage's time, kept for the end of its process

# (stages, what is compared, column, kinds, goal)
_GOALS: Sequence[tuple[Sequence[str], str, str, Sequence[str], float]] = (
    (_GENERATE, "stage over bare loop", "ratio", ("baseline",), 0.97),
    (_GENERATE, "best exact settings over defaults", "speedup", ("exact",), 1.5),
    (_GENERATE, "best settings over defaults", "speedup", ("exact", "lossy"), 2.5),
    (("segment",), "images/s of ViT-H in bfloat16", "rate", ("baseline", "exact", "lossy"), 15.0),
    (("train",), "training loop over bare loop", "ratio", ("baseline",), 0.95),
)


def workloads(device: str, *, tiny: bool) -> "dict[str, Workload]":
    """Return what can be measured, by name. Imports the model libraries."""
    from gpu_generate import generate_workloads
    from gpu_mask import mask_workloads
    from gpu_train import train_workloads

    found: list[Any] = [
        *generate_workloads(device, tiny=tiny),
        *mask_workloads(device, tiny=tiny),
        *train_workloads(device, tiny=tiny),
    ]
    return {each.name: each for each in found}


def _stage(name: str, device: str, tiny: bool, turns: int, seconds: float, rows: Path) -> None:
    """Measure one stage in this process, and append its rows to a file as they come."""
    deadline = time.monotonic() + seconds
    folder = rows.parent / name
    folder.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # so that compile times are those of a first run
    os.environ["HF_HUB_OFFLINE"] = "1"

    def emit(entry: Mapping[str, Any]) -> None:
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    import torch

    from magicseg.core.devices import first_line

    if device == "cpu":
        torch.set_num_threads(1)
    try:
        from gpu_measure import measure_all

        workload = workloads(device, tiny=tiny)[name]
        variants = [each for each in workload.variants if not (tiny and each.compile_seconds)]  # takes CPUs minutes
        emit({"title": workload.title, "unit": workload.unit, "dtype": workload.dtype})
        _refuse_small_disk(workload, folder)
        began = time.monotonic()
        workload.write(folder)
        emit({"write_seconds": time.monotonic() - began})
        measure_all(workload, variants, deadline=deadline, turns=turns, emit=emit)
    except Exception as error:  # the other stages go on
        emit({"failure": f"{type(error).__name__}: {first_line(error)}"})


def _refuse_small_disk(workload: "Workload", folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < workload.gigabytes:
        raise OSError(f"{folder} has {free:.0f} GB, the models need {workload.gigabytes:.0f}: set TMPDIR")


def _measured(name: str, arguments: argparse.Namespace, seconds: float, folder: Path) -> dict[str, Any]:
    """Measure one stage in a process of its own, which ends in time. Returns: its record."""
    rows = folder / f"{name}.jsonl"
    context = multiprocessing.get_context("spawn")
    values = (name, arguments.device, arguments.tiny, arguments.turns, seconds * (1 - _END_SHARE), rows)
    process = context.Process(target=_stage, args=values)
    process.start()
    process.join(seconds)
    record: dict[str, Any] = {"stage": name, "rows": []}
    if process.is_alive():
        process.kill()
        process.join()
        record["cut_off"] = "the time was over: settings that are not listed were not measured"
    elif process.exitcode:
        record["failure"] = f"its process ended with exit code {process.exitcode}"
    shutil.rmtree(folder / name, ignore_errors=True)
    for line in rows.read_text(encoding="utf-8").splitlines() if rows.exists() else ():
        entry = json.loads(line)
        if "variant" in entry:
            record["rows"].append(entry)
        else:
            record |= entry
    return record


def _print_stage(record: Mapping[str, Any]) -> None:
    """Print what was measured, and below it what was not, by reason."""
    title = f"{record['stage']}: {record.get('title', '')}"
    measured = [row for row in record["rows"] if row["rate"] is not None]
    rows = [
        [
            row["variant"],
            row["kind"],
            *(_text(row[name], digits) for name, digits in _COLUMNS.values()),
            str(row["turns"]),
        ]
        for row in measured
    ]
    if rows:
        print_table(title, ["settings", "kind", record["unit"], *list(_COLUMNS)[1:], "turns"], rows)
    else:
        print(f"\n{title}")
    reasons: dict[str, list[str]] = {}
    for row in record["rows"]:
        reasons.setdefault(row["failure"] or row["remark"], []).append(row["variant"])
    for reason, names in reasons.items():
        if reason:
            print(f"- {'; '.join(names)}: {reason}")
    for key in ("failure", "cut_off"):
        if key in record:
            print(f"- {record[key]}")


# heading: key of a row, digits; shares as percentages
_COLUMNS: Mapping[str, tuple[str, int]] = {
    "rate": ("rate", 3),
    "bare loop": ("bare_rate", 3),
    "ratio": ("ratio", 3),
    "times": ("speedup", 2),
    "idle": ("idle", -1),
    "MFU": ("utilisation", -1),
    "GiB": ("peak_gib", 1),
    "start s": ("start_seconds", 1),
}


def _text(value: float | None, digits: int) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.0f} %" if digits < 0 else f"{value:.{digits}f}"


def goals_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the measurements with the goals. ``value``: None if it was not measured."""
    by_name = {record["stage"]: record for record in records}
    found = []
    for stages, what, column, kinds, goal in _GOALS:
        for stage in stages:
            rows = by_name.get(stage, {}).get("rows", ())
            values = [row[column] for row in rows if row["kind"] in kinds and row[column] is not None]
            if what.endswith("bfloat16"):
                kept = by_name.get(stage, {}).get("dtype") == "bfloat16"
                values = [
                    row[column]
                    for row in rows
                    if row[column] is not None and _computes_in(row, "bfloat16", default=kept)
                ]
            best = max(values, default=None)
            reached = None if best is None else best >= goal
            found.append({"stage": stage, "what": what, "goal": goal, "value": best, "reached": reached})
    return found


def _computes_in(row: Mapping[str, Any], dtype: str, *, default: bool) -> bool:
    chosen = row["settings"].get("segmenter", {}).get("dtype")
    return default if chosen is None else bool(chosen == dtype)


def _machine(device: str) -> dict[str, Any]:
    """Return the device and the versions. Runs in a process of its own, so that the parent never uses the GPU."""
    import torch

    from magicseg.run.versions import library_versions

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device: --device cpu --tiny goes through the script without one")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, 1 thread"
    return {"device": name, "versions": library_versions() | {"torch": torch.__version__}}


def main() -> None:
    """Run the benchmark, print the tables, and write the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the script")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole run, at most")
    parser.add_argument(
        "--turns", type=int, choices=range(1, 11), default=2, help="of each loop, while there is time"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file, after every stage")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("full-size models take hours on a CPU: add --tiny")
    began = time.monotonic()
    document = run(arguments, began + 60 * arguments.minutes)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    for goal in (each for each in document["goals"] if each["stage"] in arguments.stages):
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        print(f"{goal['stage']}: {goal['what']}: {value} (goal: {goal['goal']:g} or more)")
    if arguments.tiny:
        print("Tiny models: none of these figures says anything about a GPU.")


def run(arguments: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Measure the chosen stages until ``deadline`` (of `time.monotonic`), and return the document."""
    from measure import in_fresh_process

    document: dict[str, Any] = {
        "format": 1,
        "tiny": arguments.tiny,
        "minutes": arguments.minutes,
        **in_fresh_process(_machine, arguments.device),
        "stages": [],
        "goals": goals_of(()),
    }
    print(f"{document['device']}, torch {document['versions']['torch']}")
    left = dict.fromkeys(stage for stage in STAGES if stage in arguments.stages)
    with tempfile.TemporaryDirectory(prefix="magicseg-gpu-") as temporary:
        for name in list(left):
            share = _WEIGHTS[name] / sum(_WEIGHTS[each] for each in left)
            del left[name]
            seconds = share * (deadline - time.monotonic())
            record = _measured(name, arguments, seconds, Path(temporary))
            _print_stage(record)
            document["stages"].append(record)
            document["goals"] = goals_of(document["stages"])
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


if __name__ == "__main__":
    main()
