"""Guard standard output and standard error, which may be closed, full, or in another encoding."""

import io
import os
import sys
from typing import Any, BinaryIO, cast


class _Stream(io.FileIO):
    """A standard stream that fails at most once; later output is dropped."""

    def __init__(self, descriptor: int, *, lossy: bool) -> None:
        """Args: lossy: drop output that cannot be written, instead of raising."""
        super().__init__(descriptor, "w", closefd=False)
        self._lossy = lossy
        self.fault: OSError | None = None

    def write(self, data: Any, /) -> int:
        if data and self.fault is None:  # click tries streams by writing nothing, which a full disk refuses, too
            try:
                return super().write(data) or 0
            except OSError as error:
                self.fault = error
                if not self._lossy:
                    raise
        return len(memoryview(data).cast("B"))


class Streams:
    """The process's standard streams, guarded. Does nothing where they are no files, such as in tests.

    Results that cannot be written raise OSError, once (`lost`). Messages that cannot be written are dropped: they
    must not end the work they are about. Characters that the encoding lacks are written as escapes.
    """

    def __init__(self) -> None:
        _open_closed()
        self._results = self._guard("stdout", lossy=False)
        self._guard("stderr", lossy=True)

    @staticmethod
    def _guard(name: str, *, lossy: bool) -> _Stream | None:
        old = getattr(sys, name)
        buffer = getattr(old, "buffer", None)
        unbuffered = isinstance(buffer, io.FileIO)  # python -u
        if not unbuffered and not isinstance(getattr(buffer, "raw", None), io.FileIO):
            return None
        old.flush()
        raw = _Stream(old.fileno(), lossy=lossy)
        new = io.TextIOWrapper(
            cast("BinaryIO", raw) if unbuffered else io.BufferedWriter(raw),
            encoding=old.encoding,
            errors="surrogateescape" if old.errors == "surrogateescape" else "backslashreplace",
            line_buffering=old.line_buffering or lossy,
            write_through=old.write_through,
        )
        setattr(sys, name, new)
        return raw

    @property
    def lost(self) -> OSError | None:
        """The error that kept results from being written, or None."""
        return self._results.fault if self._results else None


def _open_closed() -> None:
    """Connect standard streams that are closed to nothing: else the next file that is opened would get their number,
    and what a library prints would end in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if name != "stdin":
                setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False))))
