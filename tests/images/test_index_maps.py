"""Class numbers are read as they are stored, at every depth of a PNG."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.odd_pngs import GREY, PALETTE, png
from magicseg.core.errors import DataError
from magicseg.images.index_maps import read_index_map


@given(
    values=st.lists(st.integers(0, 65535), min_size=1, max_size=30),
    kind=st.sampled_from([(GREY, bits) for bits in (1, 2, 4, 8, 16)] + [(PALETTE, bits) for bits in (1, 2, 4, 8)]),
)
def test_numbers_of_any_depth_are_read_as_they_are_stored(tmp_path_factory, values, kind):
    colour, bits = kind
    stored = np.array([values, values[::-1]]) % 2**bits
    path = tmp_path_factory.getbasetemp() / "numbers.png"
    path.write_bytes(png(stored, bits, colour))
    assert read_index_map(path).tolist() == stored.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_no_class_numbers(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"a.png: a PNG of mode {mode} holds colours"):
        read_index_map(tmp_path / "a.png")


def test_a_map_of_another_size_is_refused_with_both(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    assert read_index_map(tmp_path / "a.png", size=(2, 3)).shape == (2, 3)
    with pytest.raises(DataError, match="the labels are 3 x 2 pixels, the image 2 x 3"):
        read_index_map(tmp_path / "a.png", size=(3, 2))
