"""English plurals of class names: inflect the head noun of a short noun phrase."""

import re
import unicodedata

_IRREGULAR = {
    "child": "children",
    "die": "dice",
    "foot": "feet",
    "forefoot": "forefeet",
    "goose": "geese",
    "louse": "lice",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "penny": "pennies",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
    "axis": "axes",
    "passerby": "passersby",
    # f to v
    "calf": "calves",
    "elf": "elves",
    "half": "halves",
    "hoof": "hooves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "loaf": "loaves",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "shelf": "shelves",
    "thief": "thieves",
    "wharf": "wharves",
    "wife": "wives",
    "wolf": "wolves",
    # doubled z
    "quiz": "quizzes",
    # o + es
    "buffalo": "buffaloes",
    "echo": "echoes",
    "hero": "heroes",
    "mango": "mangoes",
    "mosquito": "mosquitoes",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "torpedo": "torpedoes",
    "volcano": "volcanoes",
    # ch pronounced as k
    "epoch": "epochs",
    "monarch": "monarchs",
    "stomach": "stomachs",
    "eunuch": "eunuchs",
    # singular nouns that end in s
    "atlas": "atlases",
    "canvas": "canvases",
    "christmas": "christmases",
    "gas": "gases",
    "iris": "irises",
    "lens": "lenses",
    "pancreas": "pancreases",
    "pelvis": "pelvises",
    "rhinoceros": "rhinoceroses",
}

# Last parts of compound nouns: snowman, bookshelf, eyetooth.
_ENDINGS = re.compile(r"(.+?)(woman|man|child|person|shelf|knife|leaf|loaf|wife|tooth|foot|scarf)")
_PLURAL_ENDINGS = re.compile(r".*(?:men|children|people|feet|teeth)")
_REGULAR_IN_SPITE = frozenset(
    {"caiman", "cayman", "german", "human", "norman", "ottoman", "roman", "shaman", "talisman"}
)

# Words without a plural, or with the same form in singular and plural.
_UNCHANGED = frozenset(
    re.findall(
        r"\w+",
        """
        aircraft asparagus bacon baggage bison bread broccoli butter cattle chassis clothing cod corps cutlery
        deer dozen elk equipment feces furniture grass headquarters hommos hovercraft hummus jewellery jewelry
        luggage moose offspring pampas police popcorn poultry rice salmon sand series sheep shrimp spacecraft
        spaghetti species sportswear squid swine tennis trout tuna underwear watercraft
        """,
    )
)

# "taxis" is a plural, "trellis" is not; "menus" is a plural, "bus" is not.
_SINGULAR_IN_IS = re.compile(r"(?!taxis).*[sx]is|(?:clemat|ib|ir|marqu|pelv|portcull|tenn|trell)is")
_PLURAL_IN_US = re.compile(r".*eaus|(?:em|gn|men|tof|tut)us")

# Split "can of soup" and "man-of-war" after the head noun; in "walk-in closet" the head noun is last.
_HEAD = re.compile(r"(?P<head>.+?)(?P<rest>(?P<gap>[ -])(?:of|in|on|for|with|at)(?P=gap).+)", re.IGNORECASE)


def plural(phrase: str) -> str:
    """Return the plural of a noun phrase: "cans of soup" for "can of soup". A plural is returned unchanged."""
    match = _HEAD.fullmatch(phrase)
    head, rest = (match["head"], match["rest"]) if match else (phrase, "")
    start = max(head.rfind(" "), head.rfind("-")) + 1
    return head[:start] + _plural_of_word(head[start:]) + rest


def _plural_of_word(word: str) -> str:
    lower = word.lower()
    if "LATIN" not in unicodedata.name(lower[-1:] or " ", ""):
        return word
    irregular = _irregular(lower)
    if irregular is not None:
        return _cased(irregular, word)
    if _is_plural(lower):
        return word
    if lower.endswith(("sis", "xis")):
        return word[:-2] + "es"
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if lower.endswith("y") and len(lower) > 1 and lower[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _irregular(lower: str) -> str | None:
    if lower in _UNCHANGED or lower.endswith(("fish", "ware")):
        return lower
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if lower in _REGULAR_IN_SPITE:
        return None
    compound = _ENDINGS.fullmatch(lower)
    return compound[1] + _IRREGULAR[compound[2]] if compound else None


def _is_plural(lower: str) -> bool:
    if lower in _IRREGULAR.values() or _PLURAL_ENDINGS.fullmatch(lower):
        return True
    if not lower.endswith("s") or lower.endswith("ss"):
        return False
    if lower.endswith("us"):
        return _PLURAL_IN_US.fullmatch(lower) is not None
    return _SINGULAR_IN_IS.fullmatch(lower) is None


def _cased(result: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return result.upper()
    return result[0].upper() + result[1:] if like[0].isupper() else result
