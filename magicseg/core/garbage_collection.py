"""How often Python's garbage collector looks for cycles."""

import atexit
import gc

_NEW_OBJECTS = 10_000  # more spares no more time


def relax() -> None:
    """For the start of a process of ours, before it imports what models need.

    An import makes some hundred thousand objects that stay. At Python's own threshold of 700 new ones, looking
    through all of them again and again takes a sixth of the start. At the end Python looks through them twice more,
    unless it is told that they are to stay: with torch loaded, that takes a second.
    """
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
