"""An interrupted or failing write must leave what was there before."""

import os
import subprocess
import sys

import pytest
import torch

from gsdd_lib.core.files import (
    DamagedFileError,
    FolderInUseError,
    lock_folder,
    project_root,
    read_tensors,
    seal,
    unseal,
    write_atomically,
    write_tensors,
)


def test_the_project_root_is_the_same_from_every_folder_of_the_project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_root() == tmp_path / "notebooks"  # outside any project
    (tmp_path / "pyproject.toml").touch()
    assert project_root() == tmp_path


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


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "numbers": torch.tensor([[0.0, 1.0], [2.0, -0.0]], dtype=torch.bfloat16),
        "labels": torch.tensor([0, 1], dtype=torch.uint8),
        "nothing": torch.zeros(0, 3),
        "one": torch.tensor(1.5, dtype=torch.float64),
    }


ABOUT = {"format": "test", "version": 1, "names": ["a", "ü"], "nested": {"b": 1, "a": None}}


def test_tensors_come_back_as_they_were_and_equal_content_gives_equal_bytes(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert write_tensors(one, _tensors(), ABOUT) == one.stat().st_size
    write_tensors(other, dict(reversed(_tensors().items())), dict(reversed(ABOUT.items())))
    assert one.read_bytes() == other.read_bytes()
    tensors, about = read_tensors(one, "test")
    assert about == ABOUT
    for name, tensor in _tensors().items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    path = tmp_path / "file"
    write_tensors(path, _tensors(), ABOUT)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            read_tensors(path, "test")
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_tensors(path, "test")


def test_another_kind_and_a_missing_file_are_refused(tmp_path):
    write_tensors(tmp_path / "file", _tensors(), ABOUT)
    with pytest.raises(DamagedFileError, match="not a set file"):
        read_tensors(tmp_path / "file", "set")
    with pytest.raises(DamagedFileError, match="No such file"):
        read_tensors(tmp_path / "missing", "test")


def test_a_seal_holds_every_bit():
    sealed = seal(b"content")
    assert unseal(sealed) == b"content"
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFileError):
            unseal(bytes(damaged))
    with pytest.raises(DamagedFileError):
        unseal(b"short")


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
        write_atomically(tmp_path / "file", b"content")


HOLD = """if True:
    import sys
    from gsdd_lib.core.files import lock_folder
    with lock_folder(sys.argv[1]):
        print("locked", flush=True)
        sys.stdin.read()
"""


def test_a_locked_folder_is_refused_until_its_process_dies(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        sentence = f"Process {holder.pid} is at work in '{folder}'"
        with pytest.raises(FolderInUseError, match=sentence), lock_folder(folder):
            pass
        with lock_folder(folder, ".other"):  # another lock
            pass
        holder.kill()
    with lock_folder(folder):
        pass


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    with (
        lock_folder(tmp_path),
        pytest.raises(FolderInUseError, match=f"Process {os.getpid()} "),
        lock_folder(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    sentence = "'.*file' cannot be written to"
    with pytest.raises(FolderInUseError, match=sentence), lock_folder(tmp_path / "file"):
        pass
