"""A shard's life: bad samples are noted and left out, bad shards are noted and passed over."""

import json
import multiprocessing
import threading

import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.core.errors import BackendError, PlanMismatch
from magicseg.run import Run
from magicseg.run.claims import try_claim
from magicseg.run.digest import logical_digest
from magicseg.run.verify import inspect
from magicseg.stages.generate.stage import GenerateStage
from magicseg.stages.shard import execute_shard, load_backend
from magicseg.stages.worker import run_shards

pytestmark = pytest.mark.usefixtures("faulty")


def faulty_run(path, stage, fault, at=(), **more):
    return make_run(
        path,
        f"{stage}.backend=faulty",
        f"{stage}.options.fault={fault}",
        f"{stage}.options.at={list(at)}",
        *(f"{stage}.options.{key}={value}" for key, value in more.items()),
    )


def quality_of(run, stage, index):
    return json.loads(run.store.read(f"{stage}/quality", index, index + 1)[0])


@pytest.mark.parametrize(
    ("stage", "fault", "words"),
    [
        ("describe", "raise", "ValueError: cannot do [37]"),
        ("describe", "empty", "a caption is empty"),
        ("describe", "nothing", "NoneType"),
        ("describe", "quality", "not JSON serializable"),
        ("generate", "raise", "ValueError: cannot do [37]"),
        ("generate", "shape", "(31, 32, 3)"),
        ("generate", "dtype", "float64"),
    ],
)
def test_a_sample_that_fails_is_recorded_and_the_others_are_kept(tmp_path, finished_run, stage, fault, words):
    run = faulty_run(tmp_path / "run", stage, fault, [37])
    events = do(run)
    assert {event.outcome for event in events} == {"committed"}
    record = run.ledger(stage).commits()[2]
    assert record.dropped == {"error": 1}
    assert 5 not in record.kept_offsets()
    assert record.kept_count == 15
    entry = quality_of(run, stage, 37)
    assert (entry["status"], entry["reason"]) == ("dropped", "error")
    assert words in entry["detail"]
    last = run.ledger("mask").commits()[2]
    assert 5 not in last.kept_offsets()
    assert "error" not in last.dropped, "what an earlier stage dropped is not counted again"
    # The neighbours are what they would have been.
    for name in ("describe/captions", "mask/mask"):
        assert (run.store.read(name, 38, 96) == finished_run.store.read(name, 38, 96)).all()
    assert inspect(run).sound


def test_a_batch_with_too_few_answers_is_done_sample_by_sample_and_refused(tmp_path):
    run = faulty_run(tmp_path / "run", "describe", "too-few", [0])
    do(run, "describe", shards=[0])
    # One answer to each of the other samples, none to the first.
    assert run.ledger("describe").commits()[0].kept == "1-15"
    assert "0 answers to 1 request" in quality_of(run, "describe", 0)["detail"]


def test_a_shard_of_which_all_samples_fail_is_failed_and_the_others_are_done(tmp_path):
    run = faulty_run(tmp_path / "run", "describe", "raise", range(16, 32))
    outcomes = {event.shard: event.outcome for event in do(run, "describe")}
    assert outcomes == {0: "committed", 1: "failed", 2: "committed", 3: "committed", 4: "committed", 5: "committed"}
    assert run.ledger("describe").failures().keys() == {1}
    assert "all 16 samples failed: ValueError: cannot do" in run.ledger("describe").failures()[1]
    assert run.ledger("describe").claimed() == []
    blocked = {event.shard: event for event in do(run, "generate") if event.outcome == "blocked"}
    assert blocked.keys() == {1}
    assert "describe" in blocked[1].detail


def test_a_caption_that_cannot_be_stored_costs_its_sample_and_no_other(tmp_path):
    run = faulty_run(tmp_path / "run", "describe", "surrogate", [20])
    assert {event.outcome for event in do(run, "describe")} == {"committed"}
    assert run.ledger("describe").commits()[1].kept == "0-3,5-15"
    assert "surrogates" in quality_of(run, "describe", 20)["detail"]


