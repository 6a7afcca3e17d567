"""Ctrl-C while a command is starting: one exit code, no traceback."""

import signal
import subprocess
import sys

import pytest

SLOW = """
import sys, time
import magicseg.cli

class Slow:
    \"\"\"Finds nothing, slowly: {module} is being imported when the signal comes.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
sys.argv = ["magicseg", *sys.argv[1:]]
magicseg.cli.main()
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ("--help",)),
        ("magicseg.cli.runs", ("schema",)),
        ("magicseg.config", ("schema",)),
        ("magicseg.run.directory", ("describe", "nowhere")),
        ("magicseg.core.distributed", ("train", "nowhere")),
    ],
)
def test_an_interrupt_during_imports_exits_with_130_and_prints_nothing(module, words):
    with subprocess.Popen(
        [sys.executable, "-c", SLOW.format(module=module), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == ""
