"""Division of shards among tasks and of tasks among arrays: every shard once, within all limits."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.launch.grouping import (
    TASKS_PER_SLOT,
    contiguous_groups,
    median_seconds,
    shards_per_task,
    share_parallelism,
    split_arrays,
)
from magicseg.launch.profile import Profile
from magicseg.launch.profile_files import load_profile

counts = st.integers(1, 5000)
sizes = st.integers(1, 300)


@given(st.lists(st.integers(0, 10_000), max_size=200), sizes)
def test_groups_hold_every_shard_once_in_ascending_order(shards, size):
    groups = contiguous_groups(shards, size)
    assert [shard for group in groups for shard in group] == sorted(set(shards))


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=200), sizes)
def test_all_groups_except_the_last_are_full(shards, size):
    *full, last = contiguous_groups(shards, size)
    assert all(len(group) == size for group in full)
    assert 1 <= len(last) <= size


def test_a_gap_does_not_end_a_group():
    assert contiguous_groups([9, 1, 2, 7], 3) == [[1, 2, 7], [9]]
    assert contiguous_groups([], 3) == []


@given(st.integers(0, 3000), sizes)
def test_concatenated_arrays_equal_the_tasks(count, limit):
    tasks = [[number] for number in range(count)]
    assert [task for array in split_arrays(tasks, limit) for task in array] == tasks


@given(counts, sizes)
def test_arrays_are_as_few_and_as_equal_in_length_as_the_limit_allows(count, limit):
    lengths = [len(array) for array in split_arrays([[number] for number in range(count)], limit)]
    assert len(lengths) == math.ceil(count / limit)
    assert max(lengths) <= limit
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 1000), st.integers(1, 100))
def test_arrays_divide_the_limit_of_concurrent_tasks(parallel, arrays):
    shares = share_parallelism(parallel, arrays)
    assert len(shares) == arrays
    assert sum(shares) == max(parallel, arrays)
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1


@given(
    missing=st.integers(0, 100_000),
    parallel=st.integers(1, 500),
    minutes=st.none() | st.floats(0.1, 600),
    measured=st.none() | st.floats(0, 1e5),
    asked=st.none() | st.integers(1, 1000),
    of_profile=st.none() | st.integers(1, 1000),
    most_tasks=st.integers(1, 10_000),
    workers=st.integers(1, 8),
)
def test_tasks_never_exceed_the_queue_s_limit_and_are_never_smaller_than_requested(
    missing, parallel, minutes, measured, asked, of_profile, most_tasks, workers
):
    profile = Profile(parallel=parallel, task_minutes=minutes, shards_per_task=of_profile)
    limits = {"asked": asked, "most_tasks": most_tasks, "workers": workers}
    size = shards_per_task(missing, profile, "generate", measured=measured, **limits)
    assert size >= 1
    assert math.ceil(missing / size) <= most_tasks
    wanted = asked or of_profile
    if wanted:
        assert size == max(wanted, math.ceil(missing / most_tasks))
    else:
        assert size % workers == 0, "some workers would idle while others do one more shard"


@given(missing=counts, seconds=st.floats(0.5, 3000), minutes=st.floats(1, 300))
def test_a_task_gets_about_as_many_minutes_of_work_as_the_profile_sets(missing, seconds, minutes):
    profile = Profile(parallel=1, task_minutes=minutes)
    size = shards_per_task(missing, profile, "generate", measured=seconds, asked=None, most_tasks=10_000)
    assert size == 1 or size * seconds <= minutes * 60 + 1e-6
    assert size == missing or (size + 1) * seconds > minutes * 60 - 1e-6


def test_by_default_a_task_gets_work_for_half_its_time_limit():
    profile = Profile(parallel=1, time="2:00:00")
    assert shards_per_task(1000, profile, "mask", measured=60, asked=None, most_tasks=1000) == 60


def test_tasks_never_grow_so_large_that_parallel_slots_stay_empty():
    profile = Profile(parallel=32)
    assert shards_per_task(64, profile, "mask", measured=0.01, asked=None, most_tasks=1000) == 2


def test_a_task_of_several_workers_does_more_shards_in_the_same_time():
    profile = Profile(parallel=1, task_minutes=60)
    rest = {"asked": None, "most_tasks": 1000}
    assert shards_per_task(1000, profile, "mask", measured=60, workers=4, **rest) == 4 * 60
    assert shards_per_task(5, profile, "mask", measured=60, workers=4, **rest) == 8, "two for each"


def test_without_measurements_there_are_several_tasks_per_parallel_slot():
    profile = Profile(parallel=10)
    size = shards_per_task(1000, profile, "mask", measured=None, asked=None, most_tasks=1000)
    assert math.ceil(1000 / size) == 10 * TASKS_PER_SLOT


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_command_line_overrides_the_profile(name):
    profile = load_profile(name, ["slurm.shards_per_task=9"])
    assert shards_per_task(100, profile, "mask", measured=1.0, asked=4, most_tasks=1000) == 4
    assert shards_per_task(100, profile, "mask", measured=1.0, asked=None, most_tasks=1000) == 9


def test_imported_shards_are_not_used_as_time_measurements(finished_run):
    commits = finished_run.ledger("describe").commits()
    own = [dataclasses.replace(record, seconds=5.0) for record in commits.values()]
    imported = [dataclasses.replace(record, seconds=0.0, imported_from="elsewhere") for record in commits.values()]
    assert median_seconds([*own, *imported]) == 5.0
    assert median_seconds(imported) is None
