"""The base of all settings: frozen, keyword-only, and refusing what it does not know."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

_STRICT_TYPES = frozenset({"int", "float", "bool"})


def _make_strict(schema: Any, *, inside: bool = False) -> None:
    """Make all numbers and booleans of a model's schema strict. Nested models are already strict."""
    if isinstance(schema, list):
        for item in schema:
            _make_strict(item, inside=inside)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "model" and inside:
            return
        if kind in _STRICT_TYPES:
            schema["strict"] = True
        for key, value in schema.items():
            if key != "metadata":
                _make_strict(value, inside=inside or kind == "model")


class Settings(BaseModel):
    """A group of validated settings. Unknown keys are errors.

    Numbers and booleans are not made from other types: ``"16"``, ``yes`` and ``2.0`` are no integers. A float may be
    given as an integer, and is finite. A group whose values come as text sets ``strict=False`` in its `model_config`.

    ``NEUTRAL`` names those that change no byte of what is made: they stay out of fingerprints.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        # pydantic's own strict mode would refuse lists for tuples and mappings for groups, too.
        if cls.model_config.get("strict") is not False:
            _make_strict(schema)
        return schema
