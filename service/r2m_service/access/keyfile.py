"""The file of API keys: JSON, hashes alone, written whole and with 0600, read anew when it changes.

The same JSON may stand in the setting itself, for containers whose secrets come as variables.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
from collections.abc import Generator, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from r2m_service.access.errors import AccessError
from r2m_service.domain.access import Key, Scope, Standing, digest, new_text

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-z]{1,32}$")]
    name: str
    scope: Scope
    runs: list[str] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    @staticmethod
    def of(key: Key) -> _Entry:
        return _Entry(
            id=key.id,
            name=key.name,
            scope=key.scope,
            runs=None if key.runs is None else sorted(key.runs),
            sha256=key.digest,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )

    def key(self) -> Key:
        return Key(
            id=self.id,
            name=self.name,
            scope=self.scope,
            runs=None if self.runs is None else frozenset(self.runs),
            digest=self.sha256,
            created_at=self.created_at,
            expires_at=self.expires_at,
            revoked_at=self.revoked_at,
        )


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    keys: list[_Entry]


def parse_keys(data: bytes | str, *, where: str) -> dict[str, Key]:
    """The keys of a file's content, by id.

    Raises:
        AccessError: it is not of the form that `r2m keys` writes.
    """
    try:
        content = _Content.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        at = f" (at {place})" if place else ""
        raise AccessError(f"{where} is no list of keys{at}: {first['msg']}") from None
    keys = {entry.id: entry.key() for entry in content.keys}
    if len(keys) != len(content.keys):
        raise AccessError(f"{where} is no list of keys: two have the same id")
    return keys


class GivenKeys:
    """Keys that stand in a setting; they stay as they are while the server runs."""

    def __init__(self, text: str) -> None:
        self._keys = parse_keys(text, where="the JSON in --keys (R2M_KEYS)")

    def find(self, identity: str) -> Key | None:
        """See `transports.access.Keys`."""
        return self._keys.get(identity)

    def all(self) -> list[Key]:
        """All of them."""
        return list(self._keys.values())


class KeyFile:
    """Keys in a file. Several processes may use one.

    Args:
        path: of the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        self._complained: str | None = None

    def find(self, identity: str) -> Key | None:
        """See `transports.access.Keys`: the file as it is now.

        Where it has become unreadable, what was read last goes on to hold, and the log says so: a
        training run of days must not end because somebody edits a file.
        """
        try:
            self._refresh()
            self._complained = None
        except AccessError as error:
            if str(error) != self._complained:
                log.error("%s; the keys as they were before go on to hold", error)
                self._complained = str(error)
        return self._keys.get(identity)

    def all(self) -> list[Key]:
        """All keys, in the order in which they were made.

        Raises:
            AccessError: the file is missing or cannot be used.
        """
        self._refresh()
        return list(self._keys.values())

    def create(
        self,
        name: str,
        scope: Scope,
        *,
        runs: Iterable[str] = (),
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """Add a key; makes the file if there is none.

        Returns:
            What is kept, and the key, which is nowhere else.

        Raises:
            AccessError: the file cannot be read or written.
        """
        identity, text = new_text()
        bound = frozenset(runs)
        key = Key(
            id=identity,
            name=name,
            scope=scope,
            runs=bound or None,
            digest=digest(text),
            created_at=_now(),
            expires_at=expires_at,
        )
        with self._changing() as keys:
            if identity in keys:  # once in four thousand million times
                raise AccessError("the new key's id is taken: try again")
            keys[identity] = key
        return key, text

    def revoke(self, identity: str) -> Key:
        """Let a key open nothing any more. One that was revoked stays as it is.

        Raises:
            AccessError: there is no such key, or the file cannot be read or written.
        """
        with self._changing(create=False) as keys:
            key = keys.get(identity)
            if key is None:
                raise AccessError(f"{self.path} has no key of the id {identity[:40]!r}")
            if key.standing(_now()) is not Standing.REVOKED:
                key = keys[identity] = replace(key, revoked_at=_now())
        return key

    def _refresh(self) -> None:
        try:
            found = os.stat(self.path)
            # A file that was written whole has a new inode, so no change is too quick to be seen.
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return
            if found.st_size > MAX_FILE_BYTES:
                raise AccessError(f"{self.path} is larger than any list of keys")
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise AccessError(
                f"there is no file of keys {self.path}: `r2m keys create` makes one"
            ) from None
        except OSError as error:
            raise AccessError(f"{self.path} cannot be read: {error.strerror}") from None
        self._keys = parse_keys(data, where=str(self.path))
        self._seen = seen

    @contextlib.contextmanager
    def _changing(self, *, create: bool = True) -> Generator[dict[str, Key]]:
        """All keys, to be changed in the block and written after it; others wait meanwhile."""
        try:
            # The folder, since the file itself is another one after each change.
            lock = os.open(self.path.resolve().parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AccessError(f"{self.path.absolute().parent}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() or not create:
                self._refresh()
            keys = dict(self._keys)
            yield keys
            if keys != self._keys:
                self._write(keys, lock)
        finally:
            os.close(lock)

    def _write(self, keys: dict[str, Key], folder: int) -> None:
        entries = [
            _Entry.of(key).model_dump(mode="json", exclude_none=True) for key in keys.values()
        ]
        content: dict[str, Any] = {"version": 1, "keys": entries}
        data = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
        # A link stays one: what it leads to is replaced.
        target = self.path.resolve()
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            os.fsync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise AccessError(f"{self.path} cannot be written: {error.strerror}") from None


def open_keys(given: str) -> KeyFile | GivenKeys:
    """What a setting of keys means: the JSON itself, or the file of that name.

    Raises:
        AccessError: missing, unreadable, or of another form.
    """
    if given.lstrip().startswith("{"):
        return GivenKeys(given)
    keys = KeyFile(Path(given).expanduser())
    keys.all()
    return keys


def open_to_others(path: Path) -> Literal["write", "read"] | None:
    """What other users of the machine may do with a file, at worst."""
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "write"
    return "read" if mode & (stat.S_IRGRP | stat.S_IROTH) else None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
