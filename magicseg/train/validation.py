"""Validation during training: a score on images that are neither trained on nor tested on."""

from collections.abc import Callable, Mapping
from pathlib import Path

from magicseg.config.evaluation import MINIATURE, WITHOUT_DATA
from magicseg.data.ground_truth import data_folder
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.metrics.confusion import Scores
from magicseg.evaluate.runner import count_images
from magicseg.evaluate.sweep import tuning_set_or_reason
from magicseg.miniature.held_out_scenes import PaintedScenes, undrawn
from magicseg.model.segmenter import Segmenter
from magicseg.run.directory import Run

_IMAGES = 50  # other ranks wait meanwhile

Watch = Callable[[Segmenter, int], Mapping[str, float]]


def watch(run: Run) -> Watch | None:
    """Return the validation function for `magicseg.train.loop.train`, or None if there are no images for it.

    It returns the mIoU on painted scenes of another seed, or on 50 images of the first benchmark's other split. Test
    images are never used, since the best checkpoint is chosen by this score.

    Raises: ConfigError or DataError if the benchmark cannot be opened.
    """
    data = validation_images(run)
    if data is None:
        return None
    limit = None if isinstance(data, PaintedScenes) else _IMAGES

    def validate(model: Segmenter, step: int) -> dict[str, float]:
        confusion, _ = count_images(SegmenterHead(model, f"step {step}"), data, limit=limit, counterfactuals=False)
        miou = Scores(confusion).miou
        return {} if miou is None else {"miou": miou}

    return validate


def validation_images(run: Run) -> LabelledImages | None:
    """Open the images that `watch` scores, or return None without such images."""
    settings = run.config.evaluate
    if MINIATURE in settings.benchmarks and not undrawn(run.vocabulary):
        scenes = PaintedScenes.of(run.vocabulary, settings, seed=run.config.seed, size=run.config.generate.size)
        return scenes.others()
    others = [name for name in settings.benchmarks if name not in WITHOUT_DATA]
    if settings.data is None or not others:
        return None
    protocol = load_protocol(others[0])
    tuning = tuning_set_or_reason(protocol, data_folder(protocol, Path(settings.data)))
    return None if isinstance(tuning, str) else tuning
