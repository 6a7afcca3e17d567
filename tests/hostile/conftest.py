"""The command line in the test's own process, for hostile inputs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Result

from magicseg.cli import main

Typed = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run ``magicseg`` with some arguments in the test's own folder; any exception but its exit fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["magicseg", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        shown = capsys.readouterr()
        return Result(code, shown.out, shown.err)

    return run
