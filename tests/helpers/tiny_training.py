"""The models of `training` at sizes that train in a second."""

from dataclasses import replace
from pathlib import Path

from training import autoencoder, clip, denoiser, detector, judge, segmenter
from training.loop import Plan
from training.painted import Painted, painted
from training.tokens import write_tokenizer

CHANNELS = (8, 8, 8)
SIZES = denoiser.Sizes(channels=(16, 16), text_width=16, text_layers=1, heads=2)
CLIP_SIZES = clip.Sizes(width=16, layers=2, text_layers=1, embed_dim=8, patch=16, head_width=8)
WIDTHS = (8, 8, 8)
PLAN = Plan(steps=6, batch_size=2, learning_rate=1e-3, warmup=2, cooldown=2, save_seconds=0, log_every=2)


def data(folder: Path) -> Painted:
    """Return a few scenes. Tests reduce the chunk size."""
    return painted(folder / "data", write_tokenizer(folder / "data/tokenizer"), count=16, seed=0)


def fit(kind: str, folder: Path, plan: Plan = PLAN):
    """Train one of the models in ``folder``."""
    own = folder / kind
    if kind == "autoencoder":
        return autoencoder.fit(own, data(folder), plan, channels=CHANNELS)
    if kind == "denoiser":
        return denoiser.fit(own, data(folder), replace(plan, muon=denoiser.PLAN.muon), sizes=SIZES)
    if kind == "clip":
        return clip.fit(own, data(folder), replace(plan, muon=clip.PLAN.muon), sizes=CLIP_SIZES)
    if kind == "detector":
        return detector.fit(own, data(folder), plan)
    if kind == "segmenter":
        return segmenter.fit(own, data(folder), plan)
    return judge.fit(own, data(folder), plan, widths=WIDTHS)