def test_a_shard_of_which_all_samples_are_rejected_is_done(tmp_path):
    run = faulty_run(tmp_path / "run", "describe", "reject", range(16, 32))
    assert {event.outcome for event in do(run)} == {"committed"}
    assert run.ledger("describe").commits()[1].dropped == {"disliked": 16}
    assert run.ledger("mask").commits()[1].kept == ""
    assert run.ledger("mask").commits()[1].dropped == {}
    assert quality_of(run, "mask", 20) == {"status": "dropped", "reason": "upstream"}
    assert inspect(run).sound
    logical_digest(run)


def test_a_back_end_that_cannot_start_stops_the_stage_with_a_reason(tmp_path):
    run = faulty_run(tmp_path / "run", "describe", "start")
    with pytest.raises(BackendError, match="no such device"):
        do(run, "describe")
    assert run.ledger("describe").claimed() == []


def test_a_back_end_that_cannot_be_imported_is_refused(tmp_path):
    with pytest.raises(BackendError, match="no_such_module"):
        make_run(tmp_path / "run", "generate.backend=absent")


def test_a_shard_that_somebody_has_is_left_to_them(fresh):
    fresh.ledger("describe").create()
    with try_claim(fresh.ledger("describe").claim_path(2)):
        outcomes = {event.shard: event.outcome for event in do(fresh, "describe")}
    assert outcomes[2] == "busy"
    assert fresh.ledger("describe").commits().keys() == {0, 1, 3, 4, 5}


def test_doing_it_twice_does_nothing_the_second_time(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}
    assert do(finished) == []
    assert before == {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}


def test_a_stop_abandons_the_open_shard_between_batches(fresh):
    events, asked = [], iter([False, False, False, True, True])  # shard 0 starts; two batches of it; stop
    run_shards(fresh, "describe", range(6), report=events.append, should_stop=lambda: next(asked))
    assert [(event.shard, event.outcome) for event in events] == [(0, "started"), (0, "abandoned")]
    assert fresh.ledger("describe").commits() == {}
    assert fresh.ledger("describe").claimed() == []


def test_images_are_encoded_while_the_back_end_does_the_next_batch(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "store.image_codec=jpeg", "generate.batch_size=8")
    do(run, "describe")
    encoded, calls = threading.Event(), []
    packed, call = GenerateStage.packed, GenerateStage.call

    def pack(*arguments):
        encoded.set()
        return packed(*arguments)

    def answer(*arguments):
        calls.append(encoded.wait(30) if calls else True)  # the second batch of a shard waits for the first's images
        return call(*arguments)

    monkeypatch.setattr(GenerateStage, "packed", pack)
    monkeypatch.setattr(GenerateStage, "call", answer)
    assert [event.outcome for event in do(run, "generate", shards=[0])] == ["committed"]
    assert calls == [True, True]


def test_work_on_stale_ground_is_refused(finished):
    finished.reset("mask")
    change(finished, "describe.batch_size", 8)
    with pytest.raises(PlanMismatch, match=r"describe\.batch_size is 8, was 4"):
        do(Run.open(finished.path), "mask")
    assert finished.ledger("mask").commits() == {}


def _write_again_and_again(path, stage, shard, start):
    run = Run.open(path)
    backend = load_backend(run, stage)
    start.wait()
    for _ in range(15):
        execute_shard(run, stage, shard, backend, lambda: False)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["describe", "generate", "mask"])
def test_two_writers_of_one_shard_without_any_claim_lose_nothing(finished, expected_digest, stage):
    before = finished.ledger(stage).commits()
    finished.ledger(stage).take_back([1])
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [
        context.Process(target=_write_again_and_again, args=(finished.path, stage, 1, start)) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert inspect(Run.open(finished.path)).sound
    assert finished.ledger(stage).commits()[1].files == before[1].files
    assert logical_digest(Run.open(finished.path)) == expected_digest
