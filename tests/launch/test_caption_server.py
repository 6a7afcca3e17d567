"""A describe task that starts its own server: start, address, end, and what its log shows."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

import magicseg as package
from helpers import small_caption_server
from helpers.small_caption_server import are_gone, servers_of
from helpers.stand_ins import record
from helpers.tiny_runs import do, make_run
from magicseg.core.documents import parse_yaml
from magicseg.core.errors import BackendError, ConfigError, RunError
from magicseg.launch import caption_server
from magicseg.launch.array import ArraySpec, array_script
from magicseg.launch.caption_server import refuse_misfit, serving
from magicseg.launch.logs import find_tasks
from magicseg.launch.profile import CaptionServer
from magicseg.launch.profile_files import load_profile, profile_text, validate_profile
from magicseg.launch.queue_state import read_queue_state
from magicseg.run import Run
from magicseg.run.digest import logical_digest

ROOT = Path(__file__).parents[2]
CODE = "import json, sys; from magicseg.launch.task import run_task; run_task(**json.loads(sys.argv[1]))"
PROGRAM = [sys.executable, small_caption_server.__file__, "--host", "{host}", "--port", "{port}"]
OPENAI = ("describe.backend=openai", "describe.options={model: tiny, retries: 1}", "describe.batch_size=8")


def server_of(*arguments, **keys):
    return {"command": [*PROGRAM, *map(str, arguments)], **keys}


@pytest.fixture
def run(tmp_path):
    """A run whose captioner has no address of its own."""
    return make_run(tmp_path / "run", "plan.samples=32", *OPENAI)


@pytest.fixture
def task(magicseg, tmp_path):
    """Start a describe task with a server in a separate process, as Slurm's job 7 does."""

    def start(run, shards, server, **variables):
        call = {"run": str(run.path), "stage": "describe", "shards": shards, "version": package.__version__}
        call |= {"server": server, "folder": str(tmp_path)}
        return subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(call)],
            env=magicseg.environment | {"SLURM_JOB_ID": "7"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def ended(process):
    """Wait for a task. Return its exit code and its log."""
    try:
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in text, text
    return process.returncode, text


def wait_until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def log_of(folder, job="7"):
    return (folder / f"{job}_server.log").read_text()


def port_in(text):
    return int(re.search(r"--port (\d+)", text)[1])


def sources(run):
    """Return who wrote the captions: "model" or "template"."""
    texts = run.store.read("describe/quality", 0, run.plan.samples)
    return {json.loads(text)["source"] for text in texts}


# ---------------------------------------------------------------------------------------------- start and end


def test_a_task_starts_its_server_waits_for_it_and_ends_it(run, task, tmp_path):
    code, text = ended(task(run, "0-1", server_of("--delay", 1.5, "--child", tmp_path / "ids")))
    assert code == 0, text
    assert set(run.ledger("describe").commits()) == {0, 1}
    assert float(re.search(r"the server answers after ([\d.]+) s", text)[1]) >= 1.5
    assert f"the server's log: {tmp_path}/7_server.log" in text
    assert "loading the model" in log_of(tmp_path)
    assert are_gone(tmp_path / "ids")
    assert not servers_of(str(tmp_path / "ids"))


def test_captions_and_fingerprints_are_those_of_a_server_that_was_started_otherwise(run, task, tmp_path):
    code, text = ended(task(run, "0-1", server_of()))
    assert code == 0, text
    server = CaptionServer.model_validate(server_of())
    other = make_run(tmp_path / "other", "plan.samples=32", *OPENAI)
    with serving(server, tmp_path / "log", stop=lambda: False, report=lambda text: None):
        address = os.environ["MAGICSEG_CAPTION_SERVER"]
        del os.environ["MAGICSEG_CAPTION_SERVER"]
        file = other.path / "magicseg.yaml"
        file.write_text(file.read_text().replace("base_url: null", f"base_url: {address}"))
        other = Run.open(other.path)
        assert other.config.describe.options["base_url"] == address
        do(other, "describe")
        os.environ["MAGICSEG_CAPTION_SERVER"] = address
    assert "MAGICSEG_CAPTION_SERVER" not in os.environ
    assert run.fingerprints["describe"].digest == other.fingerprints["describe"].digest
    for each in (run, other):
        do(each, "generate", "mask")
    assert logical_digest(run) == logical_digest(other)
    assert sources(run) == {"model"}


def test_the_server_of_the_task_replaces_the_address_in_the_settings(tmp_path, task):
    run = make_run(tmp_path / "run", "plan.samples=16", *OPENAI, "describe.options.base_url=http://127.0.0.1:9/v1")
    code, text = ended(task(run, "0", server_of()))
    assert code == 0, text


def test_the_sites_proxy_is_not_used_for_the_server(run, task):
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    code, text = ended(task(run, "0", server_of(), **proxies, no_proxy="localhost"))
    assert code == 0, text


def test_a_task_whose_shards_are_committed_starts_no_server(run, task, tmp_path):
    assert ended(task(run, "0", server_of()))[0] == 0
    (tmp_path / "7_server.log").unlink()
    code, text = ended(task(run, "0", server_of()))
    assert code == 0, text
    assert not (tmp_path / "7_server.log").exists()


def test_two_tasks_at_once_use_two_ports(run, task, tmp_path):
    both = [task(run, shard, server_of("--delay", 2), SLURM_JOB_ID=job) for shard, job in (("0", "7"), ("1", "8"))]
    (one, text), (other, more) = map(ended, both)
    assert (one, other) == (0, 0), text + more
    assert port_in(text) != port_in(more)
    assert set(run.ledger("describe").commits()) == {0, 1}
    assert len({log_of(tmp_path, job) for job in "78"}) == 2


def test_no_two_tasks_reserve_one_port_while_their_servers_load(monkeypatch):
    monkeypatch.setattr(caption_server, "_PORTS", range(23_000, 23_100))
    monkeypatch.setattr(caption_server.random, "sample", lambda ports, k: list(ports)[:3])
    with caption_server._reserved_port(0) as one, caption_server._reserved_port(0) as other:
        assert (one, other) == (23_000, 23_001)
    with caption_server._reserved_port(0) as again:
        assert again == 23_000


def test_a_warning_while_the_server_loads_ends_the_task_at_once(run, task, tmp_path):
    process = task(run, "0-1", server_of("--delay", 60, "--child", tmp_path / "ids"))
    wait_until((tmp_path / "ids").exists)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR2)
    code, text = ended(process)
    assert code == 75, text
    assert time.monotonic() - began < 10
    assert run.ledger("describe").claimed() == []
    assert not servers_of(str(tmp_path / "ids"))


