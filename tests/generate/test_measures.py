"""What is told of an image by itself."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from magicseg.stages.generate.image_quality import contrast, difference_hash, sharpness


def noise(seed=0, size=64):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def distance(one, other):
    return (int(difference_hash(one), 16) ^ int(difference_hash(other), 16)).bit_count()


def test_a_blurred_image_is_less_sharp():
    blurred = np.asarray(Image.fromarray(noise()).filter(ImageFilter.GaussianBlur(2)))
    assert sharpness(blurred) < sharpness(noise()) / 20
    assert sharpness(np.full((8, 8, 3), 77, np.uint8)) == 0


def test_the_laplacian_is_that_of_the_definition():
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 100
    expected = np.array([[0, 100, 0], [100, -400, 100], [0, 100, 0]], float)
    assert sharpness(image) == pytest.approx(expected.var())


def test_contrast_is_the_standard_deviation_of_grey():
    image = np.zeros((4, 4, 3), np.uint8)
    assert contrast(image) == 0
    image[:2] = 200
    assert contrast(image) == pytest.approx(100)


def test_near_duplicates_have_near_hashes():
    image = np.asarray(Image.fromarray(noise(size=9)).resize((256, 256), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(image).resize((100, 100), Image.Resampling.LANCZOS))
    assert len(difference_hash(image)) == 16
    assert distance(image, small) <= 2
    assert distance(image, np.asarray(Image.fromarray(noise(1, 9)).resize((256, 256)))) > 15
