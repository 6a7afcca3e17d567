"""How often Python's garbage collector looks for cycles."""

import gc

_NEW_OBJECTS = 10_000  # more spares no more time


def relax() -> None:
    """For the start of a process of ours, before it imports what models need.

    An import makes some hundred thousand objects that stay. At Python's own threshold of 700 new ones, looking
    through all of them again and again takes a sixth of the start.
    """
    gc.set_threshold(_NEW_OBJECTS)
