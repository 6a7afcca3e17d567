"""The guide lists every option and every reason."""

import re
from pathlib import Path

import pytest

from magicseg.installed_backends import find_backend

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "describe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["grammar", "template", "transformers", "openai"])
def test_every_option_is_in_the_guide(name):
    for option in find_backend("captioners", name).Options.model_fields:
        assert f"`{option}`" in GUIDE, option


def test_every_reason_is_in_the_guide():
    for module in ("answer", "endpoint", "local_model", "writer"):
        code = (ROOT / "magicseg" / "stages" / "describe" / f"{module}.py").read_text(encoding="utf-8")
        for reason in re.findall(r'(?:UnusableAnswer|NoAnswer|unanswered)\("([a-z-]+)"', code):
            assert reason == "endpoint-dead" or f"`{reason}`" in GUIDE, reason


def test_the_guide_lists_exactly_the_neutral_options():
    for name in ("transformers", "openai"):
        options = find_backend("captioners", name).Options
        assert set(options.model_fields) >= options.NEUTRAL
    said = re.search(r"((?:`\w+`[, and]*)+) change no caption", GUIDE)
    assert set(re.findall(r"`(\w+)`", said[1])) == find_backend("captioners", "openai").Options.NEUTRAL
