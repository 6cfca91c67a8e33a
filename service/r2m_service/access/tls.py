"""The server's certificate, and the CA of its clients', for both transports; checked as it is read.

Nothing but the standard library reads them: a handshake in memory says whether key and certificate
match, and whether the certificate is valid today.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from r2m_service.access.errors import AccessError


@dataclass(frozen=True, slots=True)
class Tls:
    """What both listeners need.

    Attributes:
        context: for HTTP.
        cert, key, client_ca: the files' bytes, for gRPC.
        not_after: when the certificate ends.
    """

    context: ssl.SSLContext
    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    not_after: datetime


def load_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """Read the files and try them; None where there are none.

    Raises:
        AccessError: one is missing, unreadable, no PEM, does not match, or is not valid today.
    """
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        given = "--tls-client-ca" if cert is None and key is None else "--tls-cert and --tls-key"
        needs = "needs --tls-cert and --tls-key" if cert is None and key is None else "go together"
        raise AccessError(f"{given} {needs}: give both files")
    data = {flag: _read(path, flag) for flag, path in (("--tls-cert", cert), ("--tls-key", key))}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of its own OpenSSL would ask for one, on a terminal nobody looks at.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise AccessError(_pair_problem(cert, key, error)) from None
    not_after = _try(context, cert)
    trusted = None
    if client_ca is not None:
        trusted = _read(client_ca, "--tls-client-ca")
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise AccessError(
                f"--tls-client-ca {client_ca} holds no certificate in PEM form"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(context, data["--tls-cert"], data["--tls-key"], trusted, not_after)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessError(f"{flag} {path} cannot be read: {error.strerror}") from None


def _pair_problem(cert: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key} is not the key of the certificate in --tls-cert {cert}"
    if b"ENCRYPTED" in key.read_bytes():
        return f"--tls-key {key} is locked with a password: give the key without one"
    for flag, path, kind in (
        ("--tls-cert", cert, b"CERTIFICATE-----"),
        ("--tls-key", key, b"PRIVATE KEY-----"),
    ):
        if kind not in path.read_bytes():
            what = "certificate" if flag == "--tls-cert" else "private key"
            return f"{flag} {path} holds no {what} in PEM form"
    reason = (error.reason or "unknown").replace("_", " ").lower()
    return f"--tls-cert {cert} and --tls-key {key} cannot be used: {reason}"


def _try(server: ssl.SSLContext, cert: Path) -> datetime:
    """When the certificate ends, from a handshake in memory with a client that trusts it alone."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    # It need not be its own issuer, as long as it is the one that is trusted.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(there, back, server_side=True)
    theirs = client.wrap_bio(back, there)
    waiting = [theirs, ours]
    try:
        while waiting:
            side = waiting.pop(0)
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(side)
        found = theirs.getpeercert()
    except ssl.SSLCertVerificationError as error:
        raise AccessError(f"--tls-cert {cert} cannot be used: {error.verify_message}") from None
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise AccessError(f"--tls-cert {cert} cannot be used: {reason}") from None
    assert found is not None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
