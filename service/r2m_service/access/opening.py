"""Access as the settings have it, checked as a whole before anything listens."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m_service.access.errors import AccessError
from r2m_service.access.keyfile import GivenKeys, KeyFile, open_keys
from r2m_service.access.tls import Tls, load_tls
from r2m_service.domain.access import Standing
from r2m_service.settings import Settings


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in, and how.

    Attributes:
        keys: None: whoever reaches the server.
        tls: None: plain text.
        notes: what to say of it at the start: is it a warning, and the sentence.
    """

    keys: KeyFile | GivenKeys | None
    tls: Tls | None
    notes: tuple[tuple[bool, str], ...]


def open_access(settings: Settings) -> Access:
    """Read keys and certificates, and hold the addresses against them.

    Raises:
        AccessError: files that cannot be used, or an address open to others without a key.
    """
    tls = load_tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    keys = None if settings.keys is None else open_keys(settings.keys)
    if keys is not None:
        now = datetime.now(UTC)
        if not any(key.standing(now) is Standing.VALID for key in keys.all()):
            raise AccessError(
                "there is no valid key in --keys: `r2m keys create` makes one, or leave --keys out"
            )
    exposed = exposed_addresses(settings)
    if keys is None and exposed and not settings.insecure:
        raise AccessError(
            f"{exposed[0]} is open to other machines, and there are no keys: give --keys (`r2m "
            "keys create` makes some), listen on 127.0.0.1, or say --insecure"
        )
    return Access(keys, tls, tuple(_notes(settings, keys, tls, exposed)))


def exposed_addresses(settings: Settings) -> list[str]:
    """Of HTTP's and gRPC's addresses those that other machines may reach, with their flags.

    The port of probes is not among them: it lets nobody score, align or look at a run.
    """
    both = (("--http", settings.http), ("--grpc", settings.grpc))
    return [f"{flag} {address}" for flag, address in both if not is_loopback(address)]


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is for this machine alone; a name that is not known counts as not."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    places = [str(place[0]).partition("%")[0] for *_, place in found]
    return all(ipaddress.ip_address(place).is_loopback for place in places)


def _notes(
    settings: Settings, keys: KeyFile | GivenKeys | None, tls: Tls | None, exposed: list[str]
) -> list[tuple[bool, str]]:
    notes: list[tuple[bool, str]] = []
    if keys is None and exposed:
        notes.append((True, f"--insecure: no keys, and {' and '.join(exposed)} is open to others"))
    elif keys is None:
        notes.append((False, "no keys: whoever is on this machine may call (loopback alone)"))
    elif exposed and tls is None:
        notes.append((True, "keys travel in plain text: give --tls-cert and --tls-key, or put a "
                      "proxy with TLS in front"))  # fmt: skip
    if settings.tls_client_ca is not None and settings.ops is None:
        notes.append((False, "probes need a client's certificate too, as there is no --ops"))
    return notes
