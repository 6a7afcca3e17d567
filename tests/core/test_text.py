"""Foreign text can neither act on a terminal nor pass for a line of ours."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.text import command, first_acting, printable


@given(st.text())
def test_shown_text_is_one_line_without_characters_that_act(text: str) -> None:
    shown = printable(text)
    assert first_acting(shown) is None
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nhint: rm", "a\\nhint: rm"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("fleur-de-lis \u200dé 猫", "fleur-de-lis \u200dé 猫"),
        ("\ud800", "\\ud800"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
    ],
)
def test_characters_that_act_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_cut() -> None:
    assert printable("x" * 50, 10) == "x" * 10 + "..."


def test_the_first_character_that_acts_is_named() -> None:
    assert first_acting("a\u202eb") == "U+202E"
    assert first_acting("a\nb", allowed="\n") is None


@given(st.lists(st.text(st.characters(exclude_characters="\x00"))))
def test_typed_commands_come_apart_into_the_same_words(words: list[str]) -> None:
    assert shlex.split(command(*words)) == words
