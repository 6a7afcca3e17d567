"""Entry point of the command line. It imports nothing heavy, so that an early interrupt prints no traceback."""

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicseg.cli.commands import app

__all__ = ["INTERRUPTED", "app", "main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Run the ``magicseg`` command."""
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # no work has started yet
        from magicseg.core.safe_path import forget_present_folder

        forget_present_folder()  # before anything from another package is imported
        from magicseg.cli.commands import run

        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def __getattr__(name: str) -> Any:
    if name == "app":
        from magicseg.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
