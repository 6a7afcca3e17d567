"""Reading single samples directly from shard files: equal to Zarr, and damage is detected."""

import os

import numpy as np
import pytest

from magicseg.core.errors import DamageError
from magicseg.data.kept_samples import KeptSamples
from magicseg.store.sample_reader import SampleFiles


@pytest.mark.parametrize("name", ["finished_run", "jpeg_run"])
def test_single_sample_reads_equal_zarrs(name, request):
    run = request.getfixturevalue(name)
    samples = KeptSamples.of(run)
    files = SampleFiles(run.store.path, shard_size=16, image_size=32)
    for index in samples.indices[::7].tolist():
        for array in ("generate/image", "generate/counterfactual"):
            assert np.array_equal(files.image(array, index), run.store.read_images(array, index, index + 1)[0])
        assert np.array_equal(files.mask(index), run.store.read("mask/mask", index, index + 1)[0])


def test_range_reads_equal_single_sample_reads(finished_run):
    samples = KeptSamples.of(finished_run)
    whole = samples.indices[samples.indices < 16]
    together = samples.read(whole)
    assert isinstance(together[0], np.ndarray)
    for position, index in enumerate(whole):
        for many, one in zip(together, samples.read(np.array([index])), strict=True):
            assert np.array_equal(many[position], one[0])


def test_the_last_shard_may_be_shorter(fresh, tmp_path):
    from helpers.tiny_runs import do, make_run

    run = make_run(tmp_path / "short", "plan.samples=20")
    do(run)
    samples = KeptSamples.of(run)
    last = int(samples.indices[-1])
    assert last > 16
    assert np.array_equal(samples.read(np.array([last]))[2][0], run.store.read("mask/mask", last, last + 1)[0])


def reader(run, array):
    """Return a function from an index to its pixels, with no open file yet."""
    files = SampleFiles(run.store.path, shard_size=16, image_size=32)
    return files.mask if array == "mask/mask" else lambda index: files.image(array, index)


@pytest.mark.parametrize("name", ["finished_run", "jpeg_run"])
@pytest.mark.parametrize("array", ["generate/image", "mask/mask"])
def test_a_flipped_byte_is_detected_or_belongs_to_another_sample(name, array, request, copy_of):
    run = copy_of(request.getfixturevalue(name))
    file = run.store.path / run.store.shard_file(array, 1)
    content = file.read_bytes()
    inside = KeptSamples.of(run).indices
    inside = inside[(inside >= 16) & (inside < 32)].tolist()
    expected = [reader(run, array)(index) for index in inside]
    errors = []
    for position in [*np.random.default_rng(0).integers(0, len(content), 25).tolist(), len(content) - 1]:
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        file.write_bytes(bytes(damaged))
        read = reader(run, array)
        for index, pixels in zip(inside, expected, strict=True):
            try:
                assert np.array_equal(read(index), pixels)
            except DamageError as error:
                errors.append(error)
    assert len(errors) >= len(inside)  # the last byte belongs to the index, so all reads fail
    assert all(str(file) in error.message and "magicseg verify" in error.hint for error in errors)


@pytest.mark.parametrize("array", ["generate/image", "mask/mask"])
def test_a_truncated_or_missing_shard_file_is_damage(array, finished):
    file = finished.store.path / finished.store.shard_file(array, 1)
    read, late = reader(finished, array), reader(finished, array)
    read(17)
    content = file.read_bytes()
    os.truncate(file, 64)
    with pytest.raises(DamageError, match="the file is cut short"):
        read(int(KeptSamples.of(finished).indices[-1] % 16 + 16))
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamageError, match="the index of the shard is damaged"):
        late(17)
    file.unlink()
    with pytest.raises(DamageError, match="No such file"):
        late(17)
