"""Requests for pairs of images."""

from typing import Any

from magicseg.backends import GenerateRequest
from magicseg.labels import Label

CAT, DOG = Label(id=1, name="cat"), Label(id=2, name="dog")


def request(index: int = 0, caption: str = "a photo of a red cat", **changes: Any) -> GenerateRequest:
    """Return a request for a pair. Its seed is derived from its index."""
    values = {"labels": (CAT,), "counterfactual": "a photo of the red", "seed": 1000 + index} | changes
    return GenerateRequest(index=index, caption=caption, **values)
