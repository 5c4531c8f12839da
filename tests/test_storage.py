"""A file is there as a whole or not at all, and what the system refuses is told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lossearch.errors import StorageError, StudyError
from lossearch.storage import whole
from tests.disk import room_for


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with whole(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(KeyboardInterrupt), whole(path) as file:
        file.write(b"tw")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["a.bin"]


def test_what_is_renamed_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr("os.fsync", lambda n: steps.append(Path(f"/dev/fd/{n}").resolve().name))
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda one, two: steps.append(f"{one.name} -> {two.name}")
    )
    folder = tmp_path / "folder"
    with whole(folder / "a") as file:
        file.write(b"x")
    assert steps == [".a.partial", ".a.partial -> a"]


@pytest.mark.parametrize("size", [0, 10, 999_999])
def test_no_room(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with (
        room_for(size),
        pytest.raises(StorageError, match=r"the thing /.*/a\.bin cannot be written: File too l"),
        whole(path, "the thing") as file,
    ):
        file.write(b"x" * 1_000_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert issubclass(StorageError, StudyError)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = r"a\.bin cannot be written: (Not a dir|File exists)"
    with pytest.raises(StorageError, match=said), whole(tmp_path / "file" / "a.bin"):
        pass


def test_what_the_block_cannot_read_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole(tmp_path / "a.bin"):
        Path("/nowhere/elsewhere").read_bytes()
    with pytest.raises(ValueError, match="mine"), whole(tmp_path / "a.bin"):
        raise ValueError("mine")
    assert os.listdir(tmp_path) == []
