"""The demo's comparison runs as child processes: awaited, reported on failure, and stopped with the demo."""

import psutil
import pytest

from helpers.tiny_runs import make_run
from magicseg.core.errors import IncompleteError
from magicseg.miniature import comparison_runs
from magicseg.miniature.comparison_runs import running


def test_a_failed_comparison_run_is_reported_with_the_command_to_resume(tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "magicseg.yaml").write_text("plan: [")
    with pytest.raises(IncompleteError, match="exit code 2") as caught, running([run]):
        pass
    assert caught.value.hint == f"magicseg run {run.path}"


def test_nothing_is_left_running_when_the_demo_itself_fails(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(comparison_runs.sys, "executable", str(sleeper))
    before = _children()

    def demo():
        with running([run, run]):
            assert len(_children() - before) == 2
            raise RuntimeError("the demo")

    with pytest.raises(RuntimeError, match="the demo"):
        demo()
    assert _children() == before


def _children():
    return {child.pid for child in psutil.Process().children()}
