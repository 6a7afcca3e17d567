"""Names of labels in captions: articles, countability, homonyms."""

import re

from magicseg.labels import Label
from magicseg.labels.inflect import plural

# Words that begin with a vowel letter but a consonant sound ("unicycle", "one"), and the reverse ("hourglass").
_SPOKEN_WITH_CONSONANT = re.compile(r"(?:eu|ewe|one\b|once\b|us[ae]|ut[ei]|uk[eu]|uni(?!n|m)|uri)", re.IGNORECASE)
_SILENT_H = re.compile(r"(?:heir|honest|honou?r|hour)", re.IGNORECASE)
_SPELT_OUT = re.compile(r"[A-Z](?=[A-Z]|\W|\d|$)")  # "TV", "X-ray", "SUVs"
_LETTERS_SPOKEN_WITH_VOWEL = "AEFHILMNORSX"
# Countable nouns whose plural equals the singular.
_COUNTED = re.compile(r"(?:.*fish|.*craft|bison|deer|elk|moose|salmon|sheep|shrimp|squid|swine|trout|tuna)")
# Uncountable nouns: substances and surroundings.
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
    """Return "a" or "an", according to the sound of the first word of ``text``."""
    if _SPELT_OUT.match(text):
        return "an" if text[0] in _LETTERS_SPOKEN_WITH_VOWEL else "a"
    if _SILENT_H.match(text):
        return "an"
    return "an" if text[:1].lower() in set("aeiou") and not _SPOKEN_WITH_CONSONANT.match(text) else "a"


def with_article(text: str) -> str:
    """Return the text with "a" or "an" in front."""
    return f"{article(text)} {text}"


def takes_article(noun: str) -> bool:
    """Return whether a noun takes "a" or "an": "goldfish" does, "scissors" and "water" do not."""
    last = noun.lower().split()[-1]
    return last not in _UNCOUNTED and (plural(noun) != noun or _COUNTED.fullmatch(last) is not None)


def caption_name(label: Label) -> str:
    """Return the label's name for captions.

    For a label with a qualifier, it is a synonym that contains the name, if there is a suitable synonym: "computer
    mouse" for "mouse (computer equipment)". Otherwise it is the name without the qualifier: "bow" for "bow (weapon)".
    """
    if label.qualifier is not None:
        for synonym in label.forms[1 : 1 + len(label.synonyms)]:
            if re.search(rf"(?<!\w){re.escape(label.text)}(?!\w)", synonym, re.IGNORECASE):
                return synonym
    return label.text
