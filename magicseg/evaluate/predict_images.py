"""``magicseg predict``: segment images with a trained model. Files: see `magicseg.stages.mask.image_labelling`.

OUT/predictions.jsonl has one line per image: its size and, by label, the number of pixels, their share of the image
and their mean score.
"""

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.backends import ClassMap, Image
from magicseg.core.distributed import ALONE
from magicseg.core.errors import BackendError, DataError
from magicseg.images.listing import ENDINGS, images_in, is_system_name
from magicseg.images.reading import MAX_PIXELS
from magicseg.labels import Vocabulary
from magicseg.model.card import read_card
from magicseg.stages.mask.image_labelling import LabelledImage, Labeller, label_images

RECORD = "predictions.jsonl"
RECIPE = 3  # raise it when the same image gives a model other pixels


def find_images(
    paths: Sequence[str],
    out: Path,
    *,
    lines: Iterable[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Return the paths of the images, by the names of their results in OUT.

    Args: paths: files; folders, whose images at any depth keep their relative names; patterns such as
    ``"photos/*.jpg"``; or ``-`` for one path a line in ``lines``. tell: called with what is skipped in folders.
    Raises DataError if a path does not exist or two images have the same name.
    """
    found: dict[str, Path] = {}

    def add(name: str, path: Path) -> None:
        if found.setdefault(name, path).resolve() != path.resolve():
            raise DataError(
                f"{path} and {found[name]} would have the same name in {out}: {name}",
                hint="give the folder that holds both, or call the command once for each with another --out",
            )

    for text in paths:
        if text == "-":
            asked = [line.rstrip("\n") for line in lines if line.strip()]
            if not asked:
                raise DataError("standard input names no images", hint="one path a line: find . -name '*.jpg' | ...")
        else:
            asked = [text]
        for one in asked:
            path = Path(one)
            if path.is_dir():
                for name in images_in(path, out, tell=tell):
                    add(name, path / name)
            elif path.exists():
                add(path.name, path)
            else:
                matches = sorted(Path(match) for match in glob.glob(one, recursive=True))
                images = [match for match in matches if _is_image(match, Path(one))]
                if not images:
                    raise DataError(f"{one}: there is no such image or folder, and no images match it")
                for match in images:
                    add(match.name, match)
    return found


def _is_image(match: Path, pattern: Path) -> bool:
    """Return whether a file that matches a pattern is an image, not a system file."""
    found = set(match.parts) - set(pattern.parts)
    return match.suffix.lower() in ENDINGS and not any(map(is_system_name, found)) and match.is_file()


def predict_images(
    images: Mapping[str, Path],
    model_path: Path,
    vocabulary: Vocabulary,
    out: Path,
    *,
    threshold: float,
    window: int | None,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[LabelledImage], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[LabelledImage]:
    """Label every image with a trained model.

    Args: model_path: a model's folder, or a run with a trained model. threshold: pixels whose best label scores less
    are background. window: side of the sliding window, pixels; None: the whole image at once.
    Raises DataError if OUT holds predictions of another model, other labels or settings; StoreError; BackendError
    without torch.
    """
    try:
        from magicseg.model.open_vocabulary import load_model, model_folder
    except ImportError as error:
        raise BackendError(
            f"predictions need torch: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error
    card = read_card(model_folder(model_path))

    def make_labeller() -> Labeller:
        model = load_model(model_path, device=ALONE.device)
        asked = [(label.name, *label.synonyms) for label in vocabulary.labels]

        def label(image: Image) -> tuple[ClassMap, Mapping[str, Any]]:
            found = model.segment(image, asked, threshold=threshold, window=window, scores=False)
            mask = found.labels.astype(np.uint16)
            return mask, {
                "width": image.shape[1],
                "height": image.shape[0],
                "areas": _areas(mask, found.best, vocabulary),
            }

        return label

    return label_images(
        images,
        out,
        RECORD,
        {
            "labels": {str(label.id): label.name for label in vocabulary.labels},
            "vocabulary": vocabulary.digest(),
            "weights": card["weights_digest"],
            "threshold": threshold,
            "window": window,
            "recipe": RECIPE,
        },
        make_labeller,
        classes=len(vocabulary),
        relief="give fewer labels, or --window 512" if window is None else "give fewer labels, or a smaller --window",
        max_pixels=max_pixels,
        report=report,
        should_stop=should_stop,
    )


def _areas(mask: ClassMap, best: NDArray[np.float32], vocabulary: Vocabulary) -> dict[str, dict[str, float]]:
    areas = {}
    for label in vocabulary.labels:
        where = mask == label.id
        count = int(where.sum())
        if count:
            areas[label.name] = {
                "pixels": count,
                "share": round(count / mask.size, 6),
                "mean_score": round(float(best[where].mean()), 4),
            }
    return areas
