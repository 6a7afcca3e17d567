"""yapf, which groundingdino-py imports, without the cache that processes share. Import this before groundingdino.

yapf 0.43 lets another process read its pickled grammar before that is whole (google/yapf#1204): of tasks that start
together the first time, one would end with ``EOFError``, and after a full quota each one.
"""

import os
import tempfile

_shared = os.environ.get("XDG_CACHE_HOME")
with tempfile.TemporaryDirectory(prefix="magicseg-yapf-") as _own:
    os.environ["XDG_CACHE_HOME"] = _own
    try:
        import yapf  # noqa: F401
    finally:
        if _shared is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = _shared
