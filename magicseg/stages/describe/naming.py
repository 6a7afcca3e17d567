"""How captions name labels: articles, plurals, the sense of namesakes."""

import re

from magicseg.labels import Label
from magicseg.labels.inflect import plural

# Spelt with a vowel and spoken with a consonant ("unicycle", "one"), and the reverse ("hourglass").
_SPOKEN_WITH_CONSONANT = re.compile(r"(?:eu|ewe|one\b|once\b|us[ae]|ut[ei]|uk[eu]|uni(?!n|m)|uri)", re.IGNORECASE)
_SILENT_H = re.compile(r"(?:heir|honest|honou?r|hour)", re.IGNORECASE)
_SPELT_OUT = re.compile(r"[A-Z](?=[A-Z]|\W|\d|$)")  # "TV", "X-ray", "SUVs"
_LETTERS_SPOKEN_WITH_VOWEL = "AEFHILMNORSX"
# One of them is called the same as many.
_COUNTED = re.compile(r"(?:.*fish|.*craft|bison|deer|elk|moose|salmon|sheep|shrimp|squid|swine|trout|tuna)")
# Substances and surroundings: nobody counts them.
_UNCOUNTED = frozenset(
    re.findall(
        r"\w+",
        """
        alcohol beef beer butter cappuccino ceiling chocolate cloth cocoa coffee cornmeal earth flour food garbage
        garlic gelatin ginger gravel ground hay honey horizon ice jam juice ketchup lemonade lettuce mascara milk
        mud oatmeal oil paint paper pasta pepper pop salt sand sea seaweed sherbet sky smoke snow soil soup straw
        sugar sugarcane tea toast tofu toothpaste vinegar vodka water wood wool yogurt
        """,
    )
)


def article(text: str) -> str:
    """ "a" or "an", as the first word of ``text`` sounds."""
    if _SPELT_OUT.match(text):
        return "an" if text[0] in _LETTERS_SPOKEN_WITH_VOWEL else "a"
    if _SILENT_H.match(text):
        return "an"
    return "an" if text[:1].lower() in set("aeiou") and not _SPOKEN_WITH_CONSONANT.match(text) else "a"


def with_article(text: str) -> str:
    """The text with "a" or "an" in front."""
    return f"{article(text)} {text}"


def takes_article(noun: str) -> bool:
    """Whether "a" or "an" goes with a label's text: not with "scissors" and "water", but with "goldfish"."""
    last = noun.lower().split()[-1]
    return last not in _UNCOUNTED and (plural(noun) != noun or _COUNTED.fullmatch(last) is not None)


def spoken(label: Label) -> str:
    """What a caption calls the label.

    Where a qualifier tells namesakes apart and a synonym says as much, that synonym: "mouse (computer equipment)"
    is a "computer mouse", "bow (weapon)" just a "bow".
    """
    if label.qualifier is not None:
        for synonym in label.forms[1 : 1 + len(label.synonyms)]:
            if re.search(rf"(?<!\w){re.escape(label.text)}(?!\w)", synonym, re.IGNORECASE):
                return synonym
    return label.text
