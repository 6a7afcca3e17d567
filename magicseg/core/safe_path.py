"""Keep the present folder off the import path: a `numpy.py` that happens to lie there is nobody's numpy."""

import os
import sys

import magicseg

VARIABLE = "PYTHONSAFEPATH"  # Python then leaves the present folder out (since 3.11)


def forget_present_folder() -> None:
    """Take the present folder off this process's import path, and keep it off those of all that it starts.

    It comes there by ``python -m``, and by empty items in PYTHONPATH, as in ``/shared/plugins:``. It stays if
    PYTHONPATH names it in full, or if this package lies in it.
    """
    os.environ[VARIABLE] = "1"
    items = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [item for item in items if item not in {"", "."}]
    if named != items and "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    try:
        here = os.getcwd()
    except OSError:  # somebody has removed it
        return
    if here != os.path.dirname(os.path.dirname(magicseg.__file__)) and here not in named:
        sys.path[:] = [item for item in sys.path if item not in {"", ".", here}]
