"""The threshold of background: a value, the kind of score it is on, and where it comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from magicseg.evaluate.heads import ScoreKind

_AT_END = {"lowest": "no pixel is background", "highest": "nearly every pixel is background"}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Below which score the best class is background.

    Attributes:
        origin: "default", "given" or "swept".
        score: what ``value`` is compared with. A "probability" is in [0, 1] and stands for its log-odds, as does the
            value of results that name no score.
        details: what the value was swept on, as JSON values.
    """

    value: float
    origin: str
    score: Literal["probability"] | ScoreKind = "probability"
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cut(self) -> tuple[ScoreKind, float]:
        """The kind of score, and the value on its scale; a probability of 0 or 1 gives minus or plus infinity."""
        if self.score != "probability":
            return self.score, self.value
        if 0 < self.value < 1:
            return "log-odds", math.log(self.value / (1 - self.value))
        return "log-odds", math.inf if self.value > 0 else -math.inf

    @property
    def text(self) -> str:
        """The value and the kind of score, such as ``0.2135 (cosine)``."""
        return f"{self.value:.4g}" + ("" if self.score == "probability" else f" ({self.score})")

    @property
    def key(self) -> Any:
        """The threshold as JSON values, for digests."""
        return self.value if self.score == "probability" else [self.score, self.value]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"value": self.value, "score": self.score, "origin": self.origin, **self.details}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Threshold":
        """Read what `to_dict` gave, of earlier versions too."""
        details = {key: value for key, value in stored.items() if key not in {"value", "score", "origin"}}
        score = stored.get("score", "probability")
        return cls(value=float(stored["value"]), origin=str(stored["origin"]), score=score, details=details)

    @property
    def warning(self) -> str | None:
        """What is wrong with a swept threshold; None if nothing is, or if it was not swept."""
        end = self.details.get("end")
        if end in _AT_END:
            return f"the best threshold is the {end} score that occurs: {_AT_END[end]}"
        # Earlier versions swept probabilities, which float32 rounds to 1 where a class is far ahead.
        if self.origin == "swept" and self.score == "probability" and not 0 < self.value < 1:
            return "the threshold is an end of the grid it was swept on: evaluate again"
        return None
