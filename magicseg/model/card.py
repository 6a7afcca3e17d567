"""Read a saved model's ``model.json``, and write its ``README.md``: the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from magicseg.core.documents import parse_json, read_bytes
from magicseg.core.errors import DataError
from magicseg.core.text import printable
from magicseg.weights.foreign import is_plain_name
from magicseg.weights.pinned import SHIPPED

FORMAT = 2

_READABLE = frozenset({1, FORMAT})  # format 1 supports the encoder `miniature` only
_SHOWN = 40  # classes


class _Card(BaseModel):
    """``model.json``. Older ones lack the encoder and the tokenizer."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    format: int
    settings: dict[str, Any]
    weights: str
    weights_digest: str = Field(pattern=r"^sha256:[0-9a-f]+$")
    provenance: dict[str, Any]
    encoder: dict[str, Any] | None = None
    tokenizer: str | None = None

    @field_validator("weights", "tokenizer")
    @classmethod
    def _is_in_the_folder(cls, name: str | None) -> str | None:
        if name is not None and not is_plain_name(name):
            raise ValueError("is not the name of a file in the same folder")
        return name


def read_card(folder: Path) -> dict[str, Any]:
    """Return the content of ``model.json``, its format and the types of its entries checked.

    Raises: DataError if it is missing, damaged, of another format, or names a file outside its folder.
    """
    path = folder / "model.json"
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {folder} holds no trained model") from error
    found = parse_json(data, dict[str, Any], source=path).get("format")
    if type(found) is not int or found not in _READABLE:
        shown = printable(repr(found), 100)
        raise DataError(f"{path}: format {shown}; this version reads formats 1 to {FORMAT}")
    card = parse_json(data, _Card, source=path, hint="it is damaged, or not magicseg's: restore the whole folder")
    return card.model_dump(exclude_unset=True)


def model_card(card: Mapping[str, Any], *, figures: Mapping[str, float]) -> str:
    """Return the text of ``README.md``. Args: card: the content of ``model.json``. figures: scores by name."""
    settings: Mapping[str, Any] = card["settings"]
    provenance: Mapping[str, Any] = card["provenance"]
    training = provenance.get("training")
    parts = [
        "# Open-vocabulary segmentation model",
        "Labels each pixel of an image with one of any given class names, or background. Made by magicseg.",
        'from magicseg import load_model\n\nmodel = load_model("THIS FOLDER")\n'
        'found = model.segment(image, ["cat", "grass"])   # found.labels (H, W), found.scores (K, H, W)',
        "## Encoder",
        _encoder(settings["encoder"]),
        "## Training",
        _training(training if isinstance(training, Mapping) else {}, provenance),
        "## Figures",
        "\n".join(f"- {name}: {value:.4g}" for name, value in figures.items())
        or "None were given when the model was saved.",
        "## Limits",
        "Trained on synthetic images. Their masks are made by models or drawn by a program, not by people. "
        "Results for classes outside the training set depend on what the text encoder knows. Small and thin "
        "objects are lost, because a mask is made of patches. Not for decisions about people.",
        "## Licence",
        _licence(settings["encoder"]),
        "## Weights",
        f"`{card['weights']}`, {card['weights_digest']}; format {card['format']}; settings and provenance are in "
        "`model.json`.",
    ]
    parts[2] = "\n".join(f"    {line}".rstrip() for line in parts[2].splitlines())
    return "\n\n".join(parts) + "\n"


def _encoder(encoder: Mapping[str, Any]) -> str:
    if encoder["name"] == "miniature":
        return "magicseg's miniature encoder, trained from scratch."
    weights = encoder["weights"]
    kind = f"open_clip's {encoder['architecture'] or 'model of the configuration beside its weights'}"
    frozen = {True: "left as they were", False: "trained too", "text": "trained too, except the text tower"}
    begun = "with random weights" if weights is None else f"with the weights {_name(weights)}"
    return f"{kind}, begun {begun}, {frozen[encoder['freeze']]}."


def _name(weights: Mapping[str, Any]) -> str:
    if _is_shipped(weights):
        return f"`{weights['model']}`"
    if weights["revision"] is None:
        return f"of the file `{str(weights['model']).rpartition('/')[2]}`"
    return f"[{weights['model']}](https://huggingface.co/{weights['model']}) at `{weights['revision']}`"


def _is_shipped(weights: Mapping[str, Any]) -> bool:
    return str(weights["model"]).startswith(SHIPPED)


def _training(training: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    lines: list[str] = []
    classes = training.get("classes")
    if isinstance(classes, Sequence) and classes:
        shown = ", ".join(printable(str(name), 100) for name in classes[:_SHOWN]) + (
            ", …" if len(classes) > _SHOWN else ""
        )
        lines.append(f"- {len(classes)} classes: {shown}")
    if "samples" in provenance:
        lines.append(f"- samples: {provenance['samples']}")
    if "data" in training:
        lines.append(f"- data fingerprint: `{training['data']}`")
    if "seed" in training:
        lines.append(f"- seed: {training['seed']}")
    settings = training.get("train")
    if isinstance(settings, Mapping):
        lines += [f"- {key}: {settings[key]}" for key in ("steps", "batch_size", "learning_rate") if key in settings]
    return "\n".join(lines) or "Nothing is recorded."


def _licence(encoder: Mapping[str, Any]) -> str:
    if encoder["name"] == "miniature" or encoder["weights"] is None:
        return "No pretrained weights are part of this model. Its data may have terms of their own."
    if _is_shipped(encoder["weights"]):
        return (
            f"The encoder's pretrained weights {_name(encoder['weights'])} come with magicseg and are under its "
            "licence, Apache-2.0. The data may have terms of their own."
        )
    return (
        f"The encoder's pretrained weights {_name(encoder['weights'])} are part of this model, so their licence is "
        "this model's too. magicseg does not know it: look at their own page. The same goes for the models that made "
        "the data."
    )
