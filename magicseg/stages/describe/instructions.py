"""The prompts for language models: describe a diverse scene with the labels, and the same scene without them.

The prompt names the content of the second scene, not the missing objects: small models that read "without a cat"
write about cats.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from magicseg.labels import Label
from magicseg.stages.describe.naming import caption_name, takes_article, with_article
from magicseg.stages.describe.template import draw_setting

RECIPE = 1  # incremented whenever prompts, or the rules for echoes, change

AnswerFormat = Literal["json", "list"]

_PROMPT = """\
Describe two photographs of the same view in the same light, each in one English sentence.
Photograph 1: {objects} {where}. Say what colour, size, material or pose {it} has and what is around {them}, in \
15 to 30 words; use the {term} {names}.
Photograph 2: only the {place}.
{format}"""
_CHOSEN = "in a detailed, complex scene of your choice"
_FORMATS: dict[AnswerFormat, str] = {
    "json": 'Answer with one JSON object and nothing else: {"with": "photograph 1", "without": "photograph 2"}',
    "list": "Answer with two numbered lines:\n1. ...\n2. ...",
}
_ECHO = 5  # consecutive words of the instructions


def write_prompt(labels: Sequence[Label], seed: int, *, answer_format: AnswerFormat, suggest_setting: bool) -> str:
    """Return the prompt: one user message.

    Args: seed: selects the suggested setting. Without a suggestion, models reuse the same few places.
    """
    setting = draw_setting(seed, labels) if suggest_setting else None
    if setting is None:
        where, place = _CHOSEN, "same place"
    else:
        light = f" {setting.light}" if setting.light else ""
        where = f"{setting.scene.preposition} {with_article(setting.scene.noun)}{light}"
        place = f"{setting.scene.noun}{light}"
    return _PROMPT.format(
        objects=_joined([_called(label) for label in labels]),
        where=where,
        it="it" if len(labels) == 1 else "each of them",
        them="it" if len(labels) == 1 else "them",
        term="word" if len(labels) == 1 else "words",
        names=_joined([f'"{caption_name(label)}"' for label in labels]),
        place=place,
        format=_FORMATS[answer_format],
    )


def echoes_prompt(text: str) -> bool:
    """Return whether a text repeats five consecutive words of the fixed part of the prompt."""
    return not _INSTRUCTIONS.isdisjoint(_runs(text))


def _called(label: Label) -> str:
    name = caption_name(label)
    name = with_article(name) if takes_article(name) else name
    return f"{name} ({label.qualifier})" if label.qualifier else name


def _joined(phrases: Sequence[str]) -> str:
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return zip(*(words[start:] for start in range(_ECHO)), strict=False)


_INSTRUCTIONS = frozenset(
    run for text in (*re.split(r"\{\w+\}", _PROMPT), _CHOSEN, *_FORMATS.values()) for run in _runs(text)
)
