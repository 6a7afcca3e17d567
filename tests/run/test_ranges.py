"""Formatting and parsing of sets of shard numbers."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.errors import RunError
from magicseg.core.shard_ranges import format_ranges, parse_ranges


@given(st.sets(st.integers(0, 10_000)))
def test_formatted_ranges_are_parsed_to_the_same_numbers(numbers):
    assert parse_ranges(format_ranges(numbers)) == sorted(numbers)


@given(st.sets(st.integers(0, 200)))
def test_ranges_are_as_short_as_they_can_be(numbers):
    starts = [number for number in numbers if number - 1 not in numbers]
    assert len(format_ranges(numbers).split(",")) == max(1, len(starts))


def test_overlapping_unsorted_parts_count_once():
    assert parse_ranges("5,3-4, 4-6,3") == [3, 4, 5, 6]


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1--2", "1-2-3", "3-1", "1,,2", "1;2", "²", "٣", "0x1", "6"])
def test_text_that_is_not_ranges_is_refused(text):
    with pytest.raises(RunError):
        parse_ranges(text, count=6)


@given(st.text(alphabet="0123456789-, ", max_size=12))
def test_no_text_gives_a_shard_number_out_of_range(text):
    with contextlib.suppress(RunError):
        assert set(parse_ranges(text, count=6)) <= set(range(6))
