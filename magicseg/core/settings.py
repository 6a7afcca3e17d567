"""The base class of all settings: frozen, keyword-only; unknown keys are errors."""

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

    Numbers and booleans are not converted from other types: ``"16"``, ``yes`` and ``2.0`` are not integers. A float
    may be written as an integer and must be finite. A group whose values are text sets ``strict=False`` in its
    `model_config`.

    ``NEUTRAL`` names the settings that do not affect the results. They are left out of fingerprints.
    ``LATER`` names settings that affect the results and are newer than the first runs. Their default is what those
    runs did, so a setting at its default is left out of fingerprints.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()
    LATER: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        # pydantic's strict mode would also refuse lists for tuples and mappings for groups.
        if cls.model_config.get("strict") is not False:
            _make_strict(schema)
        return schema

    @property
    def not_in_fingerprint(self) -> frozenset[str]:
        """The names of settings that a fingerprint leaves out: neutral ones, and later ones at their default."""
        fields = type(self).model_fields
        return self.NEUTRAL | {name for name in self.LATER if getattr(self, name) == fields[name].default}
