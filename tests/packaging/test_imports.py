"""Each module can be imported alone, in any order."""

import subprocess
import sys
from pathlib import Path

import pytest

import magicseg

PACKAGE = Path(magicseg.__file__).parent
CHILD = """
import importlib, os, sys
failed = []
for name in sys.stdin.read().split():
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    failed += [name] if os.waitpid(child, 0)[1] else []
sys.exit(len(failed) > 0)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_first():
    """Each module is imported in a separate process with loaded libraries but without modules of the package."""
    files = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = sorted(".".join(path.parts).removesuffix(".__init__") for path in files)
    names.remove("magicseg.__main__")
    libraries = "import numpy, pydantic, zarr, h5py, torch, torchvision, transformers, diffusers, open_clip, typer\n"
    done = subprocess.run(
        [sys.executable, "-c", libraries + CHILD], input="\n".join(names), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
