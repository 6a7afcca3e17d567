"""Untrusted text can neither control a terminal nor imitate magicseg's output."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.text import command, first_control_character, printable


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert first_control_character(shown) is None
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
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_truncated() -> None:
    assert printable("x" * 50, 10) == "x" * 10 + "..."


def test_the_first_control_character_is_returned() -> None:
    assert first_control_character("a\u202eb") == "U+202E"
    assert first_control_character("a\nb", allowed="\n") is None


@given(st.lists(st.text(st.characters(exclude_characters="\x00"))))
def test_a_shell_splits_a_command_into_the_same_words(words: list[str]) -> None:
    assert shlex.split(command(*words)) == words
