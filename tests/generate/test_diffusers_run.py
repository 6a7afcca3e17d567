"""A run whose images come from a tiny diffusion model: the same digest, whatever happens on the way."""

import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.core.errors import PlanMismatch
from magicseg.run import Run
from magicseg.run.digest import logical_digest
from magicseg.stages.worker import run_shards


@pytest.fixture
def options(checkpoint):
    """A run's overrides."""

    def make(family="sd2", **changes):
        chosen = {"model": str(checkpoint(family)), "device": "cpu", "dtype": "float32", "steps": 2} | changes
        text = ", ".join(f"{key}: {value}" for key, value in chosen.items())
        return [
            "plan.samples=20",
            "plan.shard_size=7",
            "generate.backend=diffusers",
            "generate.batch_size=3",
            f"generate.options={{{text}}}",
        ]

    return make


def quality(run, shard=0):
    samples = run.plan.shard_range(shard)
    return run.store.read("generate/quality", samples.start, samples.stop)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "flux"])
def test_a_run_done_twice_has_one_digest(family, options, tmp_path):
    runs = [make_run(tmp_path / name, *options(family)) for name in ("one", "two")]
    do(runs[0])
    do(runs[1], "describe")
    do(runs[1], "generate", shards=[2, 0])
    do(Run.open(runs[1].path))
    assert logical_digest(runs[0]) == logical_digest(runs[1])
    assert all('"attempts":1' in text for text in quality(runs[0]))


@pytest.mark.slow
def test_a_run_that_was_stopped_within_a_shard_resumes_to_the_same_digest(options, tmp_path):
    undisturbed = make_run(tmp_path / "one", *options())
    do(undisturbed)
    run = make_run(tmp_path / "two", *options())
    do(run, "describe")
    asked = iter([False] * 6 + [True] * 99)
    outcomes = []
    run_shards(run, "generate", range(3), report=outcomes.append, should_stop=lambda: next(asked))
    assert [event.outcome for event in outcomes][-1] == "abandoned"
    assert len(run.ledger("generate").commits()) == 1
    do(Run.open(run.path))
    assert logical_digest(run) == logical_digest(undisturbed)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 4), ("options.steps", 3), ("options.cpu_threads", 2)])
def test_a_setting_that_changes_bytes_is_refused_on_committed_work(key, value, options, tmp_path):
    run = make_run(tmp_path / "run", *options())
    do(run, "describe", "generate")
    change(run, f"generate.{key}", value)
    with pytest.raises(PlanMismatch, match=f"generate.{key} is {value}"):
        Run.open(run.path).checked_commits("generate")


def test_a_checkpoint_that_is_gone_is_an_error_with_a_hint(options, tmp_path, magicseg):
    run = make_run(tmp_path / "run", *options())
    do(run, "describe")
    change(run, "generate.options", {"model": str(tmp_path / "gone"), "device": "cpu", "dtype": "float32"})
    done = magicseg("generate", run.path)
    assert done.code == 2
    assert "no such folder" in done.err
    assert "generate.options.model" in done.err
