"""The miniature's benchmark: a segmenter on held-out painted scenes, whose ground truth is exact.

    results = evaluate_heldout(model, vocabulary, settings, image_size=64, seed=7, model_seed=0)
    results["miou"], results["iou"]["car"], results["baselines"]["untrained"]["miou"]

The protocol: the model is asked for all classes of the vocabulary at once; a pixel gets the class that scores
highest, or background where even that one scores below the threshold. Background is a class like the others.
Beside the model stand the same architecture untrained, and background everywhere.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magicseg.backends import ClassMap
from magicseg.evaluate.counts import ImageResult, count_image, scored, tabulate
from magicseg.evaluate.settings import EvaluateSettings
from magicseg.labels import BACKGROUND, IGNORE, Vocabulary
from magicseg.miniature.heldout import heldout_scene
from magicseg.model.segmenter import Segmenter, build_segmenter


def evaluate_heldout(
    model: Segmenter,
    vocabulary: Vocabulary,
    settings: EvaluateSettings,
    *,
    image_size: int,
    seed: int,
    model_seed: int,
) -> dict[str, Any]:
    """Score a model and the two baselines on the same scenes.

    Args:
        image_size: side of the scenes, pixels; that of the training images.
        seed: of the scenes.
        model_seed: of the untrained baseline's weights; the run's seed, so that it is the model at step 0.

    Returns: what `magicseg.evaluate.counts.scored` gives (``miou``, ``miou_interval``, ``iou`` by class name,
        ``pixel_accuracy``, ``confusion``, ...), and ``baselines``: the same for ``untrained`` and ``background``.
        Plain JSON values.
    """
    names = ["background", *vocabulary.names]
    untrained = build_segmenter(model.settings, seed=model_seed).to(next(model.parameters()).device)
    found: dict[str, list[ImageResult]] = {name: [] for name in ("model", "untrained", "background")}
    for images, truth in _scenes(vocabulary, settings, image_size=image_size, seed=seed):
        predictions = {
            "model": predict(model, images, vocabulary, threshold=settings.threshold),
            "untrained": predict(untrained, images, vocabulary, threshold=settings.threshold),
            "background": np.full_like(truth, BACKGROUND),
        }
        for name, prediction in predictions.items():
            found[name] += [count_image(*maps, len(names), IGNORE) for maps in zip(truth, prediction, strict=True)]
    scores = {name: scored(*tabulate(images, len(names)), names) for name, images in found.items()}
    return {**scores.pop("model"), "baselines": scores}


def predict(
    model: Segmenter, images: NDArray[np.uint8], vocabulary: Vocabulary, *, threshold: float
) -> NDArray[np.uint16]:
    """Label ids by pixel: the best class, or BACKGROUND where its probability is below ``threshold``.

    Args: images: uint8 (B, H, W, 3), RGB, sides multiples of the encoder's stride.
    Returns: uint16 (B, H, W).
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(next(model.parameters()).device)
        scores, places = model(pixels, model.encode_classes(vocabulary.names)).logits.sigmoid().max(dim=1)
    model.train(was_training)
    ids = np.array([label.id for label in vocabulary.labels], np.uint16)
    return np.where(scores.cpu().numpy() < threshold, np.uint16(BACKGROUND), ids[places.cpu().numpy()])


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
