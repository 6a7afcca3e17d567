"""Training in several processes: the same curve, one log, one decision to stop, and what a kill costs."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.tiny_runs import Result, change
from magicseg.core.distributed import World
from magicseg.run import Run

STEPS = 60
SIZES = {
    "encoder.image_size": 32, "encoder.width": 16, "encoder.heads": 2, "encoder.embed_dim": 16,
    "decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1, "prompt_tokens": 2, "prompt_dropout": 0.1,
    "drop_path": 0.1, "batch_size": 8, "steps": STEPS, "warmup_steps": 2, "checkpoint_every": 10, "log_every": 1,
    "loader_workers": 0,
}  # fmt: skip


class Torchrun:
    """Two processes on this machine, or one on each of several pretended ones."""

    def __init__(self, environment):
        self.environment = {
            **environment,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "SLURM_PROCID": "7",
            "SLURM_NTASKS": "9",
            "SLURM_LOCALID": "3",
        }

    def start(self, *arguments, options=("--standalone", "--nproc-per-node=2")):
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process):
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            out, err = process.communicate(timeout=10)
            raise AssertionError(f"training hangs: {out}{err}") from None
        return Result(process.returncode, out, err)

    def __call__(self, *arguments, **options):
        return self.finish(self.start(*arguments, **options))


@pytest.fixture(scope="module")
def torchrun():
    return Torchrun({**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"})


@pytest.fixture(scope="module")
def untrained(finished_run, tmp_path_factory):
    """A run with a tiny model, ready to be trained. Not to be changed."""
    path = tmp_path_factory.mktemp("untrained") / "run"
    shutil.copytree(finished_run.path, path)
    run = Run.open(path)
    for name, value in SIZES.items():
        change(run, f"train.{name}", value)
    return Run.open(path)


@pytest.fixture
def run(untrained, copy_of):
    return copy_of(untrained)


@pytest.fixture
def run_with_readers(run):
    """As `run`; each rank's data are read by a process of its own."""
    change(run, "train.loader_workers", 1)
    return run


@pytest.fixture(scope="module")
def whole(untrained, torchrun, tmp_path_factory):
    """The path of a run that two processes trained, undisturbed. Not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(untrained.path, path)
    done = torchrun("-m", "magicseg", "train", path)
    assert done.code == 0, done.err
    return path


def rows(out):
    """The log without its speeds."""
    lines = (out / "train.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "samples_per_second"} for line in lines]


def digest(out):
    return json.loads((out / "model" / "model.json").read_text())["weights_digest"]


def steps_of_checkpoints(out):
    return [int(path.stem.removeprefix("step-")) for path in sorted((out / "checkpoints").glob("step-*.safetensors"))]


def await_step(out, step, process):
    """Wait until so many steps are logged."""
    deadline = time.monotonic() + 60
    while not (out / "train.jsonl").exists() or (out / "train.jsonl").read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rank(process, number):
    """The process of a rank, among torchrun's children."""
    children = psutil.Process(process.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(number))


