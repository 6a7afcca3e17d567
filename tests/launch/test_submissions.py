"""Records of submissions stay correct, even if a submission fails half-way."""

import errno
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.stand_ins import accounted, claim, queued, record
from helpers.tiny_runs import do
from magicseg.core.errors import ConfigError, DamageError, RunError, StoreError
from magicseg.core.shard_ranges import format_ranges
from magicseg.launch.follow_up import follow_up, missing_work
from magicseg.launch.jobs import ArrayJob, Submission, job_name, next_number, submissions, submitting
from magicseg.launch.planning import Request
from magicseg.launch.queue_state import read_queue_state
from magicseg.launch.slurm import SlurmError, SlurmSilence
from magicseg.launch.submit import submit
from magicseg.run import Run

line = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.none() | st.booleans() | st.integers() | line
shards = st.sets(st.integers(0, 99), min_size=1).map(format_ranges) | st.just("")


@st.composite
def records(draw):
    tasks = draw(st.lists(shards, min_size=1, max_size=5))
    count = draw(st.integers(1, len(tasks)))
    jobs = draw(st.lists(st.none() | st.integers(1, 10**9).map(str), min_size=count, max_size=count))
    arrays = tuple(
        ArrayJob(name=draw(st.from_regex("[a-z0-9-]+", fullmatch=True)), first=n, count=1, job=job)
        for n, job in enumerate(jobs)
    )
    return {
        "number": draw(st.integers(1, 9999)),
        "stage": draw(st.sampled_from(["describe", "train", "follow-up"])),
        "created": draw(st.datetimes()).isoformat(timespec="seconds"),
        "run": draw(line),
        "version": draw(line),
        "tasks": tuple(tasks),
        "arrays": arrays,
        "profile": draw(line),
        "resources": draw(st.dictionaries(line, values | st.dictionaries(line, line, max_size=2), max_size=3)),
        "parent": draw(st.none() | st.integers(1, 99)),
        "asked": draw(
            st.just({})
            | st.fixed_dictionaries({"profile": line, "overrides": st.lists(line), "resubmit": st.just(1)})
        ),
        "ended": draw(st.sampled_from([{}, {"COMPLETED": format_ranges(range(len(tasks)))}])),
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records())
def test_a_record_is_read_back_as_it_was_written(fresh, data):
    folder = fresh.path / "jobs/0001-any"
    folder.mkdir(parents=True, exist_ok=True)
    made = Submission(folder=folder, **data)
    made.write()
    assert submissions(Run(fresh.path, fresh.config)) == [made]


def test_submissions_come_oldest_first(fresh):
    for stage in ("mask", "describe", "train"):
        record(fresh, stage, ["0"])
    assert [(one.number, one.stage) for one in submissions(fresh)] == [(1, "mask"), (2, "describe"), (3, "train")]
    assert next_number(fresh) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"tasks": [], "arrays": [{}]}', "\x00\xff"])
