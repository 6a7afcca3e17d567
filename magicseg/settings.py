"""The base of all settings: frozen, keyword-only, and refusing what it does not know."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of validated settings. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
