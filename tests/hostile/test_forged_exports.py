"""Forged exports: no other file is read, declared sizes are checked, and a refused import leaves no files."""

import io
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from magicseg.core.errors import ConfigError, DataError, LabelError, MagicsegError
from magicseg.exchange.hdf5 import export_hdf5, import_hdf5
from magicseg.run import Run
from magicseg.run.digest import logical_digest

pytestmark = pytest.mark.usefixtures("bounded")
SECRET = b"a local file that nobody is to see " * 4000


@pytest.fixture(scope="module")
def exports(finished_run, jpeg_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name, run in (("pixels", finished_run), ("jpeg", jpeg_run)):
        export_hdf5(run, folder / f"{name}.h5")
    return folder


@pytest.fixture
def refused(exports, tmp_path):
    """Forge an export, and check that it is refused and that no files are left."""

    def check(change, *, kind="pixels", errors=(DataError, ConfigError, LabelError)):
        source, target = tmp_path / "forged.h5", tmp_path / "run"
        shutil.copy(exports / f"{kind}.h5", source)
        (tmp_path / "secret").write_bytes(SECRET)
        if isinstance(change, bytes):
            source.write_bytes(change)
        else:
            with h5py.File(source, "r+") as file:
                change(file, tmp_path / "secret")
        with pytest.raises(errors) as caught:
            import_hdf5(source, target)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["forged.h5", "secret"]
        assert isinstance(caught.value, MagicsegError)
        return caught.value

    return check


def in_place(name, **options):
    def change(file, _secret):
        del file[name]
        file.create_dataset(name, **options)

    return change


def external_storage(name, shape, dtype):
    def change(file, secret):
        del file[name]
        file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    return change


def external_link(name):
    def change(file, secret):
        with h5py.File(secret.with_name("forged2.h5"), "w") as other:
            file.copy(file[name], other, name)
        del file[name]
        file[name] = h5py.ExternalLink(str(secret.with_name("forged2.h5")), name)
        secret.with_name("forged2.h5").unlink()

    return change


def virtual(name):
    def change(file, secret):
        found = file[name]
        layout = h5py.VirtualLayout(found.shape, found.dtype)
        layout[:] = h5py.VirtualSource(str(secret), name, found.shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


def soft_link(name):
    def change(file, _secret):
        file.move(name, "moved")
        file[name] = h5py.SoftLink("/moved")

    return change


OUTSIDE = {
    "external storage of images": external_storage("images", (96, 32, 32, 3), "u1"),
    "external storage of masks": external_storage("masks", (96, 32, 32), "<u2"),
    "external storage of labels": external_storage("labels", (96, 2), "<u2"),
    "a virtual dataset of masks": virtual("masks"),
    "a virtual dataset of images": virtual("images"),
    "an external link of images": external_link("images"),
    "an external link of captions": external_link("captions"),
    "a soft link of masks": soft_link("masks"),
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=list(OUTSIDE))
def test_an_import_reads_no_other_file(refused, change):
    error = refused(change)
    assert any(words in error.message for words in ("another file", "is a link", "is not stored as"))


text = h5py.string_dtype()
CLAIMS = {
    "images of terabytes": in_place("images", shape=(10**9, 32, 32, 3), dtype="u1", chunks=(1, 32, 32, 3)),
    "masks of terabytes": in_place("masks", shape=(96, 10**6, 10**6), dtype="<u2", chunks=(1, 1000, 1000)),
    "labels of terabytes": in_place("labels", shape=(10**9, 1000), dtype="<u2"),
    "labels that were never written": in_place("labels", shape=(96, 2), dtype="<u2"),
    "captions of terabytes": in_place("captions", shape=(10**10, 2), dtype=text),
    "quality of another width": in_place("quality", shape=(96, 4), dtype=text),
    "images in larger chunks": in_place("images", shape=(96, 32, 32, 3), dtype="u1", chunks=(96, 32, 32, 3)),
    "images that were never written": in_place("images", shape=(96, 32, 32, 3), dtype="u1", chunks=(1, 32, 32, 3)),
    "masks of floats": in_place("masks", shape=(96, 32, 32), dtype="f8", chunks=(1, 32, 32)),
    "images of texts": in_place("images", shape=(96, 32, 32, 3), dtype=text),
    "captions of numbers": in_place("captions", shape=(96, 2), dtype="i8"),
    "captions of a fixed length": in_place("captions", shape=(96, 2), dtype="S5"),
    "captions in chunks": in_place("captions", shape=(96, 2), dtype=text, chunks=(96, 2)),
    "a scale-offset filter": in_place(
        "images", shape=(96, 32, 32, 3), dtype="u1", chunks=(1, 32, 32, 3), scaleoffset=4
    ),
    "no images": lambda file, _: file.__delitem__("images"),
    "a group in the place of masks": lambda file, _: (file.__delitem__("masks"), file.create_group("masks")),
    "a type in the place of masks": lambda file, _: (
        file.__delitem__("masks"),
        file.__setitem__("masks", np.dtype("u1")),
    ),
}


@pytest.mark.parametrize("change", CLAIMS.values(), ids=list(CLAIMS))
def test_sizes_and_types_that_differ_from_the_settings_are_refused(refused, change):
    refused(change)


def set_attribute(name, value):
    def change(file, _secret):
        file.attrs[name] = value

    return change


ATTRIBUTES = {
    "a configuration of numbers": set_attribute("config", np.arange(5)),
    "a configuration of a list": set_attribute("config", "[1, 2]"),
    "a configuration without end": set_attribute("config", "a: " + "[" * 100_000),
    "a configuration with aliases": set_attribute("config", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" * 2),
    "a vocabulary of depth": set_attribute("vocabulary", "[" * 200_000),
    "a vocabulary of nothing": set_attribute("vocabulary", "{}"),
    "a vocabulary of wrong types": set_attribute("vocabulary", '{"name": 1, "labels": [5]}'),
    "fingerprints of a list": set_attribute("fingerprints", "[]"),
    "fingerprints of numbers": set_attribute("fingerprints", '{"describe": 1, "generate": 2, "mask": 3}'),
    "weights of wrong types": set_attribute("weights", '{"names": [], "paths": 5}'),
    "a digest of numbers": set_attribute("digest", 5),
    "an array of formats": set_attribute("format", np.arange(3)),
    "another format": set_attribute("format", 99),
    "no digest": lambda file, _: file.attrs.__delitem__("digest"),
}


@pytest.mark.parametrize("change", ATTRIBUTES.values(), ids=list(ATTRIBUTES))
def test_attributes_that_cannot_be_used_are_refused(refused, change):
    refused(change)


def test_a_configuration_with_more_samples_than_the_file_is_refused_before_planning(refused):
    def change(file, _secret):
        file.attrs["config"] = file.attrs["config"].replace("samples: 96", "samples: 900000000")

    assert "labels" in refused(change).message


@pytest.mark.parametrize(
    "content", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4096, b"PK" + bytes(100)], ids=range(4)
)
def test_a_file_that_is_not_hdf5_is_refused(refused, content):
    refused(content)


def test_a_truncated_export_is_refused(refused, exports):
    content = (exports / "pixels.h5").read_bytes()
    refused(content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_folder_pipe_or_device_in_place_of_the_export_is_refused(put, tmp_path, kind):
    put(tmp_path / "odd.h5", kind)
    with pytest.raises(DataError, match="not a regular file"):
        import_hdf5(tmp_path / "odd.h5", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def jpeg(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


STREAMS = {
    "of another size": jpeg(16, 16),
    "of a huge size": jpeg(5000, 5000),
    "empty": np.zeros(0, np.uint8),
    "of no JPEG": np.frombuffer(b"\x89PNG\r\n\x1a\n" + bytes(100), np.uint8),
    "of a megabyte": np.zeros(1 << 20, np.uint8),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
def test_jpeg_streams_of_another_size_are_refused(refused, stream):
    def change(file, _secret):
        file["images"][40] = stream

    assert "shard 2" in refused(change, kind="jpeg").message


def test_a_gzip_bomb_in_a_mask_is_refused_before_hdf5_decompresses_it(refused):
    import zlib

    def change(file, _secret):
        bomb = zlib.compress(bytes(2_000_000))
        file["masks"].id.write_direct_chunk((40, 0, 0), bomb + bytes(4))

    assert "shard 2" in refused(change).message


def note(**content):
    def change(file, _secret):
        file["quality"][40, 2] = json.dumps(content) if content else "[" * 100_000

    return change


CONTENTS = {
    "a mask of an id that no label has": lambda file, _: file["masks"].__setitem__((40, 3, 3), 777),
    "a caption of a megabyte": lambda file, _: file["captions"].__setitem__((40, 0), "x" * (1 << 20)),
    "a note without end": note(),
    "a note of no status": note(status="perhaps"),
    "a note of no reason": note(status="dropped"),
    "a reason with control characters": note(status="dropped", reason="\x1b[2J"),
    "a note of a reason of numbers": note(status="dropped", reason=5),
}


@pytest.mark.parametrize("change", CONTENTS.values(), ids=list(CONTENTS))
def test_content_that_no_stage_could_have_written_is_refused(refused, change):
    refused(change)


def test_an_import_with_a_wrong_digest_leaves_no_files(refused):
    refused(lambda file, _: file["captions"].__setitem__((40, 0), "another"), errors=MagicsegError)


def test_a_refused_import_into_an_empty_folder_leaves_it_empty(exports, tmp_path):
    shutil.copy(exports / "pixels.h5", tmp_path / "forged.h5")
    with h5py.File(tmp_path / "forged.h5", "r+") as file:
        file["masks"][90, 0, 0] = 777
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError):
        import_hdf5(tmp_path / "forged.h5", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("kind", ["pixels", "jpeg"])
def test_an_export_can_be_imported(exports, tmp_path, finished_run, jpeg_run, kind):
    run = import_hdf5(exports / f"{kind}.h5", tmp_path / "run")
    assert logical_digest(Run.open(run.path)) == logical_digest(finished_run if kind == "pixels" else jpeg_run)
