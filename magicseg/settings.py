"""The base of all settings: frozen, keyword-only, and refusing what it does not know."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of validated settings. Unknown keys are errors.

    ``NEUTRAL`` names those that change no byte of what is made: they stay out of fingerprints.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
