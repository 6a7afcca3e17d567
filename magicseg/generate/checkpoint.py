"""What a checkpoint on disk is: its pipeline's class and its parts, without any model library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magicseg.errors import BackendError
from magicseg.generate.families import FAMILIES

INDEX = "model_index.json"
_READ = ("json", "safetensors", "txt", "model")  # what a pipeline reads of its parts


def read_files(parts: Sequence[str] = ("*",)) -> tuple[str, ...]:
    """Patterns of the files that a pipeline with these parts reads."""
    return (INDEX, *(f"{part}/*.{suffix}" for part in parts for suffix in _READ))


def read_index(folder: Path) -> Mapping[str, Any]:
    """A checkpoint's model_index.json. Raises: BackendError if the folder holds no pipeline of a known family."""
    where = f"generate.options.model: {folder}"
    if not folder.is_dir():
        if folder.is_file():
            raise BackendError(
                f"{where} is a file, not the folder of a pipeline",
                hint="convert it: diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)",
            )
        raise BackendError(
            f"{where}: there is no such folder", hint="give the path of a folder with model_index.json"
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackendError(
            f"{where} holds no {INDEX}: it is not a diffusers pipeline",
            hint="give the folder that save_pretrained wrote, or a snapshot of the hub's repository",
        ) from None
    except (OSError, ValueError) as error:
        raise BackendError(f"{folder / INDEX} cannot be read: {error}", hint="fetch the checkpoint anew") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    refuse_unknown_family(str(name), where)
    lacking = [part for part in parts_of(index) if not (folder / part).is_dir()]
    if lacking:
        raise BackendError(f"{where} lacks the folder {lacking[0]!r}", hint="fetch the checkpoint anew")
    return dict(index)


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline that have a folder each."""
    return sorted(name for name, source in index.items() if isinstance(source, list) and source[0] is not None)


def refuse_unknown_family(name: str, where: str) -> None:
    """Raises: BackendError if ``name`` is not the class of a pipeline that we drive."""
    if name not in FAMILIES:
        raise BackendError(
            f"{where} is a {name}, which this back end does not drive",
            hint=f"it drives: {', '.join(family.title for family in FAMILIES.values())}",
        )
