"""Bounded waits for calls into other libraries that may never return."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_LOOK_SECONDS = 0.5
T = TypeVar("T")


def bounded(call: Callable[[], T], look: Callable[[float], None]) -> T:
    """Run ``call`` in a thread and return its result, or raise its exception. Signals are handled while it runs.

    The thread is abandoned if ``look`` raises.

    Args: look: called twice a second with the seconds waited so far; it raises to end the wait.
    """
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # raised again in the waiting thread
            outcome.put((None, error))

    began = time.monotonic()
    threading.Thread(target=attempt, name="bounded", daemon=True).start()
    while True:
        try:
            value, error = outcome.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            look(time.monotonic() - began)
            continue
        if error is not None:
            raise error
        return value  # type: ignore[return-value]
