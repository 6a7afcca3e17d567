"""The frequency of Python's garbage collection."""

import subprocess
import sys

CODE = """
import atexit, gc
from magicseg.core.garbage_collection import collect_less_often
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))  # at the very end
collect_less_often()
"""


def test_the_collector_runs_less_often_and_skips_permanent_objects_at_exit():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "10000 True\n"
