"""Count dropped samples and fallbacks of a stage by reason, and limit the share of any single reason.

With a broken model (weights that are not finite, a wrong end token, a decoder that overflows), nearly all samples
fail for the same reason. The stage then stops before it commits the shard that reaches the limit. The limit is not
part of fingerprints, because it changes no byte of the data.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.core.errors import LimitReached
from magicseg.core.text import command
from magicseg.run.directory import CONFIG_NAME, Run
from magicseg.run.ledger import CommitRecord

LEAST_SAMPLES = 32  # fewer samples are too few to judge, unless the stage has no more
WARNING_SHARE = 1 / 3
SETTING = "one_reason_at_most"


@dataclass
class Shares:
    """Counts of samples that reached a stage: ``seen`` (the total), ``dropped`` and ``fallbacks`` by reason."""

    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Iterable[CommitRecord]) -> "Shares":
        """Sum the counts of commit records."""
        shares = cls()
        for record in records:
            shares.add(record.kept_count, record.dropped, record.fallbacks)
        return shares

    def add(self, kept: int, dropped: Mapping[str, int], fallbacks: Mapping[str, int]) -> None:
        """Add the samples of one shard."""
        self.seen += kept + sum(dropped.values())
        self.dropped.update(dropped)
        self.fallbacks.update(fallbacks)

    def above(self, limit: float) -> list[str]:
        """Return a sentence for each drop reason with a share above ``limit``, and for all fallbacks together."""
        told = [
            f"{_part(count, self.seen)} were dropped: {reason}"
            for reason, count in self.dropped.most_common()
            if count > limit * self.seen
        ]
        fallbacks = self.fallbacks.total()
        if fallbacks > limit * self.seen:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.fallbacks.most_common(3))
            told.append(f"{_part(fallbacks, self.seen)} have a template caption instead of the model's: {reasons}")
        return told


def refuse_one_reason(run: Run, stage: str, shares: Shares, *, is_all: bool) -> None:
    """Raise LimitReached if one reason has a larger share of the samples than the settings allow.

    Args: is_all: whether these are all samples of the stage; then fewer than `LEAST_SAMPLES` are judged, too.
    """
    limit: float = getattr(DECLARATIONS[stage].settings(run.config), SETTING)
    # With a limit of 1, no share is above the limit.
    told = shares.above(limit) if shares.seen and (is_all or shares.seen >= LEAST_SAMPLES) else []
    if told:
        reset = command("magicseg", "reset", stage, run.path)
        raise LimitReached(
            f"{run.path}: {stage} stopped: {told[0]}; at most {limit:.0%} may share one reason",
            hint=f"fix the model, its dtype or {stage}.options, then: {reset}; "
            f"to accept it: {stage}.{SETTING}: 1 in {run.path / CONFIG_NAME}",
        )


def fallback_in(quality: Mapping[str, Any]) -> str | None:
    """Return the last reason for which a template caption was used, from its quality; None for a model's caption."""
    if quality.get("source") != "template":
        return None
    return str(quality.get("rejected", "")).rpartition(",")[2] or "template"


def _part(count: int, seen: int) -> str:
    return f"{count} of {seen} samples ({count / seen:.0%})"
