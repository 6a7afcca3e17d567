"""Every task's state, from one squeue and at most one sacct call, also if these do not answer."""

import json
import math

import pytest

from helpers.stand_ins import accounted, queued, record
from helpers.tiny_runs import do
from magicseg.launch.jobs import submissions
from magicseg.launch.overview import cluster_status
from magicseg.launch.planning import Request
from magicseg.launch.queue_state import KINDS, job_summaries, read_queue_state, seconds_of
from magicseg.launch.slurm import SlurmError
from magicseg.launch.submit import submit

SIX = ("0", "1", "2", "3", "4", "5")


def kinds(queue):
    return [task.kind for task in queue.tasks]


def test_a_run_without_jobs_calls_no_slurm_command(fresh, slurm):
    queue = read_queue_state(fresh)
    assert (queue.tasks, queue.warnings, queue.asked) == ([], [], True)
    assert slurm.calls("squeue") == slurm.calls("sacct") == []


def test_one_squeue_and_one_sacct_whatever_the_number_of_tasks(fresh, slurm):
    first = record(fresh, "describe", ["0"] * 1500, jobs=("101", "102"))
    second = record(fresh, "generate", ["1"] * 500, jobs=("103",))
    slurm.says("squeue", queued(second.arrays[0], "3-499%20", "PENDING", job="103"))
    slurm.says("sacct", "".join(accounted(first.arrays[0], f"101_{n}", "COMPLETED") for n in range(750)))
    state = cluster_status(fresh)
    (asked,), (sacct,) = slurm.calls("squeue"), slurm.calls("sacct")
    for name in (*first.names, *second.names):
        assert name in asked
        assert name in sacct
    assert sum(sum(job["tasks"].values()) for job in state["jobs"]) == 2000
    assert state["jobs"][0]["tasks"]["completed"] == 750
    assert state["jobs"][2]["tasks"]["pending"] == 497


def test_accounting_is_not_queried_if_the_queue_knows_all_tasks(fresh, slurm):
    made = record(fresh, "describe", SIX)
    slurm.says("squeue", queued(made.arrays[0], "0-5", "PENDING"))
    assert kinds(read_queue_state(fresh)) == ["pending"] * 6
    assert slurm.calls("sacct") == []


def test_accounting_is_queried_since_the_first_submission_that_the_queue_forgot(fresh, slurm):
    made = record(fresh, "describe", SIX)
    read_queue_state(fresh)
    assert f"--starttime={made.created}" in slurm.calls("sacct")[0]


@pytest.mark.parametrize(
    ("indices", "pending"),
    [
        ("0-5", {0, 1, 2, 3, 4, 5}),
        ("0-5%2", {0, 1, 2, 3, 4, 5}),
        ("1,3-4%1", {1, 3, 4}),
        ("5", {5}),
        ("0-4:2", {0, 2, 4}),  # how Slurm may write evenly spaced tasks
        ("1-5:4%3", {1, 5}),
    ],
)
def test_ranges_of_pending_tasks_are_expanded(fresh, slurm, indices, pending):
    made = record(fresh, "describe", SIX)
    slurm.says("squeue", queued(made.arrays[0], indices, "PENDING"))
    assert {task.number for task in read_queue_state(fresh).active()} == pending
    assert read_queue_state(fresh).shards_in_flight("describe") == pending


def test_long_lists_of_tasks_arrive_whole(fresh, slurm):
    made = record(fresh, "describe", ["0"] * 1001)
    odd = [*range(1, 999, 2), 1000]
    slurm.says("squeue", queued(made.arrays[0], ",".join(map(str, odd)), "PENDING"))
    assert [task.number for task in read_queue_state(fresh).active()] == odd
    assert slurm.environment_of("squeue")["SLURM_BITSTR_LEN"] == "0", "Slurm would shorten them"


def test_a_job_of_one_task_has_no_index(fresh, slurm):
    made = record(fresh, "describe", ["0-5"], jobs=("107",))
    slurm.says("squeue", queued(made.arrays[0], "N/A", "RUNNING", job="107"))
    (task,) = read_queue_state(fresh).tasks
    assert (task.label, task.kind) == ("107", "running")


