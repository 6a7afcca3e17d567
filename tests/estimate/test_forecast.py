"""The forecast's arithmetic equals a simulation of the queue, task by task."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.estimate.forecast import forecast

counts = st.integers(1, 400)
seconds = st.floats(0.01, 100)


def played(durations, parallel):
    """Return the end of the last task, if each task starts as soon as a slot is free."""
    places = [0.0] * parallel
    for duration in durations:
        heapq.heapreplace(places, places[0] + duration)
    return max(places)


@given(counts, st.integers(1, 9), st.integers(1, 7), st.integers(1, 20), seconds, seconds)
def test_a_forecast_equals_a_simulation_of_the_queue(samples, shard_size, per_task, parallel, sample, start):
    shards = [min(shard_size, samples - first) for first in range(0, samples, shard_size)]
    tasks = [shards[first : first + per_task] for first in range(0, len(shards), per_task)]
    durations = [start + sum(task) * sample for task in tasks]
    found = forecast(
        samples,
        shard_size=shard_size,
        shards_per_task=per_task,
        parallel=parallel,
        sample_seconds=sample,
        start_seconds=start,
    )
    assert found.tasks == len(tasks)
    assert found.busy_seconds == pytest.approx(sum(durations))
    assert found.wall_seconds == pytest.approx(played(durations, parallel))
    assert found.longest_seconds == pytest.approx(max(durations))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), seconds, seconds)
def test_a_task_takes_as_long_as_its_busiest_worker(shards, shard_size, per_task, workers, sample, start):
    tasks = [min(per_task, shards - first) for first in range(0, shards, per_task)]
    durations = [start + -(-task // workers) * shard_size * sample for task in tasks]
    found = forecast(
        shards * shard_size,
        shard_size=shard_size,
        shards_per_task=per_task,
        parallel=2,
        sample_seconds=sample,
        start_seconds=start,
        workers=workers,
    )
    assert found.busy_seconds == pytest.approx(sum(durations))
    assert found.wall_seconds == pytest.approx(played(durations, 2))


def test_nothing_left_takes_no_time():
    found = forecast(0, shard_size=4, shards_per_task=2, parallel=3, sample_seconds=1.0, start_seconds=9.0)
    assert (found.tasks, found.busy_seconds, found.wall_seconds) == (0, 0.0, 0.0)
