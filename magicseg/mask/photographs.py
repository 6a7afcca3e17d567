"""``magicseg mask --images``: the masker on a folder of one's own photographs.

OUT/FILE.png          class ids per pixel, with a palette (more than 254 classes: 16 bits); the ignore index is 255
OUT/overlays/FILE.jpg the class map over the photograph
OUT/masks.jsonl       first the settings and labels, then one line per photograph: what was found, or why nothing
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps, UnidentifiedImageError

from magicseg.backends import ClassMap, Image, Masked, Masker, MaskRequest, choose_backend
from magicseg.config import MaskSettings
from magicseg.errors import BackendError, DataError, MagicsegError
from magicseg.labels import IGNORE, Label, Vocabulary, load_vocabulary, vocabulary_names
from magicseg.mask.colours import class_colour, overlay
from magicseg.run.files import storage_errors, write_atomic

RECORD = "masks.jsonl"
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_PNG_IGNORE = 255


@dataclass(frozen=True)
class MaskedPhotograph:
    """What became of a photograph: its name in the folder, whether it has a mask now, and what was told of it."""

    name: str
    masked: bool
    entry: Mapping[str, Any]


def labels_of(text: str) -> Vocabulary:
    """Labels as typed: a shipped vocabulary's name, a path to a list, or names with commas between.

    Raises: LabelError.
    """
    if text in vocabulary_names() or text.endswith((".txt", ".yaml")):
        return load_vocabulary(text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    return Vocabulary(
        name="typed", labels=tuple(Label(id=place, name=name) for place, name in enumerate(names, start=1))
    )


def photographs_in(folder: Path) -> list[str]:
    """The images in a folder and below, by their names in it. Raises: DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder", hint="--images FOLDER")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _ENDINGS and path.is_file()
    )
    if not names:
        raise DataError(f"{folder}: holds no images", hint=f"their names end in {', '.join(sorted(_ENDINGS))}")
    return names


def photograph_masker(settings: MaskSettings) -> Masker:
    """The masker of these settings for single photographs: one at a time, which need not show every label.

    Raises: BackendError, ConfigError.
    """
    backend, options = choose_backend("maskers", settings.backend, settings.options, "mask")
    if "missing_labels" in type(options).model_fields:
        options = options.model_copy(update={"missing_labels": "keep"})
    constructor: Any = backend
    try:
        made: Masker = constructor(settings.model_copy(update={"batch_size": 1}), options)
    except MagicsegError:
        raise
    except Exception as error:  # foreign code
        raise BackendError(
            f"back end {settings.backend!r} of mask cannot start: {type(error).__name__}: {error}",
            hint="check mask.options",
        ) from error
    return made


def mask_photographs(
    folder: Path,
    vocabulary: Vocabulary,
    settings: MaskSettings,
    out: Path,
    *,
    report: Callable[[MaskedPhotograph], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[MaskedPhotograph]:
    """Mask every photograph that OUT has no line for; a line is written after its files.

    Returns: what became of all of them, those of earlier calls too.
    Raises: DataError if OUT holds masks of other labels or settings; StoreError; BackendError.
    """
    names = photographs_in(folder)
    head = {"labels": {label.id: label.name for label in vocabulary.labels}, "mask": settings.model_dump(mode="json")}
    with storage_errors(out, "choose a folder with free space that you can write to: --out FOLDER"):
        done = _read_record(out, json.loads(json.dumps(head)))
        masker = None
        for name in names:
            if should_stop():
                break
            if name in done:
                continue
            masker = masker or photograph_masker(settings)
            done[name] = _one(folder, name, vocabulary, masker, out)
            _append(out, json.dumps({"image": name, **done[name].entry}, ensure_ascii=False).encode())
            report(done[name])
    return [done[name] for name in names if name in done]


def _one(folder: Path, name: str, vocabulary: Vocabulary, masker: Masker, out: Path) -> MaskedPhotograph:
    try:
        with Pictures.open(folder / name) as picture:
            image: Image = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, Pictures.DecompressionBombError) as error:
        return MaskedPhotograph(name, False, {"status": "failed", "reason": "unreadable", "detail": str(error)})
    request = MaskRequest(index=0, labels=vocabulary.labels, caption="", image=image, counterfactual=None, seed=0)
    try:
        (answer,) = masker.mask([request])
    except MagicsegError:
        raise
    except Exception as error:  # foreign code: whatever it raises is recorded
        detail = f"{type(error).__name__}: {error}"[:500]
        return MaskedPhotograph(name, False, {"status": "failed", "reason": "error", "detail": detail})
    if not isinstance(answer, Masked):
        return MaskedPhotograph(name, False, {"status": "dropped", "reason": answer.reason, "detail": answer.detail})
    for target, content in (
        (out / f"{name}.png", class_png(answer.mask, len(vocabulary))),
        (out / "overlays" / f"{name}.jpg", _jpeg(overlay(image, answer.mask))),
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)
    return MaskedPhotograph(name, True, {"status": "kept", **answer.quality})


def class_png(mask: ClassMap, classes: int) -> bytes:
    """A class map as PNG: 8 bits with the classes' colours and 255 to ignore; above 254 classes 16 bits and 65535."""
    buffer = io.BytesIO()
    if classes >= _PNG_IGNORE:
        Pictures.fromarray(mask).save(buffer, "PNG")
        return buffer.getvalue()
    picture = Pictures.fromarray(np.where(mask == IGNORE, _PNG_IGNORE, mask).astype(np.uint8), mode=None)
    colours = [(0, 0, 0), *(class_colour(id_) for id_ in range(1, _PNG_IGNORE)), (224, 224, 192)]
    picture.putpalette([channel for colour in colours for channel in colour])
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(image: Image) -> bytes:
    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _read_record(out: Path, head: Mapping[str, Any]) -> dict[str, MaskedPhotograph]:
    """What earlier calls have done; a first line is written if there were none."""
    lines = list(_lines(out / RECORD))
    if not lines:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / RECORD, (json.dumps(head, ensure_ascii=False) + "\n").encode())
        return {}
    if lines[0] != head:
        raise DataError(
            f"{out / RECORD}: its masks are of other labels or settings",
            hint="choose another folder: --out FOLDER",
        )
    if not (out / RECORD).read_bytes().endswith(b"\n"):
        _append(out, b"")  # what comes next must not join a line that was cut off
    found = {}
    for line in lines[1:]:
        name = str(line.pop("image"))
        if line["status"] != "failed":
            found[name] = MaskedPhotograph(name, line["status"] == "kept", line)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # one that was being written when the command was killed
                yield json.loads(line)


def _append(out: Path, line: bytes) -> None:
    with (out / RECORD).open("ab") as file:
        file.write(line + b"\n")
