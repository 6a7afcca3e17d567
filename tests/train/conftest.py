"""A data set in memory: coloured squares, one class each."""

import pytest

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares


@pytest.fixture
def squares():
    return Squares


@pytest.fixture
def vocabulary():
    return VOCABULARY


@pytest.fixture
def settings():
    return SETTINGS
