"""Immutable files in a folder or an object store, checked against their hash when read."""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from r2m.errors import Code, Problem
from r2m_service.domain.runs import BlobRef
from r2m_service.registry.folder import Folder

# Parts start with a letter or a digit: neither '..' nor a hidden or temporary file is a key.
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_PART}(?:/{_PART}){{0,9}}")
_TRIAL_BYTES = 1 << 16


def driver_module(url: str) -> str | None:
    """The module of fsspec's driver for a URL; None for a folder, and for an unknown protocol."""
    # Of a chain (`simplecache::s3://…`) the last one is the store.
    protocol, separator, _ = url.rpartition("::")[2].partition("://")
    known = known_implementations.get(protocol) if separator else None
    return known["class"].rpartition(".")[0] if known else None


class _Files(Protocol):
    def write(self, key: str, data: bytes) -> None: ...
    def read(self, key: str, limit: int) -> bytes: ...
    def remove(self, key: str) -> None: ...
    def sizes(self) -> dict[str, int]: ...
    def modified(self, key: str) -> datetime | None: ...


class BlobStore:
    """The application's `Blobs`, over a local folder or an fsspec URL. Safe from many threads.

    A key must name its content or its attempt: two writers of different content under one key
    would replace each other's file.

    Args:
        url: a path, `file://…`, or a URL that fsspec knows (`s3://bucket/prefix`, `memory://…`).

    Raises:
        Problem: storage_failed, where the folder cannot be made or the URL's driver is missing.
    """

    def __init__(self, url: str) -> None:
        self._files: _Files = _open(url)

    @property
    def remote(self) -> bool:
        """Whether the files lie in an object store."""
        return isinstance(self._files, _Remote)

    def try_out(self) -> None:
        """Write a file, read it back and remove it.

        Raises:
            Problem: storage_failed or head_damaged, where the store cannot keep files.
        """
        key, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(_TRIAL_BYTES)
        try:
            self.get(self.put(key, data))
        finally:
            with suppress(Problem):
                self.delete(key)

    def put(self, key: str, data: bytes) -> BlobRef:
        """Write a file so that it is whole and on disk, or not there at all.

        Raises:
            Problem: storage_failed.
            ValueError: for a key that is not relative and made of safe characters.
        """
        _check(key)
        try:
            self._files.write(key, data)
        except OSError as error:
            raise _failed(f"{key} could not be written", error) from error
        return BlobRef(key, hashlib.sha256(data).hexdigest(), len(data))

    def get(self, ref: BlobRef) -> bytes:
        """Read a file and compare it with its size (bytes) and SHA-256.

        Raises:
            Problem: head_damaged (missing, cut off, altered) or storage_failed.
            ValueError: for a bad key.
        """
        _check(ref.key)
        try:
            data = self._files.read(ref.key, ref.size + 1)
        except FileNotFoundError as error:
            raise Problem(Code.HEAD_DAMAGED, f"stored file {ref.key} is missing") from error
        except OSError as error:
            raise _failed(f"{ref.key} could not be read", error) from error
        if len(data) != ref.size:
            which = "cut off" if len(data) < ref.size else "too long"
            raise Problem(
                Code.HEAD_DAMAGED, f"stored file {ref.key} is {which}: it had {ref.size} bytes"
            )
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise Problem(
                Code.HEAD_DAMAGED, f"stored file {ref.key} was altered: its hash does not match"
            )
        return data

    def delete(self, key: str) -> None:
        """Remove a file; one that is not there is fine.

        Raises:
            Problem: storage_failed.
            ValueError: for a bad key.
        """
        _check(key)
        self._remove(key)

    def sizes(self) -> dict[str, int]:
        """The bytes of everything that lies below the root, by name, temporary files too.

        Others may write and remove meanwhile. Not all of it need be ours.

        Raises:
            Problem: storage_failed.
        """
        try:
            return self._files.sizes()
        except OSError as error:
            raise _failed("names could not be listed", error) from error

    def modified(self, name: str) -> datetime | None:
        """When something that `sizes` named was written; None where that is not known.

        Raises:
            Problem: storage_failed.
        """
        try:
            return self._files.modified(name)
        except OSError as error:
            raise _failed(f"{name} could not be looked at", error) from error

    def remove_found(self, name: str) -> None:
        """Remove something that `sizes` named, also a temporary file.

        Raises:
            Problem: storage_failed.
        """
        self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            self._files.remove(name)
        except OSError as error:
            raise _failed(f"{name} could not be removed", error) from error


class _Remote:
    """An fsspec file system. Drivers raise errors of every kind: all become OSError."""

    def __init__(self, url: str) -> None:
        filesystem, root = url_to_fs(url)
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")

    def write(self, key: str, data: bytes) -> None:
        # An object store shows an object when it is whole.
        self._call("pipe_file", key, data)

    def read(self, key: str, limit: int) -> bytes:
        # Whole, whatever the limit: a range beyond the end is an error on some stores.
        return self._call("cat_file", key)

    def remove(self, key: str) -> None:
        try:
            self._call("rm_file", key)
        except FileNotFoundError:
            return

    def sizes(self) -> dict[str, int]:
        self._filesystem.invalidate_cache()
        start = f"{self._root}/"
        try:
            found = self._call("find", "", detail=True)
        except FileNotFoundError:
            return {}  # nothing was written yet
        return {
            path.removeprefix(start): int(entry.get("size") or 0)
            for path, entry in found.items()
            if path.startswith(start)
        }

    def modified(self, key: str) -> datetime | None:
        try:
            moment = self._call("modified", key)
        except (FileNotFoundError, NotImplementedError):
            return None
        if not isinstance(moment, datetime):
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment

    def _call(self, method: str, key: str, *arguments: object, **options: object) -> Any:
        path = f"{self._root}/{key}" if key else self._root
        try:
            return getattr(self._filesystem, method)(path, *arguments, **options)
        except (OSError, NotImplementedError):
            raise
        except Exception as error:
            raise OSError(f"the object store failed ({type(error).__name__})") from error


def _open(url: str) -> _Files:
    scheme, separator, _ = url.partition("://")
    local = not separator or scheme == "file"
    # A store's URL may hold a key: only its scheme is told.
    shown = url if local else f"{scheme}://"
    try:
        if not local:
            return _Remote(url)
        return Folder(_local_path(url) if separator else Path(url))
    except (OSError, ImportError, ValueError) as error:
        # fsspec's own words say which package to install, or which protocol it does not know.
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Problem(Code.STORAGE_FAILED, f"blobs cannot be kept in {shown}: {why}") from error


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise ValueError("a file URL has three slashes and an absolute path")
    return Path(unquote(parts.path))


def _check(key: str) -> None:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"not a key of a stored file: {key!r}")


def _failed(what: str, error: OSError) -> Problem:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Problem(Code.STORAGE_FAILED, f"stored file {what}: the disk is full")
    # `str(error)` would name paths of the server.
    why = error.strerror or type(error.__cause__ or error).__name__
    return Problem(Code.STORAGE_FAILED, f"stored file {what}: {why}")
