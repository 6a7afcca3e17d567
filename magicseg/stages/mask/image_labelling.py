"""Label image files one after the other and record the results, so that a second call does only what is missing.

OUT/FILE.png            class ids per pixel, with a palette (more than 254 classes: 16 bits); the ignore index is 255
OUT/overlays/FILE.jpg   the class map over the image
OUT/RECORD.jsonl        first everything that affects a class map; then one line per image: its SHA-256, and what was
                        found, or why it has no class map
OUT/attempts/           the images in progress, see `magicseg.run.attempts`
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicseg.backends import ClassMap, Image, Rejection
from magicseg.core.documents import read_bytes
from magicseg.core.dotted_keys import flattened
from magicseg.core.errors import DataError, MagicsegError, OutOfMemory
from magicseg.core.files import storage_errors, write_atomic
from magicseg.core.text import command
from magicseg.images.overlays import class_png, overlay_jpeg
from magicseg.images.reading import MAX_PIXELS, ImageTooLarge, UnreadableImage, decode_image, image_bytes
from magicseg.run.attempts import Attempts, told
from magicseg.run.fingerprint import changed_keys

Labeller = Callable[[Image], tuple[ClassMap, Mapping[str, Any]] | Rejection]
"""Takes an image, uint8 (H, W, 3); returns its class map and notes on it, or a rejection."""

Made = tuple[tuple[bytes | None, bytes | None], dict[str, Any]]
"""An image's class map and overlay as files, and its entry in the record."""

_NO_FILES = (None, None)
_RECORD_BYTES = 1 << 30  # some million images


@dataclass(frozen=True)
class LabelledImage:
    """The result for one image file: its name, whether it has a class map now, and its entry in the record."""

    name: str
    labelled: bool
    entry: Mapping[str, Any]

    @property
    def remark(self) -> str | None:
        """A note for the user: why there is no class map, or that only the first page was read."""
        if not self.labelled:
            return f"{self.entry['reason']}: {self.entry['detail']}"
        skipped = self.entry.get("skipped_pages", 0)
        return f"only its first page was read; {skipped} more were skipped" if skipped else None


def label_images(
    images: Mapping[str, Path],
    out: Path,
    record: str,
    head: Mapping[str, Any],
    make_labeller: Callable[[], Labeller],
    *,
    classes: int,
    relief: str,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[LabelledImage], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[LabelledImage]:
    """Label every image whose content has no line in the record; a line is written after its files.

    An image on which an earlier process died is not tried again, but recorded as failed.

    Args: images: files by their names in OUT. record: the name of the record. head: everything that affects a class
    map, as plain data. make_labeller: called once, if anything is left to do. classes: the greatest id. relief: how
    to need less memory for an image, in the imperative. max_pixels: larger images are not decoded.
    Returns the results of this call and of earlier ones, up to a stop.
    Raises DataError if OUT holds class maps of another head; StoreError; a labeller's own MagicsegError.
    """
    found: list[LabelledImage] = []
    with (
        storage_errors(out, "run the same command again, or choose another folder: --out FOLDER"),
        Attempts(out) as attempts,
    ):
        before = _read_record(out / record, head)
        labeller = None
        for name, path in images.items():
            if should_stop():
                break
            content, digest = _content(path)
            if digest and name in before and before[name].entry.get("sha256") == digest:
                found.append(before[name])
                continue
            if digest and (left := attempts.killed(name, digest)) is not None:
                made: Made = _NO_FILES, _failure("killed", told(left))
            else:
                labeller = labeller or make_labeller()
                with attempts.on(name, digest or ""):
                    made = _one(content, labeller, classes, relief, max_pixels)
            files, entry = made
            for target, file in zip((out / f"{name}.png", out / "overlays" / f"{name}.jpg"), files, strict=True):
                if file is None:
                    target.unlink(missing_ok=True)  # of an image file that was replaced
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(target, file)
            done = LabelledImage(name, entry["status"] == "kept", {**entry, "sha256": digest})
            # ASCII with escapes also represents names that are not valid UTF-8.
            _append(out / record, json.dumps({"image": name, **done.entry}).encode())
            found.append(done)
            report(done)
    return found


def next_step(done: Sequence[LabelledImage], out: Path) -> str:
    """Return the hint of a command that left images unlabelled."""
    if any(one.entry.get("reason") == "killed" for one in done):
        again = command("rm", "-r", out / "attempts")
        return f"to retry images on which an earlier process died: {again}; then the same command"
    return "run the same command again for the missing images"


def _content(path: Path) -> tuple[bytes | UnreadableImage, str | None]:
    """Return a file's content, or why it cannot be read, and its SHA-256."""
    try:
        content = image_bytes(path)
    except UnreadableImage as error:
        return error, None
    return content, hashlib.sha256(content).hexdigest()


def _one(content: bytes | UnreadableImage, labeller: Labeller, classes: int, relief: str, max_pixels: int) -> Made:
    """Label one image. Returns its files, if it gets a class map, and its entry in the record."""
    try:
        if isinstance(content, UnreadableImage):
            raise content
        decoded = decode_image(content, upright=True, max_pixels=max_pixels)
        image = decoded.pixels
    except ImageTooLarge as error:
        return _NO_FILES, _failure("too-large", f"{error.message} (--max-pixels)")
    except UnreadableImage as error:
        return _NO_FILES, _failure("unreadable", error.message)
    except MemoryError as error:
        return _NO_FILES, _failure("out-of-memory", _told(error))
    try:
        answer = labeller(image)
        if isinstance(answer, Rejection):
            return _NO_FILES, {"status": "dropped", "reason": answer.reason, "detail": answer.detail}
        mask, told = answer
        files = class_png(mask, classes), overlay_jpeg(image, mask)
    except Exception as error:  # foreign code: its error concerns this image only
        if _lacks_memory(error):
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            detail = f"{size} with {classes} labels do not fit into memory: {relief} ({_told(error)})"
            return _NO_FILES, _failure("out-of-memory", detail)
        if isinstance(error, MagicsegError):
            raise
        return _NO_FILES, _failure("error", _told(error))
    skipped = {"skipped_pages": decoded.pages - 1} if decoded.pages > 1 else {}
    return files, {"status": "kept", **told, **skipped}


def _failure(reason: str, detail: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "detail": detail}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:500]


def _lacks_memory(error: Exception) -> bool:
    """Return whether an error says that memory does not suffice. Does not import torch: models have done that."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from magicseg.core.devices import is_out_of_memory

    return isinstance(error, OutOfMemory) if isinstance(error, MagicsegError) else is_out_of_memory(error)


def _read_record(path: Path, head: Mapping[str, Any]) -> dict[str, LabelledImage]:
    """Return the results of earlier calls. Writes the first line of a new record."""
    lines = list(_lines(path))
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(head) + "\n").encode())
        return {}
    differing = changed_keys(flattened(lines[0]), flattened(head))
    if differing:
        raise DataError(
            f"{path}: its masks are of other labels or settings: {'; '.join(differing[:5])}",
            hint="choose another folder: --out FOLDER",
        )
    if not _ends_in_newline(path):
        _append(path, b"")  # the next line must not join one that was cut off
    found: dict[str, LabelledImage] = {}
    for line in lines[1:]:
        name, status = str(line.pop("image", "")), line.get("status")
        if status == "failed":
            found.pop(name, None)
        else:
            found[name] = LabelledImage(name, status == "kept", line)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for text in read_bytes(path, limit=_RECORD_BYTES).splitlines():
            # Lines may be half written. Names may hold surrogates, which stricter parsers refuse.
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")
