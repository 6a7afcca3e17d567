"""Scans of folders: data at any depth, through links, and nothing that systems left there."""

import pytest
from PIL import Image

from magicseg.core.errors import DataError
from magicseg.evaluate.predict_images import find_images
from magicseg.images.listing import files_below, images_in

SYSTEM = [
    "._a.jpg",
    ".DS_Store",
    ".nfs000000000123.jpg",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/a.jpg",
    "Thumbs.db",
    "sub/._a.jpg",
    "lost+found/a.jpg",
]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_leave_is_no_image(tmp_path, name):
    touch(tmp_path / "mine", "a.jpg", name)
    assert images_in(tmp_path / "mine", tmp_path / "out") == ["a.jpg"]
    assert list(find_images([f"{tmp_path}/mine/**/*.jpg"], tmp_path / "out")) == ["a.jpg"]


@pytest.mark.parametrize("name", ["A.JPG", "b.TIF", "c.tiff", "d.webp", "e.avif", "f.jp2", "g.bmp", "h.gif", "i.Png"])
def test_endings_of_images_are_found_in_any_case(tmp_path, name):
    touch(tmp_path, name)
    assert images_in(tmp_path, tmp_path / "out") == [name]


@pytest.mark.parametrize("name", ["a.heic", "a.CR2", "a.jxl", "a.psd"])
def test_images_of_other_formats_are_said_to_be_skipped(tmp_path, name):
    touch(tmp_path, "b.jpg", name, "notes.txt")
    told = []
    assert images_in(tmp_path, tmp_path / "out", tell=told.append) == ["b.jpg"]
    assert told == [f"{tmp_path}: skipped 1 images in unsupported formats: {name}"]
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(DataError, match=f"no images in a supported format: {name}"):
        images_in(tmp_path, tmp_path / "out")


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    touch(tmp_path / "elsewhere", "a.jpg", "deep/b.jpg")
    touch(tmp_path / "mine", "c.jpg", "sub/d.jpg")
    (tmp_path / "mine/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine/sub/up").symlink_to(tmp_path / "mine")
    (tmp_path / "elsewhere/deep/over").symlink_to(tmp_path / "mine/sub")
    (tmp_path / "mine/none").symlink_to(tmp_path / "nothing")
    found = images_in(tmp_path / "mine", tmp_path / "out")
    assert found == ["c.jpg", "linked/a.jpg", "linked/deep/b.jpg", "sub/d.jpg"]


def test_results_inside_the_folder_are_left_out_even_through_a_link(tmp_path):
    touch(tmp_path / "mine", "a.jpg", "out/a.jpg.png")
    (tmp_path / "mine/again").symlink_to(tmp_path / "mine/out")
    assert images_in(tmp_path / "mine", tmp_path / "mine/out") == ["a.jpg"]


def test_a_pipe_is_no_image(tmp_path):
    import os

    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    assert images_in(tmp_path, tmp_path / "out") == ["a.jpg"]
    assert list(files_below(tmp_path)) == ["a.jpg"]


def test_upper_case_images_are_labelled(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "mine/A.JPG", "JPEG")
    assert list(find_images([str(tmp_path / "mine")], tmp_path / "out")) == ["A.JPG"]
