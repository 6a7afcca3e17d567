"""Read a checkpoint's pipeline class and its parts from disk, without any model library."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magicseg.core.documents import read_json
from magicseg.core.errors import BackendError
from magicseg.core.text import printable
from magicseg.stages.generate.families import FAMILIES
from magicseg.weights.foreign import is_plain_name

INDEX = "model_index.json"
SD3 = "StableDiffusion3Pipeline"
T5_PARTS = ("text_encoder_3", "tokenizer_3")
SD3_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
_LIBRARIES = frozenset({"diffusers", "transformers", "stable_diffusion"})  # the last has the safety checker
# Not transformers' Auto classes, which look for code beside the weights, and no pipeline inside a pipeline.
_CLASS = re.compile(r"(?!Auto[A-Z])(?!.*Pipeline)[A-Z]\w*", re.ASCII)
_PIPELINE = re.compile(r"[A-Z]\w*Pipeline", re.ASCII)
_FOREIGN = "convert the checkpoint with diffusers' own classes, or use another one"
_READ = ("json", "safetensors", "txt", "model", "jinja")  # what a pipeline reads of its parts


def read_files(parts: Sequence[str] = ("*",)) -> tuple[str, ...]:
    """Return patterns of the files that a pipeline with these parts reads."""
    return (INDEX, *(f"{part}/*.{suffix}" for part in parts for suffix in _READ))


def read_index(folder: Path, *, drop_t5: bool = False, known: bool = False) -> Mapping[str, Any]:
    """Return a checkpoint's model_index.json.

    Args: drop_t5: without the entries of the T5 text encoder, whose folders need not be there. known: whether the
        options say how to call the pipeline, so that its family may be any.
    Raises: BackendError if the folder holds no pipeline of a known family, or one that needs its T5 text encoder.
    """
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
        index = read_json(folder / INDEX, dict[str, Any], error=BackendError, hint="fetch the checkpoint again")
    except FileNotFoundError:
        raise BackendError(
            f"{where} holds no {INDEX}: it is not a diffusers pipeline",
            hint="give the folder that save_pretrained wrote, or a snapshot of the hub's repository",
        ) from None
    if known:
        _refuse_no_pipeline(str(index.get("_class_name")), where)
    else:
        refuse_unknown_family(str(index.get("_class_name")), where)
    for name, source in index.items():
        if isinstance(source, list):
            _refuse_foreign_part(folder / INDEX, name, source)
    if drop_t5:
        if index["_class_name"] != SD3:
            raise BackendError(
                "generate.options.drop_t5: only Stable Diffusion 3 works without its T5 text encoder",
                hint="set it to false",
            )
        index = {name: source for name, source in index.items() if name not in T5_PARTS}
    lacking = [part for part in parts_of(index) if not (folder / part).is_dir()]
    if lacking:
        raise BackendError(f"{where} lacks the folder {lacking[0]!r}", hint="fetch the checkpoint again")
    return index


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """Return the parts of a pipeline that have a folder each."""
    return sorted(name for name, source in index.items() if isinstance(source, list) and source[0] is not None)


def _refuse_foreign_part(file: Path, name: str, source: Sequence[Any]) -> None:
    """Raise BackendError unless a component is a class of a known library and has a plain folder name."""
    if not is_plain_name(name):
        raise BackendError(f"{file}: {printable(name, 100)!r} is not the name of a folder beside it", hint=_FOREIGN)
    if list(source) == [None, None]:
        return
    if len(source) != 2 or not all(isinstance(each, str) for each in source):
        raise BackendError(f"{file}: {name} is not a pair of a library and a class", hint=_FOREIGN)
    library, kind = source
    if library not in _LIBRARIES or not _CLASS.fullmatch(kind):
        shown = printable(f"{library}.{kind}", 100)
        raise BackendError(
            f"{file}: {name} is a {shown}; components must be classes of {', '.join(sorted(_LIBRARIES))}; code that "
            "comes with a checkpoint is never executed",
            hint=_FOREIGN,
        )


def refuse_unknown_family(name: str, where: str) -> None:
    """Raise BackendError if ``name`` is not the class of a supported pipeline."""
    if name not in FAMILIES:
        raise BackendError(
            f"{where} is a {name}, which this back end does not drive",
            hint=f"it drives: {', '.join(family.title for family in FAMILIES.values())}; of others, "
            "generate.options.family says how to call them (docs/generate.md#families)",
        )


def _refuse_no_pipeline(name: str, where: str) -> None:
    """Raise BackendError unless ``name`` can be one of diffusers' pipelines."""
    if not _PIPELINE.fullmatch(name):
        raise BackendError(f"{where} is a {printable(name, 100)}, which is no pipeline of diffusers", hint=_FOREIGN)
