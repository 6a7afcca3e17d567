"""``magicseg doctor``: what of this machine, and of a run, stands in the way, and what to do about it."""

from magicseg.core.checks import Check, Status
from magicseg.doctor.examine import examine

__all__ = ["Check", "Status", "examine"]
