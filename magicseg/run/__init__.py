"""A run is a directory: one configuration, one frozen plan, one store, one ledger.

The names are imported when they are first used, so that the modules that `magicseg.run.directory` needs can be
imported alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicseg.config.stage_declarations import STAGES
    from magicseg.run.directory import Run

_MODULES = {"Run": "magicseg.run.directory", "STAGES": "magicseg.config.stage_declarations"}

__all__ = ["STAGES", "Run"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
