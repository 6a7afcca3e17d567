"""Pilots complete a few regular shards of the run and record startup times."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_runs import change, do
from magicseg.core.errors import IncompleteError, PlanMismatch, StoreError
from magicseg.core.signals import StopFlag
from magicseg.estimate.measurements import measured, pilot, pilot_shards
from magicseg.run import STAGES, Run
from magicseg.run.digest import logical_digest


def run_pilot(run, shards):
    """Run a pilot and return the completed shards by stage."""
    done = {stage: [] for stage in STAGES}

    def report(stage, event):
        assert event.outcome in {"started", "committed", "failed"}
        if event.outcome != "started":
            done[stage].append(event.shard)

    pilot(run, shards, gpu=lambda _: None, report=report, stop=StopFlag())
    return done


def committed(run):
    return {stage: sorted(run.ledger(stage).commits()) for stage in STAGES}


def test_a_pilot_s_shards_are_kept_and_the_finished_run_has_the_same_bytes(fresh, expected_digest):
    assert run_pilot(fresh, 1) == {stage: [0] for stage in STAGES}
    assert committed(fresh) == {stage: [0] for stage in STAGES}
    do(fresh)
    assert logical_digest(fresh) == expected_digest


def test_a_pilot_completes_only_its_missing_shards(fresh):
    do(fresh, "describe", shards=[2, 4])
    assert run_pilot(fresh, 2) == {"describe": [], "generate": [2, 4], "mask": [2, 4]}
    assert run_pilot(fresh, 2) == {"describe": [], "generate": [], "mask": []}
    assert run_pilot(fresh, 3)["describe"] == [0]


def test_a_pilot_of_more_shards_than_the_plan_has_completes_all(fresh):
    run_pilot(fresh, 99)
    assert committed(fresh) == {stage: list(range(6)) for stage in STAGES}


def test_a_worker_s_startup_time_is_used_for_the_same_settings_only(fresh):
    assert measured(fresh, "describe", fresh.ledger("describe").commits(), gpu=None) is None
    run_pilot(fresh, 1)
    records = fresh.ledger("generate").commits()
    start = measured(fresh, "generate", records, gpu=None).start_seconds
    assert 0 < start < 60
    change(fresh, "generate.batch_size", 5)
    assert measured(Run.open(fresh.path), "generate", records, gpu=None).start_seconds is None


def test_a_failed_shard_of_a_pilot_is_reported_with_the_command_to_retry(faulty, fresh):
    change(fresh, "describe.backend", "faulty")
    change(fresh, "describe.options", {"fault": "raise", "at": [], "seconds": 0.0})
    with pytest.raises(IncompleteError, match="1 shards of describe are not done: 0") as error:
        run_pilot(Run.open(fresh.path), 1)
    assert error.value.hint == f"magicseg describe {fresh.path}"
    assert not (fresh.path / "estimate.json").exists()


def test_a_pilot_is_refused_if_committed_shards_have_other_settings(fresh):
    run_pilot(fresh, 1)
    change(fresh, "describe.batch_size", 5)
    with pytest.raises(PlanMismatch, match=r"describe\.batch_size"):
        run_pilot(Run.open(fresh.path), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"starts": {"generate": {}}}', '{"starts": {"mask": {"seconds": "x"}}}']
)
def test_a_damaged_estimate_file_is_reported_with_a_remedy(fresh, text):
    run_pilot(fresh, 1)
    (fresh.path / "estimate.json").write_text(text)
    with pytest.raises(StoreError, match=r"estimate\.json") as error:
        measured(fresh, "mask", fresh.ledger("mask").commits(), gpu=None)
    assert f"rm {fresh.path / 'estimate.json'}" in error.value.hint


def test_an_estimate_uses_the_shards_of_the_last_used_device(finished):
    commits = finished.ledger("generate").commits()
    gpu = {"gpu": "Big GPU"}
    mixed = {
        shard: dataclasses.replace(
            record, finished=f"2026-01-0{shard + 1}T00:00:00+00:00", versions=gpu if shard > 3 else {}
        )
        for shard, record in commits.items()
    }
    found = measured(finished, "generate", mixed, gpu=None)
    assert (found.device, found.shards) == ("Big GPU", 2)
    found = measured(finished, "generate", mixed, gpu=False)
    assert (found.device, found.shards, found.fitting) == ("CPU", 4, True)
    imported = {shard: dataclasses.replace(record, imported_from="x") for shard, record in commits.items()}
    assert measured(finished, "generate", imported, gpu=None) is None


shards = st.sets(st.integers(0, 30))


@given(st.integers(0, 12), shards, shards)
def test_a_pilot_takes_the_first_shards_whose_input_exists(finished_run, wanted, above, done):
    record = finished_run.ledger("describe").commits()[0]
    commits = dict.fromkeys(above & done, record)
    chosen = pilot_shards(wanted, above, commits, gpu=None)
    free = sorted(above - done)
    assert chosen == free[: len(chosen)]
    assert len(chosen) == min(max(wanted - len(commits), 0), len(free))


@pytest.mark.slow
def test_the_estimate_file_holds_plain_values(fresh):
    run_pilot(fresh, 1)
    starts = json.loads((fresh.path / "estimate.json").read_bytes())["starts"]
    assert set(starts) == set(STAGES)
    assert all(set(start) == {"seconds", "device", "host", "fingerprint"} for start in starts.values())
