"""What a language model is asked for: a diverse scene with the labels, and the same scene without them."""

from collections.abc import Sequence
from typing import Literal

from magicseg.describe.naming import spoken
from magicseg.describe.template import draw_setting
from magicseg.labels import Label

RECIPE = 1  # goes up whenever the same request gives another prompt

AnswerFormat = Literal["json", "list"]

_FORMATS: dict[AnswerFormat, str] = {
    "json": 'Answer with one JSON object and nothing else: {{"with": "sentence 1", "without": "sentence 2"}}',
    "list": "Answer with exactly two numbered lines and nothing else:\n1. sentence 1\n2. sentence 2",
}
_PROMPT = """\
Describe two photographs, each in one English sentence of {words}.

Sentence 1: a realistic photograph that clearly shows {objects}. Give {each} attributes such as colour, size, \
material, pose or position, and place {them} in a detailed, complex scene.{setting} Use the exact {term} {names}.

Sentence 2: the very same scene and light, but {names_or} {is_are} not there. Do not use the {term} {names_or}, \
nor anything of the same kind, and do not say that something is missing. Describe only what is still there.

{format}"""


def write_prompt(labels: Sequence[Label], seed: int, *, answer_format: AnswerFormat, suggest_setting: bool) -> str:
    """The whole request to the model, as one user message.

    ``seed`` draws the setting that is suggested: models left alone put everything in the same few places.
    """
    names = [f'"{spoken(label)}"' for label in labels]
    objects = [f"{name} ({label.qualifier})" if label.qualifier else name for name, label in zip(names, labels, strict=True)]
    several = len(labels) > 1
    setting = draw_setting(seed, labels) if suggest_setting else None
    where = ""
    if setting is not None:
        when = f", {setting.light}" if setting.light else ""
        where = f" For example {setting.scene.preposition} a {setting.scene.noun}{when}, if that fits."
    return _PROMPT.format(
        words="15 to 30 words",
        objects=_listed(objects, "and"),
        each="each of them" if several else "it",
        them="them" if several else "it",
        setting=where,
        term="words" if several else "word",
        names=_listed(names, "and"),
        names_or=_listed(names, "or"),
        is_are="are" if several else "is",
        format=_FORMATS[answer_format].format(),
    )


def _listed(phrases: Sequence[str], conjunction: str) -> str:
    *most, last = phrases
    return f"{', '.join(most)} {conjunction} {last}" if most else last