def test_a_warning_to_every_process_of_the_job_does_not_end_the_server(run, task, tmp_path):
    process = task(run, "0-1", server_of("--child", tmp_path / "ids"))
    wait_until(lambda: run.ledger("describe").claimed())
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:  # as Slurm does
        one.send_signal(signal.SIGUSR2)
    code, text = ended(process)
    assert code in {0, 75}, text
    assert "cannot be reached" not in text
    assert "the task's server" not in text
    assert not servers_of(str(tmp_path / "ids"))


def test_a_task_that_is_killed_leaves_no_server(run, task, tmp_path):
    process = task(run, "0-1", server_of("--delay", 60, "--child", tmp_path / "ids"))
    ids = tmp_path / "ids"
    wait_until(lambda: ids.exists() and ids.read_text())
    assert not are_gone(ids)
    process.kill()
    process.wait()
    wait_until(lambda: are_gone(ids), 10)
    wait_until(lambda: not servers_of(str(ids)), 10)


@pytest.mark.slow
def test_a_pilot_starts_the_profiles_server_for_its_captions(run, magicseg, tmp_path):
    values = yaml.safe_load(profile_text("cpu"))
    values.setdefault("stages", {}).setdefault("describe", {})["server"] = server_of("--child", tmp_path / "ids")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    done = magicseg("estimate", run.path, "--pilot", 1, "--profile", "./site.yaml")
    assert done.code == 0, done.err
    assert set(run.ledger("describe").commits()) == {0}
    assert "loading the model" in (run.path / "jobs/pilot_server.log").read_text()
    assert are_gone(tmp_path / "ids")


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed(run, task, tmp_path):
    code, text = ended(task(run, "0", server_of("--stubborn", "--child", tmp_path / "ids")))
    assert code == 0, text
    assert are_gone(tmp_path / "ids")


