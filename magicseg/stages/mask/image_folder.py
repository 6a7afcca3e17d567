"""``magicseg mask --images``: mask a folder of images. Output files: see `magicseg.stages.mask.image_labelling`."""

import functools
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicseg.backends import Backend, ClassMap, Image, Masker, MaskRequest, Rejection
from magicseg.config.stage_settings import MaskSettings
from magicseg.core.errors import BackendError, MagicsegError
from magicseg.core.settings import Settings
from magicseg.images.listing import images_in
from magicseg.images.reading import MAX_PIXELS
from magicseg.installed_backends import choose_backend, with_nested
from magicseg.labels import Vocabulary
from magicseg.stages.mask.image_labelling import LabelledImage, Labeller, label_images
from magicseg.weights import Weights
from magicseg.weights.cache import seen_cache, snapshot
from magicseg.weights.hashing import path_identity

RECORD = "masks.jsonl"
RECIPE = 2  # raise it when a masker gets other pixels for the same image file


def refuse_uncached(settings: MaskSettings, hint: str) -> None:
    """Raise BackendError if weights by name are not whole in this machine's cache.

    Args: hint: how to get them. Raises ConfigError for options that the back end does not take.
    """
    backend, options, _ = _chosen(settings)
    for weights in (weights for each in with_nested(backend, options) for weights in each.weights()):
        if weights.by_name and not _is_cached(weights):
            raise BackendError(
                f"mask.options.{weights.setting}: {weights.model} at {weights.revision} is not, or not whole, in "
                f"this machine's cache ({seen_cache()})",
                hint=hint,
            )


def _is_cached(weights: Weights) -> bool:
    folder = snapshot(weights)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return bool(weights.chosen(names)) and not weights.lacking(names)


def single_image_masker(settings: MaskSettings) -> Masker:
    """Load the masker of these settings for single images, which need not show every label.

    Raises BackendError, ConfigError.
    """
    backend, options, effective = _chosen(settings)
    constructor: Any = backend
    try:
        made: Masker = constructor(effective, options)
    except MagicsegError:
        raise
    except Exception as error:  # foreign code
        raise BackendError(
            f"back end {settings.backend!r} of mask cannot start: {type(error).__name__}: {error}",
            hint="check mask.options",
        ) from error
    return made


def _chosen(settings: MaskSettings) -> tuple[type[Backend], Settings, MaskSettings]:
    """Return the back end, its options and the stage's settings, as they are for single images."""
    backend, options = choose_backend("maskers", settings.backend, settings.options, "mask")
    if "missing_labels" in type(options).model_fields:
        options = options.model_copy(update={"missing_labels": "keep"})
    effective = settings.model_copy(update={"batch_size": 1, "options": options.model_dump(mode="json")})
    return backend, options, effective


def _deciding(vocabulary: Vocabulary, settings: MaskSettings) -> dict[str, Any]:
    """Return everything that affects a mask, as plain data. Raises BackendError if weights by path cannot be read."""
    backend, options, effective = _chosen(settings)
    recipes: dict[str, str | int] = {"photographs": RECIPE}
    weights: dict[str, str] = {}
    mask = effective.model_dump(mode="json", exclude=set(effective.NEUTRAL))
    for nested in with_nested(backend, options):
        recipes |= nested.identity()
        for name in nested.options.not_in_fingerprint - nested.options.NEUTRAL:  # records of older versions lack it
            *groups, last = nested.key(name).split(".")
            del functools.reduce(operator.getitem, groups, mask["options"])[last]
        for each in nested.weights():
            where = f"mask.options.{each.setting}"
            weights[each.setting] = each.name if each.by_name else path_identity(each, where)
    return {
        "labels": {str(label.id): label.name for label in vocabulary.labels},
        "mask": mask,
        "recipes": recipes,
        "weights": weights,
    }


def mask_folder(
    folder: Path,
    vocabulary: Vocabulary,
    settings: MaskSettings,
    out: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[LabelledImage], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[LabelledImage]:
    """Mask every image in a folder, as `label_images` does.

    Raises DataError if OUT holds masks of other labels, settings or weights; StoreError; BackendError.
    """

    def make_labeller() -> Labeller:
        masker = single_image_masker(settings)
        check_labels = getattr(masker, "check_labels", None)
        if check_labels is not None:
            check_labels(vocabulary.labels)

        def label(image: Image) -> tuple[ClassMap, Mapping[str, Any]] | Rejection:
            request = MaskRequest(
                index=0, labels=vocabulary.labels, caption="", image=image, counterfactual=None, seed=0
            )
            (answer,) = masker.mask([request])
            return answer if isinstance(answer, Rejection) else (answer.mask, answer.quality)

        return label

    return label_images(
        {name: folder / name for name in images_in(folder, out)},
        out,
        RECORD,
        _deciding(vocabulary, settings),
        make_labeller,
        classes=len(vocabulary),
        relief="give fewer labels, or a smaller copy of the image",
        max_pixels=max_pixels,
        report=report,
        should_stop=should_stop,
    )
