"""``magicseg mask --images``: the masker on a folder of one's own photographs.

OUT/FILE.png          class ids per pixel, with a palette (more than 254 classes: 16 bits); the ignore index is 255
OUT/overlays/FILE.jpg the class map over the photograph
OUT/masks.jsonl       first the labels and all else that decides a mask; then one line per photograph: its SHA-256,
                      and what was found, or why nothing
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from magicseg.backends import (
    Backend,
    Masker,
    MaskRequest,
    Rejection,
    choose_backend,
    identity_in,
    weights_of,
)
from magicseg.config import MaskSettings
from magicseg.errors import BackendError, DataError, MagicsegError
from magicseg.labels import Vocabulary
from magicseg.mask.pictures import class_png, overlay_jpeg, photographs_in, read_pixels
from magicseg.run.files import storage_errors, write_atomic
from magicseg.run.fingerprint import changed_keys
from magicseg.settings import Settings
from magicseg.weights import Weights
from magicseg.weights.cache import seen_cache, snapshot
from magicseg.weights.digest import path_identity

RECORD = "masks.jsonl"
RECIPE = 1  # goes up whenever the same photograph gives a masker other pixels
_NO_FILES = (None, None)


@dataclass(frozen=True)
class MaskedPhotograph:
    """What became of a photograph: its name in the folder, whether it has a mask now, and what was told of it."""

    name: str
    masked: bool
    entry: Mapping[str, Any]


def refuse_uncached(settings: MaskSettings, hint: str) -> None:
    """See that weights by name are in this machine's cache, where no run says which files they have.

    Args: hint: how to get them. Raises: BackendError, ConfigError.
    """
    for weights in weights_of(*_chosen(settings)[:2]):
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


def photograph_masker(settings: MaskSettings) -> Masker:
    """The masker of these settings for single photographs: one at a time, which need not show every label.

    Raises: BackendError, ConfigError.
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
    """The back end, its options and the stage's settings, as they are for photographs."""
    backend, options = choose_backend("maskers", settings.backend, settings.options, "mask")
    if "missing_labels" in type(options).model_fields:
        options = options.model_copy(update={"missing_labels": "keep"})
    effective = settings.model_copy(update={"batch_size": 1, "options": options.model_dump(mode="json")})
    return backend, options, effective


def _deciding(vocabulary: Vocabulary, settings: MaskSettings) -> dict[str, Any]:
    """All that decides a photograph's mask, as plain data. Raises: BackendError if weights by path cannot be read."""
    backend, options, effective = _chosen(settings)
    weights = {
        each.setting: each.name if each.by_name else path_identity(each, f"mask.options.{each.setting}")
        for each in weights_of(backend, options)
    }
    return {
        "labels": {str(label.id): label.name for label in vocabulary.labels},
        "mask": effective.model_dump(mode="json"),
        "recipes": {"photographs": RECIPE, **backend.identity(options), **identity_in(options)},
        "weights": weights,
    }


def mask_photographs(
    folder: Path,
    vocabulary: Vocabulary,
    settings: MaskSettings,
    out: Path,
    *,
    report: Callable[[MaskedPhotograph], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[MaskedPhotograph]:
    """Mask every photograph whose content OUT has no line for; a line is written after its files.

    Returns: what became of all of them, now or in earlier calls, as far as it got.
    Raises: DataError if OUT holds masks of other labels, settings or weights; StoreError; BackendError.
    """
    names = photographs_in(folder, out)
    head = _deciding(vocabulary, settings)
    found: list[MaskedPhotograph] = []
    with storage_errors(out, "choose a folder with free space that you can write to: --out FOLDER"):
        before = _read_record(out, head)
        masker = None
        for name in names:
            if should_stop():
                break
            content, digest = _content(folder / name)
            if digest and name in before and before[name].entry.get("sha256") == digest:
                found.append(before[name])
                continue
            masker = masker or photograph_masker(settings)
            files, entry = _one(content, vocabulary, masker)
            for path, file in zip((out / f"{name}.png", out / "overlays" / f"{name}.jpg"), files, strict=True):
                if file is None:
                    path.unlink(missing_ok=True)  # of a photograph that was replaced
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(path, file)
            done = MaskedPhotograph(name, entry["status"] == "kept", {**entry, "sha256": digest})
            # Names that are no text, too: ASCII with escapes gives them back.
            _append(out, json.dumps({"image": name, **done.entry}).encode())
            found.append(done)
            report(done)
    return found


def _content(path: Path) -> tuple[bytes | OSError, str | None]:
    """A file's content, or why there is none, and its SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return error, None
    return content, hashlib.sha256(content).hexdigest()


def _one(
    content: bytes | OSError, vocabulary: Vocabulary, masker: Masker
) -> tuple[tuple[bytes | None, bytes | None], dict[str, Any]]:
    """A photograph's class map and overlay as files, if it gets them; and what to write down of it."""
    try:
        if isinstance(content, OSError):
            raise content
        image = read_pixels(content)
    except UnidentifiedImageError:  # whose text names an object
        return _NO_FILES, _failure("unreadable", "no image of a known format")
    except Exception as error:  # parsers of damaged files raise whatever they like
        return _NO_FILES, _failure("unreadable", _told(error))
    request = MaskRequest(index=0, labels=vocabulary.labels, caption="", image=image, counterfactual=None, seed=0)
    try:
        (answer,) = masker.mask([request])
        if isinstance(answer, Rejection):
            return _NO_FILES, {"status": "dropped", "reason": answer.reason, "detail": answer.detail}
        files = class_png(answer.mask, len(vocabulary)), overlay_jpeg(image, answer.mask)
    except Exception as error:  # foreign code: what it raises of one photograph is written down
        if _lacks_memory(error):
            return _NO_FILES, _failure("out-of-memory", _told(error))
        if isinstance(error, MagicsegError):
            raise
        return _NO_FILES, _failure("error", _told(error))
    return files, {"status": "kept", **answer.quality}


def _failure(reason: str, detail: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "detail": detail}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:500]


def _lacks_memory(error: Exception) -> bool:
    """Whether a photograph was too large. Such errors of models are known where torch is: it is not imported here."""
    devices = sys.modules.get("magicseg.devices")
    if devices is None or isinstance(error, MemoryError):
        return isinstance(error, MemoryError)
    if isinstance(error, MagicsegError):
        return isinstance(error, devices.OutOfMemory)
    return bool(devices.is_out_of_memory(error))


def _read_record(out: Path, head: Mapping[str, Any]) -> dict[str, MaskedPhotograph]:
    """What earlier calls have done; a first line is written if there were none."""
    lines = list(_lines(out / RECORD))
    if not lines:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / RECORD, (json.dumps(head) + "\n").encode())
        return {}
    differing = changed_keys(_flat(lines[0]), _flat(head))
    if differing:
        raise DataError(
            f"{out / RECORD}: its masks are of other labels or settings: {'; '.join(differing[:5])}",
            hint="choose another folder: --out FOLDER",
        )
    if not (out / RECORD).read_bytes().endswith(b"\n"):
        _append(out, b"")  # what comes next must not join a line that was cut off
    found: dict[str, MaskedPhotograph] = {}
    for line in lines[1:]:
        name, status = str(line.pop("image", "")), line.get("status")
        if status == "failed":
            found.pop(name, None)
        else:
            found[name] = MaskedPhotograph(name, status == "kept", line)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # one that was being written when the command was killed
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _append(out: Path, line: bytes) -> None:
    with (out / RECORD).open("ab") as file:
        file.write(line + b"\n")
