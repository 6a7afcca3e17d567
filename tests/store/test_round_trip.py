"""The store: written data is read back unchanged, and missing data is an error."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers.tiny_runs import do, make_run
from magicseg.config.stage_declarations import ARRAY_KINDS
from magicseg.core.errors import DamageError, StoreError
from magicseg.images.codecs import decode_jpeg
from magicseg.labels import IGNORE
from magicseg.run import Run
from magicseg.run.digest import logical_digest


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=arrays.arrays(object, (16, 2), elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
    images=arrays.arrays(np.uint8, (16, 32, 32, 3), elements=st.integers(0, 255)),
    masks=arrays.arrays(np.uint16, (16, 32, 32), elements=st.sampled_from([0, 1, 10, IGNORE])),
    shard=st.integers(0, 5),
)
def test_a_written_shard_is_read_back_unchanged(fresh, captions, images, masks, shard):
    samples = fresh.plan.shard_range(shard)
    values = {"describe/captions": captions, "generate/image": images, "mask/mask": masks}
    files = fresh.store.write_shard(shard, samples, values)
    assert len(files) == 3, "a shard that equals the fill value is written too"
    for name, content in values.items():
        assert np.array_equal(fresh.store.read(name, samples.start, samples.stop), content)
        assert np.array_equal(fresh.store.read(name, samples.start + 3, samples.start + 5), content[3:5])


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams=st.lists(st.binary(max_size=300), min_size=16, max_size=16))
def test_jpeg_streams_are_kept_byte_by_byte(tmp_path_factory, streams):
    run = make_run(tmp_path_factory.mktemp("jpeg") / "run", "store.image_codec=jpeg")
    content = np.empty(16, dtype=object)
    content[:] = streams
    run.store.write_shard(1, run.plan.shard_range(1), {"generate/image": content})
    assert list(run.store.read("generate/image", 16, 32)) == streams


def test_the_same_content_makes_the_same_file(fresh):
    masks = np.full((16, 32, 32), IGNORE, np.uint16)
    first = fresh.store.write_shard(0, range(16), {"mask/mask": masks})
    assert fresh.store.write_shard(0, range(16), {"mask/mask": masks}) == first


def test_open_arrays_notice_a_new_store_layout(finished):
    jpeg = finished.config.store.model_copy(update={"image_codec": "jpeg"})
    assert not finished.store.is_jpeg("generate/image")
    finished.store.recreate("generate", finished.plan, finished.config.model_copy(update={"store": jpeg}))
    assert finished.store.is_jpeg("generate/image")
    streams = np.array([b"stream"] * 16, object)
    finished.store.write_shard(0, range(16), {"generate/image": streams})
    assert finished.store.read("generate/image", 0, 16).tolist() == streams.tolist()


@pytest.mark.parametrize("name", ARRAY_KINDS)
def test_a_missing_shard_is_an_error_not_an_empty_result(finished, name):
    (finished.store.path / finished.store.shard_file(name, 2)).unlink()
    assert len(finished.store.read(name, 0, 32)) == 32
    with pytest.raises(DamageError, match="is missing"):
        finished.store.read(name, 31, 33)


def test_work_on_a_missing_shard_fails_and_commits_nothing(finished):
    finished.reset("generate")
    (finished.store.path / "describe/captions/2.0").unlink()
    outcomes = {event.shard: event.outcome for event in do(finished, "generate")}
    assert outcomes == {0: "committed", 1: "committed", 2: "failed", 3: "committed", 4: "committed", 5: "committed"}
    assert "captions/2.0" in finished.ledger("generate").failures()[2]


def test_the_digest_of_an_incomplete_store_is_refused(finished):
    (finished.store.path / "mask/mask/2.0.0").unlink()
    with pytest.raises(DamageError, match="is missing"):
        logical_digest(finished)


def test_jpeg_images_are_close_to_lossless_ones(finished_run, jpeg_run):
    exact = finished_run.store.read_images("generate/image", 0, 96).astype(int)
    close = jpeg_run.store.read_images("generate/image", 0, 96).astype(int)
    assert jpeg_run.store.is_jpeg("generate/image")
    assert np.abs(exact - close).mean() < 4
    assert decode_jpeg(jpeg_run.store.read("generate/image", 5, 6)[0], 32).shape == (32, 32, 3)


def test_a_shard_with_a_wrong_number_of_samples_is_refused(fresh):
    with pytest.raises(ValueError, match=r"."):
        fresh.store.write_shard(0, range(16), {"mask/mask": np.zeros((16, 8, 8), np.uint16)})


def test_leftovers_of_killed_writers_are_removed_when_no_writer_can_be_active(fresh):
    import os

    folder = fresh.store.path / "mask/mask"
    old, new, other = (folder / name for name in ("1.0.a.partial", "1.0.b.partial", "11.0.c.partial"))
    for path in (old, new, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (0, 0))
    fresh.store.write_shard(1, range(16, 32), {"mask/mask": np.zeros((16, 32, 32), np.uint16)})
    assert not old.exists()
    assert new.exists()
    assert other.exists()


@pytest.mark.parametrize("name", ["zarr.json", "mask/mask/zarr.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", None])
def test_damaged_metadata_is_an_error_with_a_hint(finished, name, content):
    file = finished.store.path / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        Run.open(finished.path).store.read("mask/mask", 0, 4)
    assert "magicseg repair" in caught.value.hint
