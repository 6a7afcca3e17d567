"""Parse the answers of language models strictly, and check their content."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from magicseg.core.text import first_control_character
from magicseg.labels import Label
from magicseg.labels.mentions import names
from magicseg.stages.describe.token_count import count_tokens

RECIPE = 2  # incremented whenever the rules for parsing or accepting answers change

MIN_WORDS = 3
_KEYS = ("with", "without")
_MOST_REPEATS = 2  # of any three consecutive words
_MOST_CHARACTERS = 1 << 20  # of an answer, with its reasoning text
_FENCE = "```"
_ITEM = re.compile(r"(?P<number>\d{1,3})[.):][ \t]+(?P<text>\S.*)")
_WORD = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r'"(.+)"|“(.+)”', re.DOTALL)


@dataclass(frozen=True)
class Draft:
    """The two captions of an answer, before `check_draft`."""

    caption: str
    counterfactual: str


class UnusableAnswer(ValueError):
    """An answer cannot be used. ``reason`` is a short identifier for statistics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_answer(text: str) -> Draft:
    """Parse the two captions of an answer: a JSON object, plain or in a code fence, or a numbered list.

    Reasoning in ``<think>`` and text before a numbered list are ignored. An answer with any other extra text is
    unusable.

    Raises: UnusableAnswer ("empty-answer", "not-json", "wrong-keys", "not-text", "not-two-items").
    """
    if len(text) > _MOST_CHARACTERS:
        raise UnusableAnswer("too-long", f"{len(text)} characters")
    text = _without_fence(_without_thoughts(text).strip()).strip()
    if not text:
        raise UnusableAnswer("empty-answer")
    captions = _from_json(text) if text[0] in "{[" else _from_list(text)
    return Draft(*(_tidy(caption) for caption in captions))


def check_draft(draft: Draft, labels: Sequence[Label], max_tokens: int) -> None:
    """Check that captions are well-formed, and that only the caption names the labels.

    Raises: UnusableAnswer ("label-missing", "label-in-counterfactual", "too-short", "too-long", "repeats-itself",
    "not-storable", "control-character").
    """
    for caption in (draft.caption, draft.counterfactual):
        try:
            caption.encode()
        except UnicodeEncodeError:
            raise UnusableAnswer("not-storable", repr(caption)) from None
        found = first_control_character(caption)
        if found:
            raise UnusableAnswer("control-character", found)
        words = _WORD.findall(caption.casefold())
        if len(words) < MIN_WORDS:
            raise UnusableAnswer("too-short", repr(caption))
        if count_tokens(caption) > max_tokens:
            raise UnusableAnswer("too-long", f"about {count_tokens(caption)} tokens, at most {max_tokens}")
        if max(Counter(zip(words, words[1:], words[2:], strict=False)).values()) > _MOST_REPEATS:
            raise UnusableAnswer("repeats-itself", repr(caption))
    for label in labels:
        if not names(draft.caption, label):
            raise UnusableAnswer("label-missing", f"{label.name!r} in {draft.caption!r}")
        if names(draft.counterfactual, label):
            raise UnusableAnswer("label-in-counterfactual", f"{label.name!r} in {draft.counterfactual!r}")


def _without_thoughts(text: str) -> str:
    """Drop the first ``<think>...</think>``. A regular expression would take quadratic time."""
    start = text.find("<think>")
    end = text.find("</think>", start)
    return text[:start].rstrip() + text[end + len("</think>") :] if 0 <= start < end else text


def _without_fence(text: str) -> str:
    """Return the content of a Markdown code fence, plain or ``json``, if the whole text is such a fence."""
    head, newline, rest = text.partition("\n")
    if newline and head.rstrip(" \t") in {_FENCE, f"{_FENCE}json"} and rest.endswith(_FENCE):
        return rest.removesuffix(_FENCE)
    return text


def _from_json(text: str) -> tuple[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer("not-json", str(error)) from None
    if not isinstance(value, dict) or set(value) != set(_KEYS):
        raise UnusableAnswer("wrong-keys", repr(value)[:200])
    first, second = (value[key] for key in _KEYS)
    if not isinstance(first, str) or not isinstance(second, str):
        raise UnusableAnswer("not-text", repr(value)[:200])
    return first, second


def _from_list(text: str) -> tuple[str, str]:
    lines = [line for line in text.splitlines() if line.strip()]
    items = [_ITEM.fullmatch(line.strip(" \t")) for line in lines]
    first = next((index for index, item in enumerate(items) if item), len(items))
    numbered = [(int(item["number"]), item["text"]) if item else (0, "") for item in items[first:]]
    if [number for number, _ in numbered] != [1, 2]:
        raise UnusableAnswer("not-two-items", repr(text)[:200])
    return numbered[0][1], numbered[1][1]


def _tidy(caption: str) -> str:
    """Return a caption as one line, without surrounding quotes."""
    caption = " ".join(caption.split())
    quoted = _QUOTED.fullmatch(caption)
    return (quoted[1] or quoted[2]).strip() if quoted else caption
