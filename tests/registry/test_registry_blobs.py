"""Files that are whole and on disk, or not there; and damage that is noticed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from registry_makers import refuses

from r2m.errors import Code
from r2m_service.domain.runs import BlobRef
from r2m_service.registry import folder as folder_module
from r2m_service.registry.blobs import BlobStore

if TYPE_CHECKING:
    from r2m_service.application.ports import (
        Blobs,
    )

KEY = "runs/k7/000012-ab.safetensors"
DATA = b"weights \x00\xff" * 1000


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["path", "file URL", "memory URL"])
def any_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(
        {
            "path": str(tmp_path / "a b%41"),
            "file URL": f"file://{tmp_path}/a%20b",
            "memory URL": f"memory://{secrets.token_hex(8)}/prefix",
        }[request.param]
    )


# ------------------------------------------------------------------ any store


def test_a_file_comes_back(any_blobs: BlobStore) -> None:
    port: Blobs = any_blobs
    ref = port.put(KEY, DATA)
    assert ref == BlobRef(KEY, hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert port.get(ref) == DATA
    empty = port.put("empty", b"")
    assert port.get(empty) == b""
    assert port.put(KEY, DATA) == ref


def test_a_deleted_file_is_gone(any_blobs: BlobStore) -> None:
    ref = any_blobs.put(KEY, DATA)
    any_blobs.delete(KEY)
    any_blobs.delete(KEY)
    any_blobs.delete("never/there")
    with refuses(Code.HEAD_DAMAGED, KEY, "missing"):
        any_blobs.get(ref)


def test_damage_is_noticed(any_blobs: BlobStore) -> None:
    ref = any_blobs.put(KEY, DATA)
    any_blobs.put(KEY, DATA[:-1])
    with refuses(Code.HEAD_DAMAGED, KEY, "cut off"):
        any_blobs.get(ref)
    any_blobs.put(KEY, DATA + b"x")
    with refuses(Code.HEAD_DAMAGED, KEY, "too long"):
        any_blobs.get(ref)
    any_blobs.put(KEY, b"W" + DATA[1:])
    with refuses(Code.HEAD_DAMAGED, KEY, "altered"):
        any_blobs.get(ref)
    any_blobs.put(KEY, DATA)
    assert any_blobs.get(ref) == DATA


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\\b",
        "a b",
        "a\n",
        "a\x00",
        "ω",
        "s3://bucket/x",
        "a" * 201,
        "/".join("a" * 11),
    ],
)
def test_a_bad_key_is_our_bug(any_blobs: BlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        any_blobs.put(key, b"x")
    with pytest.raises(ValueError, match="not a key"):
        any_blobs.get(BlobRef(key, "0" * 64, 1))
    with pytest.raises(ValueError, match="not a key"):
        any_blobs.delete(key)


def test_many_threads_may_write_and_read(any_blobs: BlobStore) -> None:
    barrier = threading.Barrier(8)

    def write(n: int) -> None:
        barrier.wait()
        for turn in range(5):
            data = f"{n} {turn}".encode()
            assert any_blobs.get(any_blobs.put(f"same/folder/{n}", data)) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))


# ------------------------------------------------------------------ a folder


def test_a_file_lies_under_its_key(blobs: BlobStore, folder: Path) -> None:
    blobs.put(KEY, DATA)
    assert files(folder) == [KEY]
    assert (folder / KEY).read_bytes() == DATA


def test_bytes_and_names_are_on_disk_before_put_returns(
    blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace_ = os.fsync, os.replace

    def name(path: str) -> str:
        relative = os.path.relpath(path, folder)
        return "part" if relative.endswith(".part") else relative

    def logged_fsync(descriptor: int) -> None:
        done.append(f"sync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def logged_replace(source: Path, target: Path) -> None:
        assert source.read_bytes() == DATA
        assert source.parent == target.parent
        done.append(f"{name(str(source))} -> {name(str(target))}")
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    blobs.put(KEY, DATA)
    i = done.index("sync part")
    assert done[i:] == ["sync part", f"part -> {KEY}", "sync runs/k7"]
    assert {"sync .", "sync runs"} <= set(done[:i])

    # A store opened later cannot know whether whoever made the folders came to sync them.
    done.clear()
    BlobStore(str(folder)).put(KEY, DATA)
    assert {"sync .", "sync runs"} <= set(done)


def test_the_root_is_on_disk_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(folder_module, "_sync_folder", synced.append)
    BlobStore(str(tmp_path / "a" / "b"))
    assert synced == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_an_interrupted_write_leaves_nothing(
    blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    blobs.put("runs/k7/other", b"x")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(os, call, fail)
    with refuses(Code.STORAGE_FAILED, KEY, "Input/output error"):
        blobs.put(KEY, DATA)
    monkeypatch.undo()
    assert files(folder) == ["runs/k7/other"]
    assert blobs.get(blobs.put(KEY, DATA)) == DATA


def test_an_interrupted_write_leaves_the_file_that_was_there(
    blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = blobs.put(KEY, DATA)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        blobs.put(KEY, b"other")
    assert files(folder) == [KEY]
    assert blobs.get(ref) == DATA


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full(
    blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    blobs.put("runs/k7/other", b"x")
    monkeypatch.setattr(os, "fsync", full)
    with refuses(Code.STORAGE_FAILED, KEY, "the disk is full"):
        blobs.put(KEY, DATA)
    assert files(folder) == ["runs/k7/other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_disk_that_fills_while_writing(
    blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any) -> Any:
        return open("/dev/full", "wb")

    monkeypatch.setattr(folder_module, "open", opened, raising=False)
    with refuses(Code.STORAGE_FAILED, KEY, "the disk is full"):
        blobs.put(KEY, DATA)
    assert files(folder) == []


def test_a_file_that_cannot_be_read_is_not_called_damaged(blobs: BlobStore, folder: Path) -> None:
    ref = blobs.put(KEY, DATA)
    (folder / KEY).unlink()
    (folder / KEY).mkdir()
    with refuses(Code.STORAGE_FAILED, KEY, "could not be read: Is a directory"):
        blobs.get(ref)
    with refuses(Code.STORAGE_FAILED, KEY, "could not be removed"):
        blobs.delete(KEY)


def test_no_more_than_the_files_size_is_read(blobs: BlobStore, folder: Path) -> None:
    ref = blobs.put(KEY, DATA)
    with open(folder / KEY, "r+b") as file:
        file.truncate(2**40)  # a sparse terabyte
    with refuses(Code.HEAD_DAMAGED, "too long"):
        blobs.get(ref)


def test_a_folder_that_was_removed_is_made_again(blobs: BlobStore, folder: Path) -> None:
    blobs.put(KEY, DATA)
    (folder / KEY).unlink()
    (folder / KEY).parent.rmdir()
    assert blobs.get(blobs.put(KEY, DATA)) == DATA


# ------------------------------------------------------------------ opening


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refuses(Code.STORAGE_FAILED, "blobs cannot be kept", "Not a directory"):
        BlobStore(str(tmp_path / "file" / "blobs"))
    with refuses(Code.STORAGE_FAILED, "blobs cannot be kept", "Not a directory"):
        BlobStore(str(tmp_path / "file"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with refuses(Code.STORAGE_FAILED, "cannot be written"):
        BlobStore(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nothing://key:secret@bucket", "nothing://:"),
        ("file://host/path", "three slashes"),
        ("s3://key:secret@bucket", "s3fs"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with refuses(Code.STORAGE_FAILED, "blobs cannot be kept in", says) as refused:
        BlobStore(url)
    assert "secret" not in refused.message


def test_a_stores_driver_may_fail_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore("memory://failing")
    ref = store.put("a", b"x")

    class EndpointError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise EndpointError("secret")

    memory = type(fsspec.filesystem("memory"))
    for method in ("pipe_file", "cat_file", "rm_file"):
        monkeypatch.setattr(memory, method, fail)
    with refuses(Code.STORAGE_FAILED, "a could not be written: EndpointError"):
        store.put("a", b"y")
    with refuses(Code.STORAGE_FAILED, "a could not be read: EndpointError"):
        store.get(ref)
    with refuses(Code.STORAGE_FAILED, "a could not be removed: EndpointError"):
        store.delete("a")
