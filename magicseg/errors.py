"""Errors that a plug-in may raise or catch. They are defined in `magicseg.core.errors`."""

from magicseg.core.errors import BackendError, ConfigError, DataError, LabelError, MagicsegError

__all__ = ["BackendError", "ConfigError", "DataError", "LabelError", "MagicsegError"]
