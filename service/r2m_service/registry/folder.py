"""Files of a local folder, written so that a crash at any instruction leaves all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from datetime import UTC, datetime
from pathlib import Path

_PART = ".part"


class Folder:
    """A folder of files, addressed by checked, relative keys. Safe from many threads.

    All methods raise OSError where the file system fails.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._lock = threading.Lock()
        self._durable: set[Path] = set()
        make_folders(self._root)
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{self._root} cannot be written")

    def write(self, key: str, data: bytes) -> None:
        """Write a file: when this returns, it is whole and on disk."""
        path = self._root / key
        folder = path.parent
        self._make_durable(folder)
        # Beside the file: a rename is atomic within one file system only. Keys start with a
        # letter or a digit, so a temporary name is never one.
        part = folder / f".{path.name}.{secrets.token_hex(8)}{_PART}"
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync_folder(folder)

    def read(self, key: str, limit: int) -> bytes:
        """A file's first `limit` bytes.

        Raises:
            FileNotFoundError: where there is none.
        """
        with open(self._root / key, "rb") as file:
            return file.read(limit)

    def remove(self, key: str) -> None:
        """Remove a file; one that is not there is fine."""
        (self._root / key).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """The bytes of all files by their names below the root, temporary ones too."""
        found: dict[str, int] = {}
        for above, _, names in os.walk(self._root, onerror=_raise):
            for name in names:
                path = Path(above, name)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found[path.relative_to(self._root).as_posix()] = path.lstat().st_size
        return found

    def modified(self, key: str) -> datetime | None:
        """When a file was written; None where it is not there any more."""
        try:
            return datetime.fromtimestamp((self._root / key).lstat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def _make_durable(self, folder: Path) -> None:
        """Make a folder below the root and put its name on disk, once in this process.

        Also a folder that is already there: whoever made it may have crashed, or not yet come to
        its fsync.
        """
        with self._lock:
            if folder in self._durable and folder.is_dir():
                return
            make_folders(folder)
            above = folder
            while above != self._root:
                above = above.parent
                _sync_folder(above)
            self._durable.add(folder)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that was removed meanwhile
        raise error


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, each put on disk in its parent.

    Raises:
        OSError: where one cannot be made, or is a file.
    """
    folder = folder.absolute()
    if folder.is_dir():
        return
    make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        # Another thread or process came first, or it is a file.
        if not folder.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)
            ) from None
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