# --------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (server_of("--unknown"), "unrecognized arguments: --unknown"),
        ({"command": ["/no/such/program", "{port}"]}, "/no/such/program: cannot be started: No such file"),
        (server_of(health="/ready", wait=1.0), "did not answer /ready with 200 within 1 s"),
        (server_of("--delay", 60, wait=1.0), "did not answer /health with 200 within 1 s"),
    ],
)
def test_a_server_that_does_not_start_ends_the_task_with_the_end_of_its_log(run, task, tmp_path, server, told):
    code, text = ended(task(run, "0-1", server))
    assert code == 2, text
    assert told in text
    assert "hint:  correct stages.describe.server" in text
    assert f"the whole log: less {tmp_path}/7_server.log" in text
    assert run.ledger("describe").claimed() == []
    assert run.ledger("describe").commits() == {}


def test_a_server_that_dies_ends_the_task_and_the_next_task_resumes(run, task):
    code, text = ended(task(run, "0-1", server_of("--die-after", 20)))
    assert code == 2, text
    assert "cannot be reached" in text
    assert "the task's server ended with exit code 9; the end of its log:" in text
    assert "the model was lost" in text
    assert set(run.ledger("describe").commits()) == {0}
    assert run.ledger("describe").claimed() == []
    assert ended(task(run, "0-1", server_of()))[0] == 0
    assert set(run.ledger("describe").commits()) == {0, 1}


def test_a_port_that_is_in_use_is_an_error_before_the_server_starts(run, task, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = ended(task(run, "0", server_of(port=port)))
    assert code == 2
    assert f"port {port} of this node is in use" in text
    assert not (tmp_path / "7_server.log").exists()


@pytest.mark.parametrize("name", ["LAB_API_KEY", "DOOR"])
def test_secrets_of_the_environment_are_not_shown_with_the_log(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "open-sesame")
    words = [sys.executable, "-c", f"import os; print('key', os.environ['{name}']); 1 / 0", "{port}"]
    server = CaptionServer(command=tuple(words))
    with (
        pytest.raises(BackendError) as caught,
        serving(server, tmp_path / "log", stop=lambda: False, report=lambda text: None, key="DOOR"),
    ):
        pass
    assert "key ***" in caught.value.message
    assert "ZeroDivisionError" in caught.value.message
    assert "open-sesame" not in caught.value.message


# ------------------------------------------------------------------------------------------------ the profile


VLLM = ["vllm", "serve", "Qwen/Qwen2.5-7B-Instruct", "--host", "{host}", "--port", "{port}"]


@pytest.mark.parametrize(
    "more",
    [
        ["--max-num-batched-tokens", "8192"],
        ["--max-num-batched-tokens=8192", "--tokenizer", "Qwen/Qwen2.5-7B-Instruct"],
        ["--api-key-file", "/home/me/key", "--enable-prompt-tokens-details", "--dtype", "bfloat16"],
        ["--override-generation-config", '{"temperature": 0.9}'],
    ],
)
def test_a_command_is_taken_as_it_is_and_only_host_and_port_are_replaced(more):
    profile = validate_profile({"stages": {"describe": {"gpus": 1, "server": {"command": [*VLLM, *more]}}}}, "x")
    server = profile.caption_server
    assert (server.port, server.health, server.wait) == (0, "/health", 600)
    assert server.words("127.0.0.1", 20_001) == [*VLLM[:4], "127.0.0.1", "--port", "20001", *more]
    assert profile.resources("describe").gpus == 1


def test_a_server_is_set_on_the_command_line_too():
    overrides = ["slurm.stages.describe.server.command=[llama-server, --port, '{port}']"]
    overrides.append("slurm.stages.describe.server.wait=60")
    assert load_profile("cpu", overrides).caption_server == CaptionServer(
        command=("llama-server", "--port", "{port}"), wait=60.0
    )


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({}, "stages.describe.server.command"),
        ("vllm serve", "stages.describe.server"),
        ({"command": "vllm serve --port {port}"}, "stages.describe.server.command"),
        ({"command": []}, "stages.describe.server.command"),
        ({"command": ["", "{port}"]}, "stages.describe.server.command"),
        ({"command": ["vllm", "a\nb", "{port}"]}, "must be one line"),
        ({"command": ["--port", "{port}"]}, "must begin with a program"),
        ({"command": ["vllm", "serve"]}, "must contain {port}"),
        ({"command": VLLM, "port": 70000}, "stages.describe.server.port"),
        ({"command": VLLM, "port": -1}, "stages.describe.server.port"),
        ({"command": VLLM, "wait": 0}, "stages.describe.server.wait"),
        ({"command": VLLM, "wait": "soon"}, "stages.describe.server.wait"),
        ({"command": VLLM, "health": "health"}, "stages.describe.server.health"),
        ({"command": VLLM, "health": "/a b"}, "stages.describe.server.health"),
        ({"command": VLLM, "prot": 1}, "stages.describe.server.prot"),
        ({"command": [*VLLM, "--api-key", "hunter2"]}, "must not contain a password or a key"),
        ({"command": [*VLLM, "--api-key=hunter2"]}, "must not contain a password or a key"),
        ({"command": [*VLLM, "--api-key", "123456"]}, "must not contain a password or a key"),
        ({"command": [*VLLM, "hf_" + "a" * 20]}, "must not contain a password or a key"),
    ],
)
def test_an_invalid_server_is_refused_naming_its_key(server, told):
    with pytest.raises(ConfigError) as caught:
        validate_profile({"stages": {"describe": {"server": server}}}, "site.yaml")
    assert told in caught.value.message
    assert "hunter2" not in caught.value.message
    assert "aaaa" not in caught.value.message


