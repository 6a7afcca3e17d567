"""One reason for nearly all samples stops a stage; a third of them is a warning."""

import pytest

from helpers.tiny_runs import LIMITED, change, do, make_run
from magicseg.core.errors import LimitReached
from magicseg.run import Run
from magicseg.run.drop_rates import Shares
from magicseg.run.progress import run_status

pytestmark = pytest.mark.usefixtures("faulty")


def faulty_run(path, fault, at=(), *overrides, stage="describe"):
    chosen = (f"{stage}.backend=faulty", f"{stage}.options.fault={fault}", f"{stage}.options.at={list(at)}")
    return make_run(path, *LIMITED, *chosen, *overrides)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("reject", "32 of 32 samples (100%) were dropped: disliked"),
        ("raise", "32 of 32 samples (100%) were dropped: error"),
        ("template", "32 of 32 samples (100%) have a template caption instead of the model's: no-json 32"),
    ],
)
def test_a_stage_stops_in_the_shard_in_which_one_reason_has_nearly_all_samples(tmp_path, fault, told):
    run = faulty_run(tmp_path / "run", fault)
    with pytest.raises(LimitReached) as caught:
        do(run, "describe")
    assert told in caught.value.message
    assert "describe.one_reason_at_most" in caught.value.hint
    assert caught.value.exit_code == 1
    assert run.ledger("describe").commits().keys() == (set() if fault == "raise" else {0}), "16 samples say little"
    assert "LimitReached" in run.ledger("describe").failures()[1]
    assert run.ledger("describe").claimed() == []
    with pytest.raises(LimitReached):
        do(run, "describe")


def test_a_run_of_few_samples_is_refused_where_all_of_them_are_dropped(magicseg, tmp_path):
    run = faulty_run(tmp_path / "run", "reject", (), "plan.samples=4", "plan.shard_size=4")
    result = magicseg("describe", run.path)
    assert result.code == 1
    assert "describe stopped: 4 of 4 samples (100%) were dropped: disliked" in result.err
    assert run.ledger("describe").commits() == {}
    some = faulty_run(tmp_path / "some", "reject", [0, 1, 2], "plan.samples=4", "plan.shard_size=4")
    assert magicseg("describe", some.path).code == 0


def test_the_pool_counts_what_its_workers_did_together(magicseg, tmp_path):
    run = faulty_run(tmp_path / "run", "template", (), "plan.samples=6", "plan.shard_size=1")
    result = magicseg("describe", run.path, "--workers", "2", "--shards-per-job", "1")
    assert result.code == 1
    assert "(100%) have a template caption" in result.err


def test_the_limit_changes_no_byte_and_no_fingerprint(tmp_path):
    run = faulty_run(tmp_path / "run", "reject")
    with pytest.raises(LimitReached):
        do(run, "describe")
    before = run.fingerprints["describe"].digest
    change(run, "describe.one_reason_at_most", 1.0)
    again = Run.open(run.path)
    assert again.fingerprints["describe"].digest == before
    do(again, "describe")
    assert len(again.ledger("describe").commits()) == again.plan.shards


def test_a_third_of_the_samples_with_one_reason_is_a_warning(magicseg, tmp_path):
    run = faulty_run(tmp_path / "run", "reject", range(0, 96, 2))
    do(run, "describe")
    assert [each for each in run_status(run)["warnings"] if "48 of 96 samples (50%) were dropped: disliked" in each]
    assert "disliked 48 (50%)" in magicseg("status", run.path).out
    few = faulty_run(tmp_path / "few", "reject", range(0, 96, 4))
    do(few, "describe")
    assert not [each for each in run_status(few)["warnings"] if "dropped" in each]


def test_captions_of_the_template_are_counted_and_shown(magicseg, tmp_path):
    run = faulty_run(tmp_path / "run", "template", range(0, 96, 2))
    do(run)
    assert run.ledger("describe").commits()[0].fallbacks == {"no-json": 8}
    status = run_status(run)
    assert status["stages"]["describe"]["samples"]["fallbacks"] == {"no-json": 48}
    assert status["stages"]["generate"]["samples"]["fallbacks"] == {}
    assert "describe: the template wrote 48 captions (50%): no-json 48" in magicseg("status", run.path).out
    assert magicseg("report", run.path).code == 0
    page = (run.path / "report.html").read_text()
    assert "captions of the template: 48 no-json (50.0 %)" in page
    assert "48 of 96 samples (50%) have a template caption" in page


def test_drops_count_reason_by_reason_and_fallbacks_together():
    shares = Shares()
    shares.add(kept=20, dropped={"small": 50, "large": 30}, fallbacks={"cut-off": 5, "no-json": 10})
    assert shares.seen == 100
    assert shares.above(0.5) == []
    assert [told.split(": ")[1] for told in shares.above(0.4)] == ["small"]
    assert len(shares.above(0.1)) == 3
