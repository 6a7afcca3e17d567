"""The background threshold: its value, its kind of score, and its origin."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from magicseg.evaluate.heads.head import ScoreKind

_AT_END = {"lowest": "no pixel is background", "highest": "nearly every pixel is background"}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A pixel whose best class scores below this threshold is background.

    Attributes:
        origin: "default", "given" or "swept".
        score: kind of score that ``value`` is compared with. A "probability" in [0, 1] is converted to log-odds; so
            is the value of earlier results, which name no score.
        details: images and curve of the sweep, as JSON values.
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
        """Return the threshold as JSON values."""
        return {"value": self.value, "score": self.score, "origin": self.origin, **self.details}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Threshold":
        """Read the output of `to_dict`, also of earlier versions."""
        details = {key: value for key, value in stored.items() if key not in {"value", "score", "origin"}}
        score = stored.get("score", "probability")
        return cls(value=float(stored["value"]), origin=str(stored["origin"]), score=score, details=details)

    @property
    def warning(self) -> str | None:
        """A warning about a swept threshold, or None."""
        end = self.details.get("end")
        if end in _AT_END:
            return f"the best threshold is the {end} observed score: {_AT_END[end]}"
        # Earlier versions swept probabilities, which float32 rounds to 1 for confident pixels.
        if self.origin == "swept" and self.score == "probability" and not 0 < self.value < 1:
            return "the threshold is at an end of the swept grid: evaluate again"
        return None
