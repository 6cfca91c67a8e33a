"""Who may do what: keys, their scopes, and the runs that they are bound to."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

MARK = "r2m"
"""What every key begins with, so that people and scanners of leaked secrets know one."""
ID_BYTES = 4
SECRET_BYTES = 32


class Scope(StrEnum):
    """What a key may do; each scope includes those before it."""

    SCORE = "score"
    ALIGN = "align"
    ADMIN = "admin"

    def covers(self, other: Scope) -> bool:
        """Whether this scope is the other, or more."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class Standing(StrEnum):
    """Whether a key opens anything now."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the server knows it: all but the key itself.

    Attributes:
        id: the part of it that finds this record; no secret.
        name: for people.
        runs: the runs it is bound to; None: to none, so all are open to it.
        digest: SHA-256 of the whole key, in hexadecimal.
    """

    id: str
    name: str
    scope: Scope
    runs: frozenset[str] | None
    digest: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def standing(self, now: datetime) -> Standing:
        """Whether it opens anything at that time."""
        if self.revoked_at is not None:
            return Standing.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return Standing.EXPIRED
        return Standing.VALID

    def matches(self, text: str) -> bool:
        """Whether this is the record of that key; takes as long however much of it is right."""
        return hmac.compare_digest(digest(text), self.digest)

    def opens(self, run: str) -> bool:
        """Whether that run's calls are open to it."""
        return self.runs is None or run in self.runs


def new_text() -> tuple[str, str]:
    """A new key's id, and the key: `r2m_<id>_<secret>`."""
    identity = secrets.token_hex(ID_BYTES)
    return identity, f"{MARK}_{identity}_{secrets.token_hex(SECRET_BYTES)}"


def id_of(text: str) -> str | None:
    """The id that a key names; None where it has not a key's form."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == MARK and all(parts) else None


def digest(text: str) -> str:
    """What is kept of a key.

    One round of SHA-256 is enough: a key has 256 random bits, so nobody can find it by trying,
    which is what slow hashes of passwords are for (docs/adr/0015).
    """
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
