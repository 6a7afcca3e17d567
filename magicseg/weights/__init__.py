"""Pretrained weights: how they are named, which files are theirs, what identifies them. No model library in here."""

from magicseg.weights.pinned import PinnedSettings, Weights, only_variant, pinned, place_of

__all__ = ["PinnedSettings", "Weights", "only_variant", "pinned", "place_of"]
