"""``magicseg doctor``: find problems of this machine and of a run, and suggest remedies."""

from magicseg.core.checks import Check, Status
from magicseg.doctor.examine import examine

__all__ = ["Check", "Status", "examine"]
