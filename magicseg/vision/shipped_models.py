"""The shipped detectors and segmenters. Their model libraries are imported by the constructors."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from magicseg.backends import Detections, DetectRequest, SegmentRequest, Segments
from magicseg.config.model import encoder_weights
from magicseg.core.documents import read_bytes
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch
from magicseg.vision.model_options import (
    ClipOptions,
    DetectorOptions,
    OriginalDetectorOptions,
    OriginalSegmenterOptions,
    Sam3Options,
    SegmenterOptions,
)
from magicseg.weights import Weights
from magicseg.weights.cache import location

_BERT = ("config.json", "tokenizer*.json", "vocab*.txt")  # the weights are in the checkpoint

RECIPE = 1  # raise it when the same images, options and weights give other results


class TransformersDetector:
    """GroundingDINO, MM-GroundingDINO, OWL-ViT, OWLv2 and OmDet-Turbo, as transformers saves them."""

    Options = DetectorOptions
    LIBRARIES = ("torch", "transformers")
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: DetectorOptions) -> Mapping[str, str | int]:
        """Return the recipe's number."""
        return {"transformers": RECIPE}

    @classmethod
    def weights(cls, options: DetectorOptions) -> list[Weights]:
        """Return all files that transformers reads from a folder."""
        return [Weights(setting="model", model=options.model, revision=options.revision)]

    def __init__(self, batch: HasBatch, options: DetectorOptions) -> None:
        """Load the model. Raises: BackendError."""
        from magicseg.vision.transformers_detector import load_detector

        self._model = load_detector(options, location(self.weights(options)[0]), batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the model cannot query one of these labels."""
        self._model.check_labels(labels)

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return all candidates of every image."""
        return self._model.detect(requests)


class Sam3:
    """SAM 3, as transformers saves it: boxes and masks of all instances of a label."""

    Options = Sam3Options
    LIBRARIES = ("torch", "transformers")
    GIVES_MASKS = True
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: Sam3Options) -> Mapping[str, str | int]:
        """Return the recipe's number."""
        return {"sam3": RECIPE}

    @classmethod
    def weights(cls, options: Sam3Options) -> list[Weights]:
        """Return all files that transformers reads from a folder."""
        return [Weights(setting="model", model=options.model, revision=options.revision)]

    def __init__(self, batch: HasBatch, options: Sam3Options) -> None:
        """Load the model. Raises: BackendError."""
        from magicseg.vision.sam3_detector import load_sam3

        self._model = load_sam3(options, location(self.weights(options)[0]), batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the model cannot query one of these labels."""
        self._model.check_labels(labels)

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return the best candidates of every label, with their masks."""
        return self._model.detect(requests)


class ClipDetector:
    """CLIP scores labels for whole images, without boxes: for ``generate.validity``."""

    Options = ClipOptions
    LIBRARIES = ("torch", "open_clip")

    @classmethod
    def identity(cls, options: ClipOptions) -> Mapping[str, str | int]:
        """Return the recipe's number."""
        return {"clip": RECIPE}

    @classmethod
    def weights(cls, options: ClipOptions) -> list[Weights]:
        """Return the weights, open_clip's configuration, and the tokenizer."""
        return [replace(each, setting="model") for each in encoder_weights(options.settings)]

    def __init__(self, batch: HasBatch, options: ClipOptions) -> None:
        """Load the model. Raises: BackendError."""
        from magicseg.vision.clip_detector import ClipScorer

        self._model = ClipScorer(options, batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if CLIP cannot distinguish two texts."""
        self._model.check_labels(labels)

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return the whole image as every label's box, with its score."""
        return self._model.detect(requests)


class TransformersSegmenter:
    """SAM, SAM-HQ, SAM 2, the tracker of SAM 3 and EdgeTAM, as transformers saves them."""

    Options = SegmenterOptions
    LIBRARIES = ("torch", "transformers")
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: SegmenterOptions) -> Mapping[str, str | int]:
        """Return the recipe's number."""
        return {"transformers": RECIPE}

    @classmethod
    def weights(cls, options: SegmenterOptions) -> list[Weights]:
        """Return all files that transformers reads from a folder."""
        return [Weights(setting="model", model=options.model, revision=options.revision)]

    def __init__(self, batch: HasBatch, options: SegmenterOptions) -> None:
        """Load the model. Raises: BackendError."""
        from magicseg.vision.transformers_segmenter import load_segmenter

        self._model = load_segmenter(options, location(self.weights(options)[0]), batch)

    def segment(self, requests: Sequence[SegmentRequest]) -> list[Segments]:
        """Return one outline per box."""
        return self._model.segment(requests)

    def segment_parts(self, request: SegmentRequest) -> Iterator[Segments]:
        """Yield the outlines of one image, some boxes at a time."""
        return self._model.segment_parts(request)


class OriginalDetector:
    """GroundingDINO by groundingdino-py, from the released ``.pth``."""

    Options = OriginalDetectorOptions
    LIBRARIES = ("torch", "transformers", "groundingdino")
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: OriginalDetectorOptions) -> Mapping[str, str | int]:
        """Return the recipe's number and the configuration."""
        return {"original": RECIPE, "config": _config_identity(options.config)}

    @classmethod
    def weights(cls, options: OriginalDetectorOptions) -> list[Weights]:
        """Return the checkpoint, and the text encoder's tokenizer and configuration."""
        bert = options.text_encoder
        return [
            Weights(setting="model", model=options.model, revision=options.revision, files=(options.file,)),
            Weights(setting="text_encoder.model", model=bert.model, revision=bert.revision, files=_BERT),
        ]

    def __init__(self, batch: HasBatch, options: OriginalDetectorOptions) -> None:
        """Load the model. Raises: BackendError."""
        with _authors_packages():
            from magicseg.vision.original_detector import load_original_detector

        checkpoint, bert = map(location, self.weights(options))
        self._model = load_original_detector(options, checkpoint / options.file, bert, batch)

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the model cannot query one of these labels."""
        self._model.check_labels(labels)

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return all candidates of every image."""
        return self._model.detect(requests)


