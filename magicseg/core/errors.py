"""Every error that a user can meet: one base, one class per fault, each with a hint.

Exit codes of the command line: 0 all of it is done; 1 some work failed, is missing or is damaged;
2 a user's mistake (this module's errors, unless the class says otherwise).
"""

from magicseg.core.text import indented, printable


class MagicsegError(Exception):
    """Base of all errors for users. ``message``: the fault and its location. ``hint``: the next command or action."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """Return the lines to print: ``error: ...``, indented further lines, and ``hint:  ...`` if any."""
        shown = [f"error: {indented(self.message, ' ' * 7)}"]
        return [*shown, f"hint:  {printable(self.hint)}"] if self.hint else shown


class ConfigError(MagicsegError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class LabelError(MagicsegError, ValueError):
    """A label list is malformed; the message names file and line."""


class RunError(MagicsegError):
    """A run directory is missing, is not a run, or does not support the requested operation."""


class PlanMismatch(RunError):
    """Settings differ from the settings of the committed work."""


class BackendError(MagicsegError):
    """A back end is not installed, or cannot be used with these settings."""


class OutOfMemory(BackendError):
    """A batch, or a model, does not fit into the device's memory. The message names the setting."""


class DataError(MagicsegError):
    """An input file is missing, of the wrong size or out of range; the message names it."""


class StoreError(MagicsegError):
    """The store cannot be written or read (full disk, permissions, damage)."""

    exit_code = 1


class DamageError(StoreError):
    """Stored data cannot be read back: damaged, truncated or missing."""


class ContainerError(MagicsegError):
    """A container image cannot be built, started or trusted here."""


class IncompleteError(MagicsegError):
    """Some of the work failed, was interrupted or is missing."""

    exit_code = 1


class LimitReached(IncompleteError):
    """A stage stops, because more of its samples failed for one reason than the settings allow."""
