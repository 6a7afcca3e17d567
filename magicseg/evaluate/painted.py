"""The miniature's benchmark: a segmenter on held-out painted scenes, whose ground truth is exact.

    results = evaluate_heldout(model, vocabulary, settings, image_size=64, seed=7, model_seed=0)
    results["miou"], results["iou"]["car"], results["baselines"]["untrained"]["miou"]

The protocol: the model is asked for all classes of the vocabulary at once; a pixel gets the class that scores
highest, or background where even that one scores below the threshold. Background is a class like the others.
Beside the model stand the same architecture untrained, and background everywhere. Their threshold is the settings'
own. That of zero-shot CLIP and memory banks, which were not trained to score 0.5, is swept on as many scenes of
another seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magicseg.backends import ClassMap
from magicseg.config.evaluation import EvaluateSettings
from magicseg.evaluate.decoding import above
from magicseg.evaluate.heads.base import Head
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.metrics.counts import ImageResult, count_image, scored, tabulate
from magicseg.evaluate.sweep import Sweep, scored_pixels
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import BACKGROUND, IGNORE, Vocabulary
from magicseg.miniature.held_out_scenes import heldout_scene
from magicseg.model.decoder import upsample_logits
from magicseg.model.segmenter import Segmenter, untrained_like

OTHER_SCENES = 1 << 62
"""Added to a seed: that of scenes which the held-out test never shows."""


def evaluate_heldout(
    model: Segmenter,
    vocabulary: Vocabulary,
    settings: EvaluateSettings,
    *,
    image_size: int,
    seed: int,
    model_seed: int,
    baselines: Sequence[Head] = (),
) -> dict[str, Any]:
    """Score a model and the baselines on the same scenes.

    Args:
        image_size: side of the scenes, pixels; that of the training images.
        seed: of the scenes.
        model_seed: of the untrained baseline's weights; the run's seed, so that it is the model at step 0.
        baselines: what else is scored, besides the untrained model and background everywhere.

    Returns: what `magicseg.evaluate.metrics.counts.scored` gives (``miou``, ``miou_interval``, ``iou`` by class name,
        ``pixel_accuracy``, ``confusion``, ...), and ``baselines``: the same by name. Plain JSON values.
    """
    was_training = model.training
    untrained = untrained_like(model, seed=model_seed).to(next(model.parameters()).device)
    heads = [SegmenterHead(model, ""), SegmenterHead(untrained, "", name="untrained"), *baselines]
    thresholds = {
        head.name: swept_threshold(head, vocabulary, settings, image_size=image_size, seed=seed + OTHER_SCENES)
        for head in baselines
    }
    scores = score_heldout(heads, vocabulary, settings, image_size=image_size, seed=seed, thresholds=thresholds)
    model.train(was_training)
    return {**scores.pop("model"), "baselines": scores}


def score_heldout(
    heads: Sequence[Head],
    vocabulary: Vocabulary,
    settings: EvaluateSettings,
    *,
    image_size: int,
    seed: int,
    thresholds: Mapping[str, Threshold] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores by the heads' names, and ``background``: background everywhere. Arguments as `evaluate_heldout` has.

    Args: thresholds: by the heads' names, where they are not the settings' own.
    """
    names = ["background", *vocabulary.names]
    chosen = thresholds or {}
    own = Threshold(value=settings.threshold, origin="default")
    for head in heads:
        head.prepare([(name,) for name in vocabulary.names])
    found: dict[str, list[ImageResult]] = {name: [] for name in (*(head.name for head in heads), "background")}
    for images, truth in _scenes(vocabulary, settings, image_size=image_size, seed=seed):
        predictions = {
            head.name: predict(head, images, vocabulary, threshold=chosen.get(head.name, own)) for head in heads
        }
        predictions["background"] = np.full_like(truth, BACKGROUND)
        for name, prediction in predictions.items():
            found[name] += [count_image(*maps, len(names), IGNORE) for maps in zip(truth, prediction, strict=True)]
    return {
        name: {
            **scored(*tabulate(images, len(names)), names),
            **({"threshold": chosen[name].to_dict()} if name in chosen else {}),
        }
        for name, images in found.items()
    }


def swept_threshold(
    head: Head, vocabulary: Vocabulary, settings: EvaluateSettings, *, image_size: int, seed: int
) -> Threshold:
    """Return the threshold with the best mIoU on other scenes than the test's. Args: seed: seed of those scenes."""
    head.prepare([(name,) for name in vocabulary.names])
    sweep = Sweep(len(vocabulary), head.score_kinds)
    for images, truth in _scenes(vocabulary, settings, image_size=image_size, seed=seed):
        with torch.inference_mode():
            sweep.add(truth, *scored_pixels(head, _logits(head, images), len(vocabulary)), IGNORE)
    return sweep.best({"split": "scenes of another seed", "images": settings.scenes})


def predict(
    head: Head, images: NDArray[np.uint8], vocabulary: Vocabulary, *, threshold: Threshold
) -> NDArray[np.uint16]:
    """Label ids by pixel: the best class, or BACKGROUND where it scores below ``threshold``.

    Args: head: prepared for the vocabulary's names. images: uint8 (B, H, W, 3), RGB, sides multiples of its stride.
    Returns: uint16 (B, H, W).
    """
    with torch.inference_mode():
        logits = _logits(head, images)
        chosen = logits.argmax(dim=1)
        objects = above(head, logits, chosen, threshold).cpu().numpy()
    ids = np.array([label.id for label in vocabulary.labels], np.uint16)
    return np.where(objects, ids[chosen.cpu().numpy()], np.uint16(BACKGROUND))


def _logits(head: Head, images: NDArray[np.uint8]) -> torch.Tensor:
    """Logits at every pixel, (B, K, H, W)."""
    logits = head.logits(torch.from_numpy(images).permute(0, 3, 1, 2))
    return upsample_logits(logits, (images.shape[1], images.shape[2]))


def _scenes(
    vocabulary: Vocabulary, settings: EvaluateSettings, *, image_size: int, seed: int
) -> Iterator[tuple[NDArray[np.uint8], ClassMap]]:
    """Batches of images uint8 (B, H, W, 3) and their ground truth uint16 (B, H, W)."""
    for start in range(0, settings.scenes, settings.batch_size):
        scenes = [
            heldout_scene(index, vocabulary=vocabulary, seed=seed, max_objects=settings.max_objects, size=image_size)
            for index in range(start, min(start + settings.batch_size, settings.scenes))
        ]
        yield np.stack([image for image, _ in scenes]), np.stack([mask for _, mask in scenes])