class OriginalSegmenter:
    """SAM by segment-anything, from the released ``.pth``."""

    Options = OriginalSegmenterOptions
    LIBRARIES = ("torch", "segment_anything")
    THREAD_SAFE = True

    @classmethod
    def identity(cls, options: OriginalSegmenterOptions) -> Mapping[str, str | int]:
        """Return the recipe's number."""
        return {"original": RECIPE}

    @classmethod
    def weights(cls, options: OriginalSegmenterOptions) -> list[Weights]:
        """Return the checkpoint."""
        return [Weights(setting="model", model=options.model, revision=options.revision, files=(options.file,))]

    def __init__(self, batch: HasBatch, options: OriginalSegmenterOptions) -> None:
        """Load the model. Raises: BackendError."""
        with _authors_packages():
            from magicseg.vision.original_segmenter import load_original_segmenter

        folder = location(self.weights(options)[0])
        self._model = load_original_segmenter(options, folder / options.file, batch)

    def segment(self, requests: Sequence[SegmentRequest]) -> list[Segments]:
        """Return one outline per box."""
        return self._model.segment(requests)

    def segment_parts(self, request: SegmentRequest) -> Iterator[Segments]:
        """Yield the outlines of one image, some boxes at a time."""
        return self._model.segment_parts(request)


@contextlib.contextmanager
def _authors_packages() -> Iterator[None]:
    """Raise BackendError that names the extra to install if the authors' packages cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise BackendError(
            f"back end 'original' cannot be imported: {error}",
            hint="install the authors' packages: pip install 'magicseg[models,original]'",
        ) from error


def _config_identity(config: str) -> str:
    import hashlib

    if config in ("swin-t", "swin-b"):
        return config
    try:
        return hashlib.sha256(read_bytes(Path(config), error=BackendError)).hexdigest()
    except OSError as error:
        raise BackendError(
            f"detector.options.config: {config}: {error.strerror}", hint="swin-t, swin-b or a file"
        ) from None
