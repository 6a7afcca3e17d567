"""Runs of each captioner: reproducible digests despite interruptions, and correct staleness."""

import json
import re
import subprocess
import sys
from itertools import count

import pytest
import yaml

from helpers.chat_server import BadServer, Reply, completion
from helpers.tiny_language_model import make_tiny_model
from helpers.tiny_runs import do, make_run
from magicseg.core.errors import BackendError, PlanMismatch
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.stages.worker import run_shards

ANSWERS = tuple(
    json.dumps({"with": f"A {look} {noun} far away in the mist.", "without": "Mist over still water."})
    for look in ("red", "blue")
    for noun in ("car", "house", "tree", "boat", "umbrella", "fish", "flower", "mushroom", "kite", "cup")
)


def answer(number, body):
    """Return a good answer, a bad answer or an error, depending on the prompt."""
    (noun,) = re.findall(r'use the word "(\w+)"', body["messages"][0]["content"])
    match body["seed"] % 5:
        case 0:
            return Reply(completion("no"))
        case 1:
            return Reply(completion(json.dumps({"with": f"A {noun}, and no more", "without": f"No {noun} there"})))
    return Reply(completion(json.dumps({"with": f"A grey {noun} {body['seed']}", "without": "Mist over water."})))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), answers=ANSWERS)


@pytest.fixture
def server():
    with BadServer(answer) as serving:
        yield serving


@pytest.fixture(params=["template", "transformers", "openai"])
def described(request, model, server, tmp_path):
    """Return a function that creates an empty run with a captioner."""
    options = {
        "template": {},
        "transformers": {"model": str(model), "device": "cpu", "dtype": "float32", "max_new_tokens": 16},
        "openai": {"base_url": server.url, "model": "tiny", "retries": 0},
    }[request.param]
    numbers = count()

    def make(**more):
        return make_run(
            tmp_path / f"run{next(numbers)}",
            "plan.samples=40",
            f"describe.backend={request.param}",
            *(f"describe.options.{key}={json.dumps(value)}" for key, value in {**options, **more}.items()),
        )

    return make


def interrupted_and_resumed(run):
    """Stop a run in the middle of the second shard, then finish its shards in reverse order."""
    asked = count()
    outcomes = []
    run_shards(
        run,
        "describe",
        range(run.plan.shards),
        report=lambda event: outcomes.append(event.outcome),
        should_stop=lambda: next(asked) > 7,
    )
    assert outcomes[-1] == "abandoned"
    assert run.ledger("describe").commits().keys() == {0}
    again = Run.open(run.path)
    do(again, "describe", shards=range(run.plan.shards)[::-1])
    do(again, "generate", "mask")
    return again


@pytest.mark.slow
def test_two_runs_have_the_same_digest_even_if_interrupted_and_resumed(described):
    first, second = described(), described()
    do(first)
    assert logical_digest(interrupted_and_resumed(second)) == logical_digest(first)
    texts = first.store.read("describe/captions", 0, 40)
    assert (second.store.read("describe/captions", 0, 40) == texts).all()
    quality = [first.store.read("describe/quality", 0, 40), second.store.read("describe/quality", 0, 40)]
    assert (quality[0] == quality[1]).all()
    entries = [json.loads(entry) for entry in quality[0]]
    assert {entry["status"] for entry in entries} == {"kept"}
    if "source" in entries[0]:
        assert {entry["source"] for entry in entries} == {
            "model",
            "template",
        } or first.config.describe.backend == "openai"
        assert {entry["attempts"] for entry in entries} >= {1, 2}


def test_changing_a_setting_that_affects_captions_makes_shards_stale(described):
    run = described()
    do(run, "describe", shards=[0])
    edit(run, max_tokens=60)
    with pytest.raises(PlanMismatch, match=r"describe\.options\.max_tokens is 60, was 75"):
        Run.open(run.path).checked_commits("describe")


def test_changing_the_endpoints_address_or_limits_keeps_shards_valid(model, server, tmp_path):
    run = make_run(
        tmp_path / "run",
        "describe.backend=openai",
        *(f"describe.options.{key}={value}" for key, value in {"base_url": server.url, "model": "tiny"}.items()),
    )
    do(run, "describe", shards=[0])
    with BadServer(answer) as moved:
        edit(run, base_url=moved.url, concurrency=2, timeout=7.0, api_key_env=None)
        do(Run.open(run.path), "describe", shards=[1])
    assert Run.open(run.path).checked_commits("describe").keys() == {0, 1}


