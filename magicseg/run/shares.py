"""Shares of a stage's samples that were dropped, or got a fallback, by reason; and the limit on one reason.

A model that is broken (weights that are not finite, a wrong end token, a decoder that overflows) gives one reason for
nearly all samples. The stage then stops before the shard in which the limit is reached is committed. The limit is no
part of fingerprints: it changes no byte of what is made.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from magicseg.core.text import command
from magicseg.errors import LimitReached
from magicseg.run.directory import CONFIG_NAME, Run
from magicseg.run.fingerprint import stage_settings
from magicseg.run.ledger import CommitRecord

LEAST_SAMPLES = 32  # fewer say nothing, unless the stage has no more
WARNING_SHARE = 1 / 3
SETTING = "one_reason_at_most"


@dataclass
class Shares:
    """Counts of samples that reached a stage: ``seen`` in all, ``dropped`` and ``fallbacks`` by reason."""

    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Iterable[CommitRecord]) -> "Shares":
        """Count what commit records say."""
        shares = cls()
        for record in records:
            shares.add(record.kept_count, record.dropped, record.fallbacks)
        return shares

    def add(self, kept: int, dropped: Mapping[str, int], fallbacks: Mapping[str, int]) -> None:
        """Count the samples of one shard."""
        self.seen += kept + sum(dropped.values())
        self.dropped.update(dropped)
        self.fallbacks.update(fallbacks)

    def above(self, limit: float) -> list[str]:
        """Say which reasons have a share above ``limit``: drops one by one, fallbacks all together."""
        told = [
            f"{_part(count, self.seen)} were dropped: {reason}"
            for reason, count in self.dropped.most_common()
            if count > limit * self.seen
        ]
        fallbacks = self.fallbacks.total()
        if fallbacks > limit * self.seen:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.fallbacks.most_common(3))
            told.append(f"{_part(fallbacks, self.seen)} have a caption of the template, not of the model: {reasons}")
        return told


def refuse_one_reason(run: Run, stage: str, shares: Shares, *, is_all: bool) -> None:
    """Raise LimitReached if one reason has a larger share of the samples than the settings allow.

    Args: is_all: there are no more samples, so that few count too.
    """
    limit: float = getattr(stage_settings(run.config, stage), SETTING)
    # All of a few samples may have one reason by chance, so with a limit of 1 nothing is above it.
    told = shares.above(limit) if shares.seen and (is_all or shares.seen >= LEAST_SAMPLES) else []
    if told:
        reset = command("magicseg", "reset", stage, run.path)
        raise LimitReached(
            f"{run.path}: {stage} stopped: {told[0]}; at most {limit:.0%} may have one reason",
            hint=f"mend the model, its dtype or {stage}.options, then: {reset}; "
            f"if it is right so: {stage}.{SETTING}: 1 in {run.path / CONFIG_NAME}",
        )


def fallback_in(quality: Mapping[str, Any]) -> str | None:
    """Return why a description is the template's, from its quality: the last reason; None if it is the model's."""
    if quality.get("source") != "template":
        return None
    return str(quality.get("rejected", "")).rpartition(",")[2] or "template"


def _part(count: int, seen: int) -> str:
    return f"{count} of {seen} samples ({count / seen:.0%})"
