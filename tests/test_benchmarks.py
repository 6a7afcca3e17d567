"""The benchmarks are programs that nothing else runs: at least what they import is there."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    finally:
        for new in set(sys.modules) - before:
            if (FOLDER / f"{new}.py").is_file():
                del sys.modules[new]
