"""Base class of the options of back ends, for plug-ins."""

from magicseg.core.settings import Settings

__all__ = ["Settings"]