def test_a_process_alone_is_a_world_of_one_whatever_slurm_says(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("RANK", "3")
    assert World.from_environment() == World(rank=0, size=1, local_rank=0, launched=False)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment() == World(rank=3, size=8, local_rank=1, launched=True)


PAIR_LOSSES = {
    "silence_weight": 10.0, "aligned_pair_weight": 1.0, "text_direction_weight": 1.0, "hard_negatives": 1,
}  # fmt: skip

# A low learning rate: AdamW's first steps have its size whatever the gradient, so where that is about zero
# they would turn rounding into other weights.
UNSHARED = {
    "prompt_dropout": 0.0,
    "drop_path": 0.0,
    "paste": 0.5,
    "batch_size": 6,
    "steps": 12,
    "log_every": 1,
    "learning_rate": 1e-4,
    **PAIR_LOSSES,
}
STRATEGIES = {"prompt_dropout": 0.0, "drop_path": 0.0, "batch_size": 4, "log_every": 1, **PAIR_LOSSES}


@pytest.fixture(scope="module")
def two_ranks(torchrun, tmp_path_factory):
    """What two ranks leave that compare batch norms and train in several ways, one after the other."""
    out = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "helpers" / "in_ranks.py"
    done = torchrun(script, "all", out, json.dumps(UNSHARED), json.dumps(STRATEGIES))
    assert done.code == 0, done.err
    return out


@pytest.mark.slow
def test_batch_norm_over_ranks_is_batch_norm_of_the_whole_batch(two_ranks):
    assert all((two_ranks / f"batch-norms-agree-{number}").exists() for number in (0, 1))


def test_two_ranks_have_the_curve_of_one_process(two_ranks, tmp_path):
    """But for rounding, though the ranks have other numbers of labelled pixels, present classes and pairs: losses are
    means over the whole batch, also by chunks of classes.
    """
    from helpers.in_ranks import train_squares
    from magicseg.core.distributed import ALONE

    train_squares(tmp_path / "one", UNSHARED, ALONE)
    one = rows(tmp_path / "one")
    for name in ("train", "class-chunks"):
        two = rows(two_ranks / name)
        assert [row["step"] for row in two] == list(range(1, 13)), "one process writes the log"
        for expected, row in zip(one, two, strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_a_loss_that_is_not_a_number_stops_all_ranks_at_the_same_step(two_ranks):
    out = two_ranks / "not-finite"
    first, second = (json.loads((out / f"rank{number}.json").read_text()) for number in (0, 1))
    assert first == second
    assert first["message"].startswith("the loss of step 3 is not a finite number")
    assert first["steps"] == 4, "read one step late"
    with safe_open(out / "checkpoints" / "step-00000002.safetensors", framework="pt") as file:
        assert first["weight"] == float(file.get_tensor("model/prompts.tokens").sum()), "the optimiser has moved"


@pytest.mark.slow
def test_a_sharded_model_has_the_curve_and_checkpoints_of_a_replicated_one(two_ranks):
    out = two_ranks / "strategies"
    expected = rows(out / "ddp")
    assert len(expected) == 8
    for name in ("fsdp", "fsdp-ddp", "ddp-fsdp"):
        for one, other in zip(expected, rows(out / name), strict=True):
            other.pop("evaluation", None)
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5), name
    whole, parted = (load_file(out / name / "model" / "model.safetensors") for name in ("ddp", "fsdp"))
    assert {name: value.shape for name, value in parted.items()} == {
        name: value.shape for name, value in whole.items()
    }
    difference = sum((parted[name].double() - value.double()).square().sum() for name, value in whole.items())
    assert difference < 1e-6 * sum(value.double().square().sum() for value in whole.values())


def test_a_second_training_in_a_folder_is_refused_in_all_ranks(two_ranks):
    for number in (0, 1):
        assert "is already training here" in (two_ranks / "twice" / f"refused-{number}").read_text()
    assert (two_ranks / "twice" / "model" / "model.json").exists()


@pytest.mark.slow
def test_killed_at_random_steps_in_any_number_of_processes_every_epoch_has_every_sample_once(torchrun, tmp_path):
    """What counts is what the finished training has learnt from: the steps up to the checkpoint that the next call
    goes on from.
    """
    generator = random.Random(0)
    settings = {"steps": 16, "batch_size": 6, "checkpoint_every": 3, "log_every": 1}
    learnt, done, last = [], 0, False
    for call, size in enumerate((1, 3, 2)):
        last = call == 2
        plan = {"call": call, "settings": settings, "rank": generator.randrange(size)}
        if not last:
            plan["step"] = done + generator.randrange(4, 8)
        options = ("--standalone", f"--nproc-per-node={size}")
        script = Path(__file__).parents[1] / "helpers" / "in_ranks.py"
        ended = torchrun(script, "train-until-killed", tmp_path, json.dumps(plan), options=options)
        assert (ended.code == 0) == last, ended.err
        steps = steps_of_checkpoints(tmp_path)[-1] - done
        done += steps
        for rank in range(size):
            read = (tmp_path / "seen" / f"{call}-{rank}.jsonl").read_text().splitlines()[:steps]
            assert len(read) == steps
            learnt += [tuple(pick) for line in read for pick in json.loads(line)]
    assert done == 16
    samples = sorted({sample for _, sample in learnt})
    assert len(samples) == 20
    assert len(learnt) == 16 * 6
    assert Counter(learnt) == Counter([(e, s) for e in range(4) for s in samples] + [p for p in learnt if p[0] == 4])
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 17))


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_evenly_is_refused(torchrun, run, tmp_path):
    change(run, "train.batch_size", 9)
    options = ("--standalone", "--nproc-per-node=2", "--redirects=3", f"--log-dir={tmp_path / 'logs'}")
    done = torchrun("-m", "magicseg", "train", run.path, options=options)
    assert "exitcode  : 2" in done.err
    said = next((tmp_path / "logs").glob("*/attempt_0/0/stderr.log")).read_text()
    assert "error: train.batch_size is 9, which 2 ranks cannot divide evenly" in said
    assert "hint:  set train.batch_size=10" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_finished_training_is_left_alone(torchrun, whole):
    card = json.loads((whole / "model" / "model.json").read_text())
    assert card["provenance"]["world_size"] == 2
    before = (whole / "train.jsonl").read_bytes(), (whole / "model" / "model.json").stat().st_mtime_ns
    assert before[0].count(b"\n") == STEPS, "one process writes the log"
    done = torchrun("-m", "magicseg", "train", whole)
    assert done.code == 0, done.err
    assert done.err.count("train: step 60, weights") == 1, "one process talks"
    assert ((whole / "train.jsonl").read_bytes(), (whole / "model" / "model.json").stat().st_mtime_ns) == before


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_next_start_goes_on_exactly(torchrun, run, whole):
    process = torchrun.start("-m", "magicseg", "train", run.path)
    await_step(run.path, 13, process)
    rank(process, 1).send_signal(signal.SIGUSR2)
    stopped = torchrun.finish(process)
    assert stopped.code == 0, stopped.err
    step = len(rows(run.path))
    assert f"training was interrupted after step {step} of {STEPS}" in stopped.err
    assert 13 <= step < STEPS
    assert steps_of_checkpoints(run.path)[-1] == step
    assert not (run.path / "model").exists()
    resumed = torchrun("-m", "magicseg", "train", run.path)
    assert resumed.code == 0, resumed.err
    assert rows(run.path) == rows(whole)
    assert digest(run.path) == digest(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_torchrun_stops_all_with_a_checkpoint(torchrun, run_with_readers, number):
    """torchrun passes it on to the ranks' whole process groups, so to their reading processes too. Some ranks may
    have it from Slurm already.
    """
    options = ("--standalone", "--nproc-per-node=2", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGUSR2")
    process = torchrun.start("-m", "magicseg", "train", run_with_readers.path, options=options)
    await_step(run_with_readers.path, 13, process)
    rank(process, 1).send_signal(number)
    process.send_signal(number)
    stopped = torchrun.finish(process)
    step = len(rows(run_with_readers.path))
    assert f"training was interrupted after step {step} of {STEPS}" in stopped.err
    assert steps_of_checkpoints(run_with_readers.path)[-1] == step
    assert stopped.code == 1, "torchrun's own: its reader looks at RUN/model/model.json"


@pytest.mark.slow
def test_a_killed_rank_costs_the_steps_since_the_checkpoint(torchrun, run_with_readers, whole):
    """Its readers live on when a rank is killed, for a moment."""
    run = run_with_readers
    options = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--nproc-per-node=2", "--max-restarts=2")
    process = torchrun.start("-m", "magicseg", "train", run.path, options=options)
    await_step(run.path, 13, process)
    rank(process, 0).kill()
    done = torchrun.finish(process)
    assert done.code == 0, done.err
    assert rows(run.path) == rows(whole)
    assert digest(run.path) == digest(whole)


@pytest.mark.slow
def test_reading_processes_end_with_a_killed_training(magicseg, run_with_readers):
    process = magicseg.start("train", run_with_readers.path)
    await_step(run_with_readers.path, 1, process)
    readers = psutil.Process(process.pid).children(recursive=True)
    assert len(readers) >= 3, "the resource tracker, the fork server, a reader"
    process.kill()
    process.communicate(timeout=30)
    assert psutil.wait_procs(readers, timeout=30)[1] == []


@pytest.mark.slow
def test_a_signal_to_the_group_of_all_stages_lets_training_have_its_last_batch(magicseg, run_with_readers):
    """The readers come from the fork server that a stage's workers came from."""
    run = run_with_readers
    assert magicseg("reset", "mask", run.path, "--yes").code == 0
    process = magicseg.start("run", run.path)
    await_step(run.path, 13, process)
    os.killpg(process.pid, signal.SIGTERM)
    stopped = magicseg.finish(process)
    step = len(rows(run.path))
    assert stopped.code == 1
    assert f"training was interrupted after step {step} of {STEPS}" in stopped.err
    assert steps_of_checkpoints(run.path)[-1] == step


@pytest.mark.slow
def test_training_resumes_from_one_process_to_two_nodes_and_back_to_one(magicseg, torchrun, run):
    process = magicseg.start("train", run.path)
    await_step(run.path, 13, process)
    process.send_signal(signal.SIGUSR1)
    stopped = magicseg.finish(process)
    step = len(rows(run.path))
    assert stopped.code == 1
    assert f"training was interrupted after step {step} of {STEPS}" in stopped.err
    assert f"hint:  magicseg train {run.path}" in stopped.err
    before = rows(run.path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}")
    nodes = [torchrun.start("-m", "magicseg", "train", run.path, options=options) for _ in range(2)]
    await_step(run.path, step + 13, nodes[0])
    psutil.Process(nodes[1].pid).children()[0].send_signal(signal.SIGUSR2)
    ends = [torchrun.finish(node) for node in nodes]
    assert [end.code for end in ends] == [0, 0], ends
    assert rows(run.path)[:step] == before
    step = len(rows(run.path))
    assert "".join(end.err for end in ends).count(f"interrupted after step {step} of {STEPS}") == 1
    assert magicseg("train", run.path).code == 0
    assert [row["step"] for row in rows(run.path)] == list(range(1, STEPS + 1))
    assert json.loads((run.path / "model" / "model.json").read_text())["provenance"]["world_size"] == 1
