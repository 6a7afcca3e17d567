"""The page on the architecture names layers, files, functions and tests that exist."""

import re
import tomllib
from pathlib import Path

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_layers_are_those_that_lint_holds():
    contract = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    expected = [sorted(layer.split(" | ")) for layer in contract["layers"]]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \|$", PAGE.split("## From")[0], re.MULTILINE)
    assert [sorted(re.findall(r"`(\w+)`", row)) for row in rows] == expected


def test_the_files_and_names_exist():
    named = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", PAGE)
    assert len(named) > 30
    for file, name in named:
        path = TOP / file if file.startswith("tests/") else TOP / "magicseg" / file
        assert path.is_file(), file
        if name:
            assert re.search(rf"^(?:def|class) {name}\b", path.read_text(), re.MULTILINE), f"{file}: {name}"
    assert (TOP / "tests" / "hostile").is_dir()
