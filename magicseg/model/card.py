"""A saved model's ``model.json``, and its ``README.md``: what it is, what it learned from, what is not known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magicseg.errors import DataError

FORMAT = 2

_READABLE = frozenset({1, FORMAT})  # format 1 knew the miniature's encoder alone
_SHOWN = 40  # classes


def read_card(folder: Path) -> dict[str, Any]:
    """The content of ``model.json``, its format checked.

    Raises: DataError.
    """
    path = folder / "model.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {folder} holds no trained model") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") not in _READABLE:
        found = card.get("format") if isinstance(card, dict) else None
        raise DataError(f"{path}: format {found!r}; this version reads formats 1 to {FORMAT}")
    if not isinstance(card.get("weights_digest"), str) or not isinstance(card.get("provenance"), dict):
        raise DataError(f"{path}: lacks weights_digest or provenance: it is damaged, or not magicseg's")
    return card


def model_card(card: Mapping[str, Any], *, figures: Mapping[str, float]) -> str:
    """The text. Args: card: the content of ``model.json``. figures: scores by name."""
    settings: Mapping[str, Any] = card["settings"]
    provenance: Mapping[str, Any] = card["provenance"]
    training = provenance.get("training")
    parts = [
        "# Open-vocabulary segmentation model",
        "Gives each pixel of an image one of any class names that it is asked for, or background. Made by magicseg.",
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
        "Trained on synthetic images whose masks are made by models or drawn, not by people. Classes that it was not "
        "trained on are guesses by what the text encoder knows. Small and thin things are lost: a mask is made of "
        "patches. Not for decisions about people.",
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
    if weights["revision"] is None:
        return f"of the file `{str(weights['model']).rpartition('/')[2]}`"
    return f"[{weights['model']}](https://huggingface.co/{weights['model']}) at `{weights['revision']}`"


def _training(training: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    lines: list[str] = []
    classes = training.get("classes")
    if isinstance(classes, Sequence) and classes:
        shown = ", ".join(map(str, classes[:_SHOWN])) + (", …" if len(classes) > _SHOWN else "")
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
    return (
        f"The encoder's pretrained weights {_name(encoder['weights'])} are part of this model, so their licence is "
        "this model's too. magicseg does not know it: look at their own page. The same goes for the models that made "
        "the data."
    )