def test_moved_weights_keep_shards_valid_and_changed_weights_do_not(tmp_path, model):
    moved = make_tiny_model(tmp_path / "moved", answers=ANSWERS)
    other = make_tiny_model(tmp_path / "other", answers=ANSWERS[:3])
    options = {"model": str(model), "device": "cpu", "dtype": "float32"}
    run = make_run(
        tmp_path / "run",
        "describe.backend=transformers",
        *(f"describe.options.{key}={value}" for key, value in options.items()),
    )
    before = run.fingerprints["describe"]
    edit(run, model=str(moved))
    assert Run.open(run.path).fingerprints["describe"] == before
    edit(run, model=str(other))
    assert Run.open(run.path).fingerprints["describe"] != before


@pytest.mark.slow
def test_a_dead_endpoint_stops_the_stage_and_the_stage_resumes_without_loss(tmp_path):
    dead = []

    def script(number, body):
        return Reply({"error": "gone"}, status=503) if dead else answer(number, body)

    options = {"model": "tiny", "retries": 0, "give_up_after": 3, "concurrency": 1}
    with BadServer(script) as server:
        run = make_run(
            tmp_path / "run",
            "describe.backend=openai",
            *(f"describe.options.{key}={value}" for key, value in {"base_url": server.url, **options}.items()),
        )
        do(run, "describe", shards=[0])
        dead.append(True)
        with pytest.raises(BackendError, match="gave no answer"):
            do(run, "describe")
        assert run.ledger("describe").commits().keys() == {0}
        assert run.ledger("describe").failures() == {}
        assert run.ledger("describe").claimed() == []
        dead.clear()
        do(run, "describe")
    assert len(run.ledger("describe").commits()) == run.plan.shards


def test_the_command_line_gives_a_hint_for_a_dead_endpoint(magicseg, tmp_path):
    options = {"base_url": "http://127.0.0.1:9/v1", "model": "tiny", "retries": "0"}
    sets = [f"--set=describe.options.{key}={value}" for key, value in options.items()]
    made = magicseg("init", "run", "--preset", "painted", "--set", "describe.backend=openai", *sets)
    assert made.code == 0, made.err
    done = magicseg("describe", "run", "--workers", 1)
    assert done.code == 2
    assert "cannot be reached" in done.err
    assert "is it running" in done.err


def test_a_key_in_a_setting_is_refused_and_not_printed(magicseg):
    sets = ["describe.backend=openai", "describe.options.base_url=http://127.0.0.1:9/v1", "describe.options.model=m"]
    sets = [f"--set={each}" for each in sets]
    made = magicseg("init", "run", "--preset", "painted", *sets, "--set", "describe.options.api_key_env=sk-secret")
    assert made.code == 2
    assert magicseg("init", "run", "--preset", "painted", *sets).code == 0
    edit(Run.open(magicseg.folder / "run"), api_key_env="sk-secret")
    for result in (made, magicseg("describe", "run")):
        assert "api_key_env: must be the NAME of an environment variable" in result.err
        assert "sk-secret" not in result.err + result.out


@pytest.mark.parametrize("backend", ["transformers", "openai"])
def test_init_and_status_load_no_model_library(tmp_path, backend, model):
    options = {"transformers": {"model": model}, "openai": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}[
        backend
    ]
    sets = [f"describe.options.{key}={value}" for key, value in options.items()]
    run = make_run(tmp_path / "run", f"describe.backend={backend}", *sets)
    code = (
        "import sys\n"
        "from magicseg.cli import main\n"
        "sys.argv = ['magicseg', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('loaded', sorted({'torch', 'transformers', 'openai', 'huggingface_hub'} & set(sys.modules)))"
    )
    init = ["init", str(tmp_path / "other"), "--config", str(run.path / "magicseg.yaml")]
    for arguments in (init, ["status", str(run.path)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded []"


def edit(run, **options):
    """Change the back end's options in the run's configuration file."""
    file = run.path / "magicseg.yaml"
    data = yaml.safe_load(file.read_text())
    data["describe"]["options"].update(options)
    file.write_text(yaml.safe_dump(data))