def test_a_damaged_record_raises_damage_error_with_a_remedy(fresh, text):
    made = record(fresh, "describe", ["0"])
    (made.folder / "submission.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamageError) as caught:
        submissions(fresh)
    assert str(made.folder / "submission.json") in caught.value.message
    assert f"rm -r {made.folder}" in caught.value.hint


def test_a_record_with_invalid_fields_raises_damage_error(fresh):
    made = record(fresh, "describe", ["0"])
    file = made.folder / "submission.json"
    for change in ({"new": 1}, {"tasks": 3}, {"arrays": {"a": 1}}):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(DamageError):
            submissions(fresh)


def test_folders_that_are_not_submissions_are_ignored(fresh):
    (fresh.path / "jobs/notes").mkdir(parents=True)
    (fresh.path / "jobs/0007-describe").mkdir()  # left by a submit that was killed before it wrote its record
    assert submissions(fresh) == []
    assert next_number(fresh) == 8


# ----------------------------------------------------------------------------------------------- partial submissions


def test_a_submission_is_recorded_with_its_jobs(fresh, slurm):
    done = submit(
        fresh, Request(stage="describe", profile="cpu", shards_per_task=2, overrides=("slurm.array_size=2",))
    )
    (made,) = submissions(fresh)
    assert done.submissions == [made]
    assert made.tasks == ("0-1", "2-3", "4-5")
    assert [(array.first, array.count, array.job) for array in made.arrays] == [(0, 2, "101"), (2, 1, "102")]
    assert made.arrays[0].label(1) == "101_1"
    assert made.arrays[1].label(2) == "102"
    assert made.resources["memory"] == "1900M"
    assert any("6 shards in 3 tasks" in text for text in done.lines)
    assert len(slurm.calls("sbatch")) == 2


def test_if_sbatch_refuses_the_first_array_no_record_is_left(fresh, slurm):
    slurm.fails(
        "sbatch", "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed"
    )
    with pytest.raises(SlurmError, match="invalid partition specified") as caught:
        submit(fresh, Request(stage="describe", profile="cpu"))
    assert "slurm.partition=NAME" in caught.value.hint
    assert list((fresh.path / "jobs").iterdir()) == []
    slurm.heals("sbatch")
    assert submit(fresh, Request(stage="describe", profile="cpu")).submissions[0].number == 1


def test_if_sbatch_refuses_the_third_array_the_first_two_stay_recorded(fresh, slurm):
    slurm.fails("sbatch", "sbatch: error: Job violates accounting/QOS policy", call=3)
    request = Request(stage="describe", profile="cpu", shards_per_task=1, overrides=("slurm.array_size=2",))
    with pytest.raises(SlurmError, match="violates") as caught:
        submit(fresh, request)
    assert "--shards-per-task" in caught.value.hint
    (made,) = submissions(fresh)
    assert made.jobs == ["101", "102"]
    assert made.tasks == ("0", "1", "2", "3")
    slurm.says("squeue", "".join(queued(array, "0-1", "PENDING", job=array.job) for array in made.arrays))
    (rest,) = submit(fresh, request).submissions
    assert rest.all_shards() == {4, 5}


def test_a_submit_interrupted_in_sbatch_keeps_the_record_of_the_job(fresh, slurm, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("magicseg.launch.array.submit_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(fresh, Request(stage="describe", profile="cpu", shards_per_task=2))
    (made,) = submissions(fresh)
    assert made.jobs == []
    slurm.says("squeue", queued(made.arrays[0], "0-2", "PENDING", job="4711"))
    assert read_queue_state(fresh).shards_in_flight("describe") == set(range(6))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "--shards-per-task",
        ),
        ("Invalid account or account/partition combination specified", "slurm.account"),
        ("invalid partition specified: gpu", "slurm.partition"),
        ("Invalid qos specification", "slurm.qos"),
        ("Requested node configuration is not available", "slurm.memory"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "slurm.time"),
        ("Unable to contact slurm controller (connect failure)", "later"),
        ("Unspecified error", "--dry-run"),
    ],
)
def test_slurm_s_error_message_is_shown_with_a_remedy(fresh, slurm, words, hint):
    slurm.fails("sbatch", f"sbatch: error: Batch job submission failed: {words}")
    with pytest.raises(SlurmError) as caught:
        submit(fresh, Request(stage="describe", profile="cpu"))
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_if_a_stage_is_refused_the_previous_stages_stay_queued(fresh, slurm):
    slurm.fails("sbatch", "sbatch: error: Requested node configuration is not available", call=3)
    with pytest.raises(SlurmError) as caught:
        submit(fresh, Request(stage="all", profile="gpu"))
    assert "slurm.gpus" in caught.value.hint
    made = submissions(fresh)
    assert [one.stage for one in made] == ["describe", "generate"]
    queued_by_then = f"already queued: {made[0].names[0]} (job 101), {made[1].names[0]} (job 102)"
    assert caught.value.message.endswith(queued_by_then)
    assert f"magicseg submit all {fresh.path} submits the rest" in caught.value.hint
    assert f"magicseg cancel {fresh.path}" in caught.value.hint


def test_if_an_array_is_refused_the_error_names_the_arrays_queued_before(fresh, slurm):
    slurm.fails("sbatch", "sbatch: error: Job violates accounting/QOS policy", call=2)
    with pytest.raises(SlurmError) as caught:
        submit(fresh, Request(stage="describe", profile="cpu", shards_per_task=1, overrides=("slurm.array_size=3",)))
    assert caught.value.message.endswith(f"already queued: {submissions(fresh)[0].names[0]} (job 101)")


BANNER = """-----------------------------------------------------------------
          Welcome to the Example Cluster, since 2019
-----------------------------------------------------------------
--> Verifying valid submit host (login4)...OK
Your last job 4711 has ended.
"""


def test_a_banner_before_the_job_id_is_ignored(fresh, slurm):
    slurm.has_banner(BANNER)
    made = submit(fresh, Request(stage="all", profile="cpu", shards_per_task=2)).submissions
    assert [one.jobs for one in made] == [["101"], ["102"], ["103"], ["104"], ["105"], ["106"]]
    assert submissions(fresh) == made
    script = (made[3].folder / "train.sbatch").read_text()
    assert "--dependency=afterok:103\n" in script
    assert (made[0].folder / "101_2_submitted.pkl").exists()


def test_a_job_whose_id_was_not_printed_is_found_in_the_queue_by_its_name(fresh, slurm):
    (slurm.path / "sbatch").write_text("#!/bin/sh\necho welcome\n")
    name = job_name(fresh, "describe", 1, 0)
    ended = queued(name, "N/A", "CANCELLED", job="50")
    slurm.says("squeue", ended + queued(name, "N/A", "PENDING", job="77"))
    (made,) = submit(fresh, Request(stage="describe", profile="cpu")).submissions
    assert made.jobs == ["77"]


