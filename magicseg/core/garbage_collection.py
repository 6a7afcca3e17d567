"""Tune how often Python's garbage collector runs."""

import atexit
import gc

_NEW_OBJECTS = 10_000  # higher thresholds save no more time


def collect_less_often() -> None:
    """Raise the collector's threshold. Call it at the start of a process, before heavy imports.

    Imports create several hundred thousand permanent objects. With Python's default threshold of 700 new objects,
    repeated collections take a sixth of the start-up time. At exit Python runs two more collections unless the
    objects are frozen; with torch loaded, they take a second.
    """
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
