"""``benchmarks/gpu.py``: the models' sizes, what is left out, failures, goals, and one stage of its CPU form."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magicseg.core.safe_path import VARIABLE as SAFE_PATH

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    """Import the benchmarks' modules, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for new in set(sys.modules) - before:
        if (FOLDER / f"{new}.py").is_file():
            del sys.modules[new]


class Loops:
    """Loops of a given duration, in seconds per item."""

    def __init__(self, stage, bare):
        self._seconds = {"stage": stage, "bare": bare}

    def warm_up(self):
        pass

    def stage(self, clock):
        return self._turn("stage", clock)

    def bare(self, clock):
        return self._turn("bare", clock)

    def _turn(self, which, clock):
        with clock:
            time.sleep(self._seconds[which])
        return 1

    def flops(self):
        return 5.0

    def remark(self):
        return ""


class Workload:
    """A stage that takes as long as a variant's settings say."""

    device, dtype = "cpu", "float32"

    @contextlib.contextmanager
    def opened(self, variant):
        if "error" in variant.settings:
            raise variant.settings["error"]
        yield Loops(variant.settings.get("seconds", 0.02), 0.01)


def rows_of(variants, *, seconds=60.0):
    from gpu_measure import measure_all

    rows = []
    measure_all(Workload(), variants, deadline=time.monotonic() + seconds, turns=2, emit=rows.append)
    return {row["variant"]: row for row in rows}


def test_rates_are_compared_with_the_bare_loop_and_the_defaults():
    from gpu_measure import BASELINE, Variant

    rows = rows_of([BASELINE, Variant("slow", "exact", {"seconds": 0.1})])
    assert 0.3 < rows["defaults"]["ratio"] < 0.7
    assert rows["defaults"]["speedup"] == 1
    assert 0.05 < rows["slow"]["speedup"] < 0.4
    assert rows["slow"]["flops"] == 5
    assert rows["slow"]["turns"] == 2


def test_a_setting_that_fails_is_listed_with_its_reason():
    from gpu_measure import BASELINE, Variant

    from magicseg.core.errors import BackendError

    failing = [
        Variant("ours", "exact", {"error": BackendError("no such kernel\nmore", hint="h")}),
        Variant("theirs", "lossy", {"error": RuntimeError("CUDA error: bad\nmore")}),
    ]
    rows = rows_of([BASELINE, *failing, Variant("after", "exact")])
    assert rows["ours"]["failure"] == "no such kernel"
    assert rows["theirs"]["failure"] == "RuntimeError: CUDA error: bad"
    assert rows["after"]["rate"] is not None


def test_settings_are_left_out_when_time_is_short_or_the_defaults_fail():
    from gpu_measure import BASELINE, Variant

    rows = rows_of([BASELINE, Variant("compiled", "exact", {}, 100.0), Variant("quick", "exact")])
    assert rows["compiled"]["failure"] == "left out: too little time"
    assert rows["quick"]["rate"] is not None
    rows = rows_of([Variant("defaults", "baseline", {"error": RuntimeError("no")}), Variant("quick", "exact")])
    assert rows["quick"]["failure"] == "left out: the default settings failed"


def test_the_covered_time_counts_overlapping_kernels_once():
    from gpu_measure import covered

    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 1.7), (3, 4)]) == pytest.approx(5)
    assert covered([]) == 0


def test_switches_are_those_that_the_back_ends_declare():
    from gpu_mask import combined, declared_variants
    from gpu_measure import Variant

    found = {variant.name: variant for variant in declared_variants("segmenter", "cuda")}
    assert found["segmenter: dtype float16"].kind == "lossy"
    assert not any("device" in name or "auto" in name for name in found)
    assert found["segmenter: compile encoder"].compile_seconds > 0
    switches = [
        Variant("a", "exact", {"segmenter": {"compile": True}}, 40.0),
        Variant("b", "lossy", {"detector": {"dtype": "float16"}}),
        Variant("c", "lossy", {"detector": {"dtype": "bfloat16"}}),
    ]
    assert combined("exact", switches, bf16=False).settings == {"segmenter": {"compile": True}}
    both = combined("both", switches, bf16=True)
    assert both.settings == {"segmenter": {"compile": True}, "detector": {"dtype": "bfloat16"}}
    assert (both.kind, both.compile_seconds) == ("lossy", 40.0)


def test_the_full_sizes_are_those_of_the_released_models(tmp_path):
    import random_models
    import torch

    def millions(name):
        pipe = random_models.draw_pipeline(name, tmp_path / name, torch.float16, "meta")
        return {part: round(count / 1e6) for part, count in random_models.parameters_of(pipe).items()}

    assert millions("sd15") == {"text_encoder": 123, "unet": 860, "vae": 84}
    assert millions("sdxl") == {"text_encoder": 123, "text_encoder_2": 695, "unet": 2567, "vae": 84}
    assert millions("flux")["transformer"] == 11901
    models = random_models.draw_grounding_dino("meta"), random_models.draw_sam("h", "meta")
    assert [round(sum(each.numel() for each in model.parameters()) / 1e6) for model in models] == [172, 641]


def test_goals_take_the_best_row_of_their_kind():
    from gpu import goals_of

    def row(kind, **values):
        return {"kind": kind, "settings": {}, "rate": None, "ratio": None, "speedup": None} | values

    segment = [
        row("baseline", rate=12.0),
        row("lossy", rate=40.0, settings={"segmenter": {"dtype": "float16"}}),
        row("exact", rate=16.0, settings={"segmenter": {"compile": True}}),
    ]
    sdxl = [row("baseline", ratio=0.99, speedup=1.0), row("exact", speedup=1.4), row("lossy", speedup=2.6)]
    records = [{"stage": "segment", "dtype": "bfloat16", "rows": segment}, {"stage": "sdxl", "rows": sdxl}]
    found = {(goal["stage"], goal["what"]): (goal["value"], goal["reached"]) for goal in goals_of(records)}
    assert found["segment", "images/s of ViT-H in bfloat16"] == (16.0, True)
    assert found["sdxl", "stage over bare loop"] == (0.99, True)
    assert found["sdxl", "best exact settings over defaults"] == (1.4, False)
    assert found["sdxl", "best settings over defaults"] == (2.6, True)
    assert found["train", "training loop over bare loop"] == (None, None)


@pytest.mark.slow
def test_the_cpu_form_measures_a_stage_and_writes_json(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, FOLDER / "gpu.py", "--device", "cpu", "--tiny", "--turns", "1", "--json", out]
    # Benchmarks import their neighbours. Tests that start a fork server in this process forbid that in children.
    environment = {name: value for name, value in os.environ.items() if name != SAFE_PATH}
    done = subprocess.run(
        [*command, "--stages", "segment"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(out.read_text())["stages"]
    assert all(row["rate"] > 0 and row["bare_rate"] > 0 and row["flops"] > 0 for row in stage["rows"])
    assert "segment: images of 64 px" in done.stdout
    assert "none of these figures says anything about a GPU" in done.stdout
