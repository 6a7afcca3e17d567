"""Keep the current directory off the import path, so that a stray `numpy.py` in it is never imported."""

import os
import sys

from magicseg.core.package import PACKAGE

VARIABLE = "PYTHONSAFEPATH"  # Python 3.11 and later then leave the current directory out


def forget_present_folder() -> None:
    """Remove the current directory from the import path of this process and of its child processes.

    ``python -m`` and empty items of PYTHONPATH (as in ``/shared/plugins:``) put it there. The directory is kept if
    PYTHONPATH names it explicitly, or if this package lies in it.
    """
    os.environ[VARIABLE] = "1"
    items = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [item for item in items if item not in {"", "."}]
    if named != items and "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    try:
        here = os.getcwd()
    except OSError:  # the directory was deleted
        return
    if here != str(PACKAGE.parent) and here not in named:
        sys.path[:] = [item for item in sys.path if item not in {"", ".", here}]
