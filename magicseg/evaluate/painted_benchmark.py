"""The miniature's benchmark: held-out painted scenes, whose ground truth is exact.

    results = evaluate_heldout(model, vocabulary, settings, image_size=64, seed=7, model_seed=0)
    results["miou"], results["iou"]["car"], results["baselines"]["untrained"]["miou"]

The scenes are a data set like others (`magicseg.miniature.held_out_scenes.PaintedScenes`): a model is asked for all
classes of the vocabulary at once, and a pixel is background if its best class scores below the threshold. Beside the
model stand the same architecture untrained, and a head that predicts background everywhere. Their threshold is that
of the settings. The threshold of zero-shot CLIP and memory banks, which were not trained to score 0.5, is swept on as
many scenes of another seed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from magicseg.config.evaluation import MINIATURE, EvaluateSettings
from magicseg.evaluate.heads.head import Head, ScoreKind
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.evaluate.metrics.confusion import Confusion
from magicseg.evaluate.metrics.counts import CONVENTIONS, scored
from magicseg.evaluate.metrics.false_positives import FALSE_POSITIVE_CONVENTIONS
from magicseg.evaluate.metrics.intervals import ImageCounts
from magicseg.evaluate.runner import count_images
from magicseg.evaluate.sweep import sweep_threshold
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import Vocabulary
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.model.segmenter import Segmenter, untrained_like
from magicseg.model.sliding_window import WindowAverage

if TYPE_CHECKING:
    from torch import Tensor

UNTUNED = frozenset({"model", "untrained", "background"})
"""Names of heads whose threshold is in the settings. The thresholds of other heads are swept."""


class BackgroundHead:
    """Predicts background everywhere. A `magicseg.evaluate.heads.head.Head`."""

    name = "background"
    stride = 1
    window_average: WindowAverage = "logits"
    identity: ClassVar[Mapping[str, Any]] = {}
    score_kinds: tuple[ScoreKind, ...] = ("log-odds",)

    def prepare(self, classes: Sequence[Sequence[str]]) -> None:
        self._classes = len(classes)

    def logits(self, crops: "Tensor") -> "Tensor":
        return torch.zeros(len(crops), self._classes, 1, 1)

    def score(self, logits: "Tensor", chosen: "Tensor", kind: ScoreKind) -> "Tensor":
        return torch.full(chosen.shape, torch.nan)  # reaches no threshold, not even minus infinity


def painted_heads(model: Head, segmenter: Segmenter, baselines: Sequence[Head], *, seed: int) -> list[Head]:
    """Return what is scored on painted scenes, in the order of the results: the model, then its baselines.

    Args: model: the head of ``segmenter``. seed: of the untrained baseline's weights; the run's seed, so that the
    baseline is the model at step 0.
    """
    untrained = untrained_like(segmenter, seed=seed).to(next(segmenter.parameters()).device)
    made_like = {"untrained": seed, "like": dict(model.identity)}
    return [
        model,
        SegmenterHead(untrained, "", name="untrained", identity=made_like),
        *baselines,
        BackgroundHead(),
    ]


def painted_results(
    scenes: PaintedScenes,
    counted: Mapping[str, tuple[Confusion, ImageCounts]],
    thresholds: Mapping[str, Threshold],
) -> dict[str, Any]:
    """Return the scores of all heads as JSON values: those of the first, and the others' by name in ``baselines``.

    Args: counted: by the heads' names. thresholds: swept ones, by the heads' names.
    """
    first, *others = _scored(scenes, counted, thresholds).items()
    return {**first[1], "baselines": dict(others)}


def painted_file(scenes: PaintedScenes, results: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``miniature.json``. Args: results: from `painted_results`."""
    return {
        "benchmark": MINIATURE,
        "images": scenes.scenes,
        "classes": list(scenes.protocol.classes),
        **results,
        "conventions": CONVENTIONS,
        "false_positive_conventions": FALSE_POSITIVE_CONVENTIONS,
        "provenance": dict(provenance),
    }


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
    """Score a model and baselines on the same scenes, in memory.

    Args:
        image_size: side of the scenes, pixels; that of the training images.
        seed: of the scenes.
        model_seed: of the untrained baseline's weights.
        baselines: heads to score besides the untrained model and background everywhere.

    Returns: the scores of `magicseg.evaluate.metrics.counts.scored` (``miou``, ``miou_interval``, ``iou`` by class
        name, ``confusion``, ``false_positives``, ...), and ``baselines``: the same by name. Plain JSON values.
    """
    was_training = model.training
    scenes = PaintedScenes.of(vocabulary, settings, seed=seed, size=image_size)
    heads = painted_heads(SegmenterHead(model, ""), model, baselines, seed=model_seed)
    thresholds = {head.name: sweep_threshold(head, scenes, scenes.others(), limit=None) for head in baselines}
    counted = {head.name: count_images(head, scenes, threshold=thresholds.get(head.name)) for head in heads}
    model.train(was_training)
    return painted_results(scenes, counted, thresholds)


def score_heldout(
    heads: Sequence[Head],
    vocabulary: Vocabulary,
    settings: EvaluateSettings,
    *,
    image_size: int,
    seed: int,
    thresholds: Mapping[str, Threshold] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the scores of these heads alone, by name. Arguments as for `evaluate_heldout`.

    Args: thresholds: by the heads' names; the settings' for other heads.
    """
    scenes = PaintedScenes.of(vocabulary, settings, seed=seed, size=image_size)
    chosen = thresholds or {}
    counted = {head.name: count_images(head, scenes, threshold=chosen.get(head.name)) for head in heads}
    return _scored(scenes, counted, chosen)


def _scored(
    scenes: PaintedScenes,
    counted: Mapping[str, tuple[Confusion, ImageCounts]],
    thresholds: Mapping[str, Threshold],
) -> dict[str, dict[str, Any]]:
    names = scenes.protocol.classes
    return {
        name: {
            **scored(*counts, names),
            **({"threshold": thresholds[name].to_dict()} if name in thresholds else {}),
        }
        for name, counts in counted.items()
    }