def test_the_second_array_goes_on_where_the_first_ends(fresh, slurm):
    made = record(fresh, "describe", SIX, jobs=("101", "102"))
    slurm.says("squeue", queued(made.arrays[1], "0", "RUNNING", job="102"))
    (task,) = read_queue_state(fresh).active()
    assert (task.label, task.number) == ("102_0", 3)
    assert read_queue_state(fresh).shards_in_flight("describe") == {3}


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("COMPLETED", "completed"),
        ("CANCELLED by 1000", "cancelled"),
        ("FAILED", "failed"),
        ("TIMEOUT", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("NODE_FAIL", "failed"),
        ("PREEMPTED", "failed"),
        ("BOOT_FAIL", "failed"),
        ("WORD_OF_ANOTHER_VERSION", "failed"),
    ],
)
def test_slurm_s_states_are_mapped_to_kinds(fresh, slurm, word, kind):
    made = record(fresh, "describe", ["0", "1"])
    slurm.says("sacct", accounted(made.arrays[0], "101_0", word, code="1:0"))
    task, other = read_queue_state(fresh).tasks
    assert task.kind == kind
    assert task.ending == f"{word.split()[0]} 1:0"
    assert other.kind == "unknown"


@pytest.mark.parametrize(
    ("word", "kind"), [("REQUEUED", "pending"), ("SUSPENDED", "running"), ("RUNNING", "running")]
)
def test_only_the_queue_decides_whether_a_task_is_active(fresh, slurm, word, kind):
    """Otherwise an accounting that lags behind, or lost a job's end, would keep its shards in flight forever."""
    made = record(fresh, "describe", ["0", "1"])
    slurm.says("sacct", accounted(made.arrays[0], "101_0", word))
    assert [task.kind for task in read_queue_state(fresh).tasks] == ["unknown", "unknown"]
    slurm.says("squeue", queued(made.arrays[0], "0", word))
    assert [task.kind for task in read_queue_state(fresh).tasks] == [kind, "unknown"]


def test_a_copy_of_a_run_has_no_jobs_in_the_queue(fresh, slurm, copy_of):
    made = record(fresh, "describe", ["0", "1"])
    slurm.says("squeue", queued(made.arrays[0], "0-1", "RUNNING"))
    copy = copy_of(fresh)
    assert read_queue_state(fresh).shards_in_flight("describe") == {0, 1}
    assert read_queue_state(copy, whole_queue=True).active() == []
    assert slurm.calls("squeue") == slurm.calls("squeue")[:1]


def test_a_job_with_the_same_name_and_another_id_belongs_to_another_run(fresh, slurm):
    made = record(fresh, "describe", ["0", "1"])
    slurm.says("squeue", queued(made.arrays[0], "0-1", "RUNNING", job="77"))
    assert read_queue_state(fresh).active() == []


def test_of_several_records_of_a_task_the_active_or_else_the_last_one_counts(fresh, slurm):
    made = record(fresh, "describe", ["0", "1"])
    array = made.arrays[0]
    slurm.says(
        "sacct",
        accounted(array, "101_0", "NODE_FAIL")
        + accounted(array, "101_0", "COMPLETED")
        + accounted(array, "101_1", "PREEMPTED"),
    )
    slurm.says("squeue", queued(array, "1", "RUNNING"))
    assert kinds(read_queue_state(fresh)) == ["completed", "running"]


@pytest.mark.parametrize("accounting", ["missing", "disabled"])
def test_without_accounting_the_ledger_tells_which_tasks_are_done(fresh, slurm, accounting):
    do(fresh, "describe", shards=[0, 1, 2])
    made = record(fresh, "describe", SIX)
    if accounting == "missing":
        slurm.lacks("sacct")
    else:
        slurm.fails("sacct", "Slurm accounting storage is disabled")
    slurm.says("squeue", queued(made.arrays[0], "5", "RUNNING"))
    queue = read_queue_state(fresh)
    assert kinds(queue) == ["completed"] * 3 + ["unknown"] * 2 + ["running"]
    assert (queue.warnings, queue.asked) == ([], True)


