"""A run is a directory: one configuration, one frozen plan, one store, one ledger."""

from magicseg.run.directory import Run
from magicseg.run.fingerprint import STAGES

__all__ = ["STAGES", "Run"]
