"""Digests of files: equal to hashing the whole content at once, whatever its length."""

import hashlib

import pytest

from helpers.small_hub import git_sha1, sha256
from magicseg.core import digests
from magicseg.core.digests import file_sha256, file_sha256_and_git_sha1, stream_sha256


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 21])
def test_reading_in_blocks_hashes_the_whole_content(tmp_path, monkeypatch, length):
    monkeypatch.setattr(digests, "_BLOCK", 8)
    path, content = tmp_path / "file", bytes(range(length))
    path.write_bytes(content)
    assert file_sha256(path) == sha256(content)
    assert file_sha256_and_git_sha1(path) == (sha256(content), git_sha1(content))


def test_a_stream_is_hashed_from_its_position(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"head and rest")
    with path.open("rb", buffering=0) as file:
        file.read(4)
        assert stream_sha256(file) == hashlib.sha256(b" and rest").hexdigest()
