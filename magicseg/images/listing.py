"""List files below a folder. Files of operating systems, file servers and editors are skipped."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from magicseg.core.errors import DataError
from magicseg.core.text import command, printable

# fmt: off
ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".jp2",
    ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm",
})
"""Endings of the images that are read, in lower case."""

# Endings of unsupported image formats, so that a message can list the skipped files.
_OTHER_ENDINGS = frozenset({
    ".heic", ".heif", ".jxl", ".jxr", ".psd", ".svg", ".eps", ".exr", ".hdr", ".dcm", ".tga", ".ico", ".raw", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".srw", ".pef",
})
# fmt: on
_SYSTEM_NAMES = frozenset(
    {
        ".ds_store",
        ".appledouble",
        ".spotlight-v100",
        ".trashes",
        ".fseventsd",
        ".ipynb_checkpoints",
        ".thumbnails",
        ".git",
        "@eadir",
        "#recycle",
        "__macosx",
        "thumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
_SHOWN = 5


def is_system_name(name: str) -> bool:
    """Return whether a name belongs to a system file or folder, such as ``._a.jpg``, ``@eaDir`` or ``.nfs0000``."""
    return name.startswith(("._", ".nfs", ".Trash-")) or name.lower() in _SYSTEM_NAMES


def files_below(folder: Path, *, without: Path | None = None) -> Iterator[str]:
    """Yield the names, relative to ``folder``, of all files at any depth.

    Symlinked folders are followed. Each real folder is visited once, so that symlink loops end. System files and
    folders (`is_system_name`) are skipped.

    Args: without: another folder to skip.
    Raises: DataError that names the folder if a folder cannot be listed.
    """
    seen = set()
    if without is not None and without.exists():
        seen.add(_identity(without))
    real, linked = [""], deque[str]()
    while real or linked:
        here = real.pop() if real else linked.popleft()
        try:
            identity = _identity(folder / here)
            if identity in seen:
                continue
            seen.add(identity)
            entries = sorted(os.scandir(folder / here), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{folder / here}: this folder cannot be listed: {error.strerror}",
                hint="make it readable, or move it",
            ) from error
        for entry in entries:
            if is_system_name(entry.name):
                continue
            name = f"{here}/{entry.name}" if here else entry.name
            if entry.is_dir():
                (linked if entry.is_symlink() else real).append(name)
            elif entry.is_file():
                yield name


def images_in(folder: Path, out: Path, *, tell: Callable[[str], None] = lambda text: None) -> list[str]:
    """Return the images under a folder, recursively, sorted by relative path.

    Files in ``out`` are skipped, because they are results.

    Args: tell: called with a message about skipped images in unsupported formats.
    Raises: DataError if the folder has no images, or lies in ``out``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder", hint="--images FOLDER")
    if folder.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"{out}: contains the input images, so masks would be read as input",
            hint=f"choose another folder, beside them or inside: --out {command(folder / 'masks')}",
        )
    found, skipped = [], []
    for name in files_below(folder, without=out):
        ending = Path(name).suffix.lower()
        if ending in ENDINGS:
            found.append(name)
        elif ending in _OTHER_ENDINGS:
            skipped.append(name)
    skipped.sort()
    shown = ", ".join(printable(name, 100) for name in skipped[:_SHOWN])
    if not found:
        raise DataError(
            f"{folder}: holds no images" + (f" in a supported format: {shown}" if skipped else ""),
            hint=f"supported extensions: {', '.join(sorted(ENDINGS))}",
        )
    if skipped:
        more = ", ..." if len(skipped) > _SHOWN else ""
        tell(f"{folder}: skipped {len(skipped)} images in unsupported formats: {shown}{more}")
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
