"""Untrusted text (captions, labels, file names, server responses): validate it, escape it, quote it for a shell."""

import shlex
import unicodedata

SHOWN = 2000  # most characters of untrusted text in a message
# Unicode categories that a terminal or an editor interprets instead of displaying: control characters, surrogates,
# line and paragraph separators. Format characters (Cf) include joiners that some languages need, so only the
# bidirectional ones are listed.
_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_control_character(character: str) -> bool:
    """Return whether a character is a control or a bidirectional formatting character."""
    return character in _BIDIRECTIONAL or unicodedata.category(character) in _CONTROL_CATEGORIES


def first_control_character(text: str, *, allowed: str = "") -> str | None:
    """Return the first control or bidirectional character of ``text`` as ``U+XXXX``, or None.

    Characters in ``allowed`` (such as a newline) are skipped.
    """
    for character in text:
        if is_control_character(character) and character not in allowed:
            return f"U+{ord(character):04X}"
    return None


def printable(text: str, limit: int = SHOWN, *, allowed: str = "") -> str:
    """Return ``text`` escaped for a message or one line of a terminal.

    Control and bidirectional characters, including newlines, are replaced by escapes such as ``\\x1b``. Text longer
    than ``limit`` characters is truncated and ends in ``...``. Characters in ``allowed`` are kept.
    """
    cut = text[:limit] + "..." if len(text) > limit else text
    if cut.isprintable():
        return cut
    return "".join(_escaped(each) if is_control_character(each) and each not in allowed else each for each in cut)


def indented(text: str, indent: str, limit: int = SHOWN) -> str:
    """Return multi-line text: each line is escaped by `printable`, and all lines but the first begin with ``indent``.

    The indentation keeps untrusted text from imitating a line of magicseg's own output.
    """
    return f"\n{indent}".join(printable(line, limit) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def command(*words: object) -> str:
    """Return a command line for a hint, with every word quoted for a shell."""
    return shlex.join(str(word) for word in words)


def size_text(count: float, *, binary: bool = False) -> str:
    """Return a number of bytes with three significant figures: ``1.23 GB``, or ``1.15 GiB`` in binary units."""
    base, units = (1024, "B KiB MiB GiB TiB") if binary else (1000, "B kB MB GB TB")
    *smaller, largest = units.split()
    for unit in smaller:
        if count < base - 0.5:
            return f"{count:.0f} {unit}" if count >= 99.95 else f"{count:.3g} {unit}"
        count /= base
    return f"{count:,.0f} {largest}" if count >= 99.95 else f"{count:.3g} {largest}"
