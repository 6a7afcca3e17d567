"""Text from outside: captions, labels, file names, answers of servers. How it is refused, shown, and typed again."""

import shlex
import unicodedata

SHOWN = 2000  # characters of foreign text in a message
# Unicode categories that a terminal or an editor acts on instead of showing: control, surrogate, line and paragraph
# separators. Format characters (Cf) hold joiners that some languages need, so of them only those that reorder text.
_ACTING = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def acts(character: str) -> bool:
    """Return whether a character is a control or a bidirectional formatting character."""
    return character in _REORDERING or unicodedata.category(character) in _ACTING


def first_acting(text: str, *, allowed: str = "") -> str | None:
    """Return the first control or bidirectional character of ``text`` as ``U+XXXX``, or None.

    Characters in ``allowed`` (such as a newline) do not count.
    """
    for character in text:
        if acts(character) and character not in allowed:
            return f"U+{ord(character):04X}"
    return None


def printable(text: str, limit: int = SHOWN, *, allowed: str = "") -> str:
    """Return ``text`` as one harmless piece of a message or a terminal's line.

    Control and bidirectional characters, newlines among them, are replaced by escapes such as ``\\x1b``; text longer
    than ``limit`` characters is cut and ends in ``...``. Characters in ``allowed`` are kept.
    """
    cut = text[:limit] + "..." if len(text) > limit else text
    if cut.isprintable():
        return cut
    return "".join(_escaped(each) if acts(each) and each not in allowed else each for each in cut)


def indented(text: str, indent: str, limit: int = SHOWN) -> str:
    """Return text of several lines, each of them `printable`, all but the first behind ``indent``.

    So no line of a foreign text begins where a line of magicseg's own would.
    """
    return f"\n{indent}".join(printable(line, limit) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def command(*words: object) -> str:
    """Return a command line for a hint, quoted so that a shell takes every word as it is."""
    return shlex.join(str(word) for word in words)
