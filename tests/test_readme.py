"""The README's commands, typed as they stand there, on a run small enough for a test."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SMALL = (
    "--set plan.samples=16 --set plan.shard_size=8 --set generate.batch_size=4 --set generate.options.steps=2 "
    "--set train.steps=2 --set evaluate.scenes=8"
)


def commands(section: str) -> list[str]:
    """The ``magicseg`` lines of a section's code block, without their comments."""
    text = README.read_text(encoding="utf-8").split(f"## {section}", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"^    (magicseg .*)$", text, re.MULTILINE)
    return [line.split("#")[0].strip() for line in lines]


@pytest.mark.slow
def test_the_commands_of_the_readme_work_in_the_order_given(tmp_path):
    lines = commands("Use it")
    assert lines[0].startswith("magicseg init RUN")
    assert {"generate", "mask", "train", "evaluate", "report"} <= {line.split()[1] for line in lines}
    for line in lines:
        words = shlex.split(f"{line} {SMALL}" if line == lines[0] else line)
        done = subprocess.run(
            [sys.executable, "-c", "from magicseg.cli import main; main()", *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "RUN" / "results" / "miniature.json").exists()
    assert (tmp_path / "RUN" / "report.html").exists()


def test_the_readme_links_files_that_exist():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