def test_if_sbatch_prints_no_job_id_the_error_shows_its_output_and_the_job_is_found_by_name(fresh, slurm):
    (slurm.path / "sbatch").write_text("#!/bin/sh\necho welcome\n")
    with pytest.raises(SlurmSilence, match="welcome") as caught:
        submit(fresh, Request(stage="describe", profile="cpu"))
    (made,) = submissions(fresh)
    assert f"squeue --me --name={made.names[0]}" in caught.value.hint
    assert f"{made.names[0]} (unconfirmed: its job id is unknown)" in caught.value.message
    slurm.says("squeue", queued(made.names[0], "0-5", "RUNNING", job="77"))
    assert [task.label for task in read_queue_state(fresh).active()] == [f"77_{index}" for index in range(6)]


def test_if_files_cannot_be_written_after_sbatch_the_job_is_cancelled(fresh, slurm, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(StoreError, match="No space left"):
        submit(fresh, Request(stage="describe", profile="cpu"))
    assert slurm.calls("scancel") == ["--quiet 101"]
    assert submissions(fresh) == []


def test_a_second_concurrent_submit_is_refused(fresh, slurm):
    with submitting(fresh), pytest.raises(RunError, match="another submission") as caught:
        submit(fresh, Request(stage="describe", profile="cpu"))
    assert "magicseg status" in caught.value.hint
    assert slurm.calls("sbatch") == []
    assert submit(fresh, Request(stage="describe", profile="cpu")).submissions


def test_a_run_path_with_characters_that_slurm_replaces_is_refused(tmp_path, fresh, slurm):
    odd = fresh.path.with_name("100% mine")
    fresh.path.rename(odd)
    for request in (Request(stage="describe", profile="cpu"), Request(stage="all", profile="cpu")):
        with pytest.raises(ConfigError, match="%"):
            submit(Run.open(odd), request)
    assert submissions(Run.open(odd)) == []
    assert slurm.calls("sbatch") == []


def test_a_submission_from_within_a_job_is_not_part_of_that_job(fresh, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    submit(fresh, Request(stage="describe", profile="cpu"))
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & slurm.environment_of("sbatch").keys()
    assert os.environ["SLURM_JOB_ID"] == "5", "the caller's environment stays"


# ------------------------------------------------------------------------------------------------------- housekeeping


def test_pickles_of_ended_submissions_are_removed_and_those_of_active_ones_stay(fresh, slurm):
    request = Request(stage="describe", profile="cpu", shards_per_task=2)
    (ended,) = submit(fresh, request).submissions
    assert len(list(ended.folder.glob("*.pkl"))) == 3
    (ended.folder / "101_0_0_log.out").write_text("a log")
    (active,) = submit(fresh, request).submissions  # the queue no longer knows the first submission
    slurm.says("squeue", queued(active.arrays[0], "0-2", "PENDING", job="102"))
    assert submit(fresh, request).submissions == []
    assert list(ended.folder.glob("*.pkl")) == []
    assert {path.name for path in ended.folder.iterdir()} >= {
        "101_0_0_log.out",
        "101_submission.sh",
        "submission.json",
    }
    assert len(list(active.folder.glob("*.pkl"))) == 3


def test_final_states_of_tasks_are_recorded_before_slurm_forgets_them(fresh, slurm):
    made = record(fresh, "describe", ["0", "1", "2"])
    (array,) = made.arrays
    slurm.says("sacct", accounted(array, "101_0", "TIMEOUT") + accounted(array, "101_1", "CANCELLED by 0"))
    submit(fresh, Request(stage="describe", profile="cpu"))
    slurm.says("sacct", "")
    assert submissions(fresh)[0].ended == {"TIMEOUT": "0", "CANCELLED": "1", "unknown": "2"}
    assert [task.kind for task in read_queue_state(fresh).tasks[:3]] == ["failed", "cancelled", "unknown"]


def test_claims_of_ended_tasks_are_released_with_a_failure_note_and_other_claims_stay(fresh, slurm):
    made = record(fresh, "describe", ["0-1", "2", "3"])
    paths = {
        shard: claim(fresh, "describe", shard, job)
        for shard, job in ((0, "101_0"), (2, "101_1"), (3, "999_0"), (4, ""))
    }
    slurm.says("squeue", queued(made.arrays[0], "1-2", "RUNNING") + queued(made.arrays[0], "0", "NODE_FAIL"))
    submit(fresh, Request(stage="describe", profile="cpu"))
    assert {shard for shard, path in paths.items() if path.exists()} == {2, 3, 4}
    failures = fresh.ledger("describe").failures()
    assert set(failures) == {0}
    assert failures[0] == "WorkerDied: task 101_0 ended while it was working on this shard"


def test_a_dead_worker_is_noted_even_long_after_its_death(fresh, slurm):
    made = record(fresh, "describe", ["0-5"])
    path = claim(fresh, "describe", 0, "101")
    os.utime(path, (0, 0))
    slurm.says("squeue", queued(made.arrays[0], "N/A", "FAILED"))
    submit(fresh, Request(stage="describe", profile="cpu"))
    assert not path.exists()
    assert fresh.ledger("describe").failures() == {0: "WorkerDied: task 101 ended while it was working on this shard"}


def test_if_sbatch_times_out_the_job_may_still_be_queued(fresh, slurm):
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    with pytest.raises(SlurmSilence, match="timed out"):
        submit(fresh, Request(stage="describe", profile="cpu"))
    (made,) = submissions(fresh)
    slurm.says("squeue", queued(made.arrays[0], "0-5", "RUNNING", job="55"))
    assert read_queue_state(fresh).shards_in_flight("describe") == set(range(6))
    again = submit(fresh, Request(stage="describe", profile="cpu"))
    assert again.submissions == []
    assert [one.number for one in again.waiting] == [1]


def test_a_dependency_leaves_out_failed_tasks(fresh, slurm):
    made = record(fresh, "describe", ["0-1", "2-3", "4-5"])
    slurm.says("squeue", queued(made.arrays[0], "0,2", "RUNNING") + queued(made.arrays[0], "1", "CANCELLED"))
    done = submit(fresh, Request(stage="all", profile="cpu"))
    generate = next(one for one in done.submissions if one.stage == "generate")
    script = (generate.folder / f"{generate.jobs[0]}_submission.sh").read_text()
    new = done.submissions[0].jobs[0]
    assert f"--dependency=afterok:101_0:101_2:{new}\n" in script


def test_too_small_tasks_are_enlarged_with_a_message(fresh, slurm):
    slurm.says("scontrol", "MaxArraySize = 1001\nMaxJobCount = 4\n")
    done = submit(fresh, Request(stage="describe", profile="cpu", shards_per_task=1))
    assert [made.tasks for made in done.submissions] == [("0-2", "3-5")]
    assert "describe: 3 shards per task, not 1: the number of tasks is limited" in done.lines[0]


def test_no_claim_is_released_while_the_queue_does_not_answer(fresh, slurm):
    made = record(fresh, "describe", ["0-5"])
    path = claim(fresh, "describe", 0, "101")
    (made.folder / "101_submitted.pkl").touch()
    slurm.fails("squeue", "Unable to contact slurm controller")
    submit(fresh, Request(stage="describe", profile="cpu", force=True))
    assert path.exists()
    assert (made.folder / "101_submitted.pkl").exists()
    assert submissions(fresh)[0].ended == {}


# ----------------------------------------------------------------------------------------------------- follow-up jobs


def test_a_follow_up_job_submits_missing_work_with_one_resubmission_less(fresh, slurm):
    request = Request(stage="describe", profile="cpu", overrides=("slurm.resubmit=2",), shards_per_task=3)
    first, after = submit(fresh, request).submissions
    assert slurm.calls("sbatch")[1].startswith("--parsable")
    assert after.asked["submissions"] == [first.number]
    do(fresh, "describe", shards=[0, 1, 2, 4])
    lines, again = follow_up(fresh, after.number)
    assert any("2 shards of describe: 3,5" in text for text in lines)
    second, third = again.submissions
    assert second.all_shards() == {3, 5}
    assert second.parent == third.parent == after.number
    assert third.asked["resubmit"] == 1
    assert third.asked["overrides"][-1] == "slurm.resubmit=0"


def test_a_follow_up_job_of_finished_work_submits_nothing(fresh, slurm):
    *_, after = submit(fresh, Request(stage="describe", profile="cpu", overrides=("slurm.resubmit=2",))).submissions
    do(fresh, "describe")
    slurm.forget_calls()
    lines, again = follow_up(fresh, after.number)
    assert again is None
    assert lines[-1] == "all that was submitted is done"
    assert slurm.calls("sbatch") == []


def test_follow_up_is_refused_for_other_submissions(fresh, slurm):
    made, *_ = submit(fresh, Request(stage="describe", profile="cpu")).submissions
    for number in (made.number, 99):
        with pytest.raises(RunError, match="not a follow-up job"):
            follow_up(fresh, number)


def test_missing_work_is_listed_by_stage(fresh, slurm):
    made = submit(fresh, Request(stage="all", profile="cpu", shards_per_task=3)).submissions
    do(fresh, "describe")
    do(fresh, "generate", shards=[0, 1])
    assert missing_work(fresh, made) == ["4 shards of generate: 2-5", "6 shards of mask: 0-5", "train", "evaluate"]
