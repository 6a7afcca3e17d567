"""The rate of a stage, and the remaining time at that rate."""

import datetime
import json

import pytest

from helpers.tiny_runs import do
from magicseg.run.ledger import CommitRecord
from magicseg.run.progress import run_status

NOW = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def rate_of(fresh, monkeypatch):
    """Return a function from shards (end in seconds ago, duration) to the rate of the first stage."""
    do(fresh, "describe")
    commits = list(fresh.ledger("describe").commits().values())

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    monkeypatch.setattr("magicseg.run.progress.datetime.datetime", Clock)

    def rate(*shards):
        chosen = {
            number: CommitRecord(
                **vars(record)
                | {"finished": (NOW - datetime.timedelta(seconds=ago)).isoformat(), "seconds": seconds, "samples": 16}
            )
            for number, (record, (ago, seconds)) in enumerate(zip(commits, shards, strict=False))
        }
        state = run_status(fresh, {"describe": chosen, "generate": {}, "mask": {}})["stages"]["describe"]
        return state["rate"], state["eta_seconds"]

    return rate


def test_pauses_and_the_time_since_the_last_shard_do_not_slow_the_rate(rate_of):
    assert rate_of((600, 2)) == (8.0, 10.0)
    assert rate_of((600, 2), (30, 2)) == (8.0, 8.0)


def test_the_rates_of_parallel_shards_add_up(rate_of):
    assert rate_of((10, 99), (10, 99)) == (0.32, 200.0)
    assert rate_of((60, 99), (110, 49), (10, 99)) == (round(48 / 150, 3), 150.0)


def test_several_short_shards_in_one_second_do_not_inflate_the_rate(rate_of):
    assert rate_of(*[(10, 0.25)] * 4) == (64.0, 0.5)


def test_without_recent_work_there_is_no_rate(rate_of):
    assert rate_of() == (None, None)
    assert rate_of((1000, 2)) == (None, None)


def test_the_rate_is_a_number_in_json(fresh):
    do(fresh, "describe", shards=[0])
    assert json.dumps(run_status(fresh), allow_nan=False)