def test_only_the_describe_stage_has_a_server():
    with pytest.raises(ConfigError, match=r"stages\.generate\.server is not a key"):
        validate_profile({"stages": {"generate": {"server": {"command": VLLM}}}}, "site.yaml")


def test_a_server_changes_no_job_script(run):
    spec = ArraySpec(name="describe-0", tasks=[[0], [1]], parallel=2)
    plain, served = (
        array_script(run, "describe", validate_profile({"stages": {"describe": keys}}, "x"), spec, Path("/jobs"))
        for keys in ({}, {"server": {"command": VLLM}})
    )
    assert plain == served


def test_a_server_needs_the_captioner_that_uses_it_and_the_captioner_needs_an_endpoint(tmp_path, run):
    plain, served = (
        validate_profile({"stages": {"describe": keys}}, "x") for keys in ({}, {"server": {"command": VLLM}})
    )
    grammar = make_run(tmp_path / "grammar")
    refuse_misfit(grammar.config, plain)
    refuse_misfit(run.config, served)
    with pytest.raises(ConfigError, match=r"describe\.backend is grammar"):
        refuse_misfit(grammar.config, served)
    with pytest.raises(ConfigError, match=r"base_url is not set, and the profile starts no server"):
        refuse_misfit(run.config, plain)


def test_the_guides_describe_a_valid_profile_and_every_key():
    guides = [(ROOT / "docs" / name).read_text() for name in ("cluster.md", "describe.md")]
    for guide in guides:
        (block,) = re.findall(r"^    stages:\n(?:     .*\n)+", guide, re.MULTILINE)
        profile = validate_profile(parse_yaml(block, source="guide", hint="", numbers=False), "guide")
        assert profile.caption_server.words("h", 1)[:2] == ["vllm", "serve"]
    for key in CaptionServer.model_fields:
        assert f"| `{key}` |" in guides[1]


def test_the_servers_log_is_shown_by_logs(run, slurm):
    submission = record(run, "describe", ["0"], jobs=("101",))
    queue = read_queue_state(run)
    wanted = {"stage": None, "shard": None, "label": "101", "failed": False, "server": True}
    with pytest.raises(RunError, match="no log yet") as caught:
        find_tasks(queue, **wanted)
    assert "when its server starts" in caught.value.hint
    (submission.folder / "101_server.log").write_text("loading\n")
    ((_, path),) = find_tasks(queue, **wanted)
    assert path.read_text() == "loading\n"


def test_without_address_and_task_the_captioner_says_what_to_set(run):
    with pytest.raises(BackendError, match="base_url is not set") as caught:
        do(run, "describe", shards=[0])
    assert "magicseg.yaml" in caught.value.hint