@pytest.mark.parametrize("queue", ["missing", "broken"])
def test_an_unreachable_queue_is_a_warning_in_status_and_an_error_in_submit(fresh, slurm, queue):
    record(fresh, "describe", SIX)
    if queue == "missing":
        slurm.lacks("squeue")
        words = "there is no squeue"
    else:
        slurm.fails("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
        words = "Unable to contact"
    state = cluster_status(fresh)
    assert any(words in warning for warning in state["warnings"])
    assert slurm.calls("sacct") == []
    with pytest.raises(SlurmError, match=words) as caught:
        submit(fresh, Request(stage="describe", profile="cpu"))
    assert "--force" in caught.value.hint
    assert slurm.calls("sbatch") == []
    assert submit(fresh, Request(stage="describe", profile="cpu", force=True)).submissions
    assert len(submissions(fresh)) == 2


@pytest.mark.parametrize(
    "words",
    ["under maintenance until noon", "magicseg|HEADER\nmagicseg|101|0-5,...|101|PENDING||0:00|1:00|NAME|None"],
)
def test_unparsable_squeue_output_is_a_warning_and_not_an_empty_queue(fresh, slurm, words):
    made = record(fresh, "describe", SIX)
    slurm.says_instead(words.replace("NAME", made.names[0]) + "\n")
    queue = read_queue_state(fresh)
    assert not queue.asked
    assert "not understood" in queue.warnings[0]


def test_unparsable_sacct_output_is_ignored(fresh, slurm):
    record(fresh, "describe", SIX)
    slurm.says("sacct", "under maintenance\n")
    assert kinds(read_queue_state(fresh)) == ["unknown"] * 6


def test_a_job_whose_id_was_never_recorded_is_found_by_its_name(fresh, slurm):
    made = record(fresh, "describe", SIX, jobs=(None,))
    slurm.says("squeue", queued(made.arrays[0], "0-5", "PENDING", job="4711"))
    queue = read_queue_state(fresh)
    assert [task.label for task in queue.active()] == [f"4711_{n}" for n in range(6)]
    assert job_summaries(queue)[0]["id"] == "4711"
    done = submit(fresh, Request(stage="describe", profile="cpu"))
    assert done.submissions == []
    assert "in the queue" in done.lines[-1]


def test_ended_submissions_are_not_queried_again(fresh, slurm):
    made = record(fresh, "describe", ["0", "1"])
    slurm.says(
        "sacct", accounted(made.arrays[0], "101_0", "COMPLETED") + accounted(made.arrays[0], "101_1", "FAILED")
    )
    again = submit(fresh, Request(stage="describe", profile="cpu")).submissions[0]
    slurm.says("squeue", queued(again.arrays[0], "0-5", "PENDING", job=again.jobs[0]))
    slurm.forget_calls()
    queue = read_queue_state(fresh)
    assert kinds(queue)[:2] == ["completed", "failed"]
    (asked,) = slurm.calls("squeue")
    assert made.names[0] not in asked
    assert slurm.calls("sacct") == []


def test_jobs_whose_work_is_already_done_are_queried_only_for_the_whole_queue(fresh, slurm):
    made = record(fresh, "describe", SIX)
    pickle = made.folder / "101_0_submitted.pkl"
    pickle.touch()
    do(fresh, "describe")
    slurm.says("squeue", queued(made.arrays[0], "0-5", "PENDING"))
    assert kinds(read_queue_state(fresh)) == ["completed"] * 6
    assert slurm.calls("squeue") == []
    assert len(read_queue_state(fresh, whole_queue=True).active()) == 6, "so that they can be cancelled"
    assert "describe is done" in submit(fresh, Request(stage="describe", profile="cpu")).lines[-1]
    submit(fresh, Request(stage="generate", profile="cpu"))
    assert pickle.exists(), "without it they would fail, and what waits for them would be cancelled"
    script = next(fresh.path.glob("jobs/*-generate/*_submission.sh")).read_text()
    assert "--dependency" not in script


def test_queued_shards_are_not_submitted_again(fresh, slurm):
    made = record(fresh, "describe", ["0-1", "2", "3-4"])
    slurm.says("squeue", queued(made.arrays[0], "0", "RUNNING") + queued(made.arrays[0], "2", "PENDING"))
    assert read_queue_state(fresh).shards_in_flight("describe") == {0, 1, 3, 4}
    done = submit(fresh, Request(stage="describe", profile="cpu"))
    assert done.submissions[0].all_shards() == {2, 5}
    assert any("4 in the queue already" in line for line in done.lines)
    assert read_queue_state(fresh).shards_in_flight("mask") == set()


def test_with_force_queued_shards_are_submitted_again(fresh, slurm):
    made = record(fresh, "describe", SIX)
    slurm.says("squeue", queued(made.arrays[0], "0-5", "PENDING"))
    done = submit(fresh, Request(stage="describe", profile="cpu", force=True))
    assert done.submissions[0].all_shards() == set(range(6))


def test_a_stage_after_jobs_in_the_queue_waits_for_them(fresh, slurm):
    made = record(fresh, "describe", SIX)
    slurm.says("squeue", queued(made.arrays[0], "0-5", "PENDING"))
    submit(fresh, Request(stage="generate", profile="cpu"))
    script = next(fresh.path.glob("jobs/*-generate/*_submission.sh")).read_text()
    assert "--dependency=afterok:101\n" in script


def test_reasons_for_waiting_are_counted_in_slurms_words(fresh, slurm):
    made = record(fresh, "describe", SIX)
    reason = "(Nodes required for job are DOWN, DRAINED or reserved | maintenance)"
    slurm.says(
        "squeue",
        queued(made.arrays[0], "0-3", "PENDING", reason="Resources")
        + queued(made.arrays[0], "4", "PENDING", reason=reason),
    )
    assert cluster_status(fresh)["waiting_for"] == {reason: 1, "Resources": 4}


def test_the_json_of_jobs_keeps_its_contract(fresh, slurm):
    one = record(fresh, "describe", SIX, jobs=("101", "102"))
    record(fresh, "train", [""], jobs=("103",))
    slurm.says(
        "squeue",
        queued(one.arrays[0], "1-2%1", "PENDING")
        + queued(one.arrays[0], "0", "RUNNING")
        + queued(one.arrays[1], "0", "CANCELLED", job="102")
        + queued(one.arrays[1], "1", "FAILED", job="102")
        + queued(one.arrays[1], "2", "COMPLETED", job="102"),
    )
    summaries = json.loads(json.dumps(job_summaries(read_queue_state(fresh))))
    none = dict.fromkeys(KINDS, 0)
    assert summaries == [
        {"id": "101", "stage": "describe", "state": "running", "tasks": none | {"running": 1, "pending": 2},
         "endings": {}},
        {"id": "102", "stage": "describe", "state": "failed",
         "tasks": none | {"cancelled": 1, "failed": 1, "completed": 1}, "endings": {"CANCELLED": 1, "FAILED": 1}},
        {"id": "103", "stage": "train", "state": "unknown", "tasks": none | {"unknown": 1}, "endings": {}},
    ]  # fmt: skip
    assert list(none) == ["running", "pending", "completed", "failed", "cancelled", "unknown"]


def test_running_tasks_are_shown_with_their_node_times_and_shards(fresh, slurm):
    do(fresh, "describe", shards=[0])
    made = record(fresh, "describe", ["0-2", "3-5"])
    slurm.says("squeue", queued(made.arrays[0], "0", "RUNNING"))
    assert cluster_status(fresh)["tasks"] == [
        {"id": "101_0", "stage": "describe", "nodes": "n1", "elapsed": "1:05", "left": "58:55", "shards": "0-2",
         "committed": 1},
    ]  # fmt: skip


def test_a_query_from_inside_a_job_is_not_affected_by_that_job(fresh, slurm, monkeypatch):
    record(fresh, "describe", SIX)
    for name in ("SLURM_JOB_ID", "SQUEUE_STATES", "SBATCH_PARTITION", "SLURM_CLUSTERS", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    submit(fresh, Request(stage="describe", profile="cpu"))
    for command in ("squeue", "sacct", "sbatch"):
        seen = slurm.environment_of(command)
        assert {name for name in seen if name.startswith(("SLURM", "SQUEUE", "SBATCH", "SACCT"))} <= {
            "SLURM_CONF",
            "SLURM_BITSTR_LEN",
        }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00", 0), ("1:05", 65), ("00:01:05", 65), ("1-02:03:04", 93784), ("2-00:00:00", 172800), ("5", 5)],
)
def test_elapsed_times_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "INVALID", "UNLIMITED", "1-", "a:b", "Partition_Limit"])
def test_an_invalid_elapsed_time_is_nan(text):
    assert math.isnan(seconds_of(text))
