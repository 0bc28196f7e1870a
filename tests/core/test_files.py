"""An interrupted or failing write must leave what was there before."""

import os

import pytest

from gsdd_lib.core.files import write_atomically


def test_writes_a_new_file_and_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(path.parent) == ["file.bin"]


def test_replaces_an_existing_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a long old content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readable_by_others_as_any_other_file(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file" / "inner", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
