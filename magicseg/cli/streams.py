"""Guard standard output and standard error, which may be closed, on a full disk, or in another encoding."""

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
        if data and self.fault is None:  # click probes streams with an empty write, which fails on a full disk
            try:
                return super().write(data) or 0
            except OSError as error:
                self.fault = error
                if not self._lossy:
                    raise
        return len(memoryview(data).cast("B"))


class Streams:
    """Guard the process's standard streams. Streams that are not files, such as in tests, stay as they are.

    If results cannot be written, writing raises OSError once; `lost` keeps the error. Messages that cannot be written
    are dropped, so that they do not end the work. Characters that the encoding lacks are written as escapes.
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
        """Return the error that prevented results from being written, or None."""
        return self._results.fault if self._results else None


def _open_closed() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next opened file would get their descriptor, and a library's prints would be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is `number`
            if name != "stdin":
                setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False))))
