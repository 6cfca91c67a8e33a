"""TLS as a client sees it: whom it trusts, who it is, and why a handshake failed.

A failed handshake never passes by itself, so it is told at once (`TLSError`). Two of them look like
a broken connection: a plain-text client at a TLS port, and a server that does not like the client's
certificate, both just hang up. So where a connection breaks without a word, it is looked why.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from r2m_client._errors import ConnectError, R2MError, TLSError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r2m_client._transport import Address

LOOK_SECONDS = 2.0
"""For finding out why a connection broke."""

CertFiles = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""A client's certificate: one file with its private key, or (certificate, key)."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom the client trusts, and what it shows of itself.

    Attributes:
        ca: file of the CA that the server's certificate must be of; None: those of the system.
        cert, key: files of its own certificate and private key, for servers that ask for one.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = field(default=None, repr=False)

    @property
    def default(self) -> bool:
        """Whether nothing was said."""
        return self.ca is None and self.cert is None

    def context(self) -> ssl.SSLContext:
        """For Python's own TLS.

        Raises:
            ValueError: a file that cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError:
            raise ValueError(f"ca {self.ca} holds no certificate in PEM form") from None
        if self.cert is not None:
            try:
                # Without a password of its own OpenSSL would ask for one, on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except ssl.SSLError as error:
                reason = (error.reason or "unreadable").replace("_", " ").lower()
                raise ValueError(
                    f"cert {self.cert} and its key cannot be used ({reason}): PEM files are "
                    "needed, of the same key, which has no password"
                ) from None
        return context

    def bytes(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """For gRPC: CA, private key, certificate.

        Raises:
            ValueError: a file that cannot be used; gRPC would say so at the first call, and badly.
        """
        if not self.default:
            self.context()
        read = [None if path is None else path.read_bytes() for path in (self.ca, self.cert)]
        key = self.key or self.cert
        return read[0], None if key is None else key.read_bytes(), read[1]


def find_trust(
    ca: str | os.PathLike[str] | None,
    cert: CertFiles | None,
    *,
    secure: bool,
    environment: Mapping[str, str] = os.environ,
) -> Trust:
    """From what is given, else from R2M_CA, R2M_CERT and R2M_CERT_KEY.

    Args:
        secure: whether the URL is one with TLS; for others the environment is not asked.

    Raises:
        ValueError: files for a URL without TLS, or a file that is not there.
    """
    if not secure:
        if ca is not None or cert is not None:
            raise ValueError("ca and cert are for TLS: give an https:// or grpcs:// URL")
        return Trust()
    ca = ca if ca is not None else environment.get("R2M_CA") or None
    if cert is None and (own := environment.get("R2M_CERT")):
        key = environment.get("R2M_CERT_KEY")
        cert = (own, key) if key else own
    pair = cert if isinstance(cert, tuple) else (cert, None)
    found = [None if one is None else Path(one).expanduser() for one in (ca, *pair)]
    for name, path in zip(("ca", "cert", "key of cert"), found, strict=True):
        if path is not None and not os.access(path, os.R_OK):
            raise ValueError(f"{name} {path} is not there, or cannot be read")
    return Trust(*found)


def handshake_failure(error: BaseException, where: str) -> TLSError | None:
    """What a failure of Python's TLS means; None where there was none, or the peer just hung up."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, ssl.SSLError):
        at = at.__cause__ or at.__context__
    if at is None or isinstance(at, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    if isinstance(at, ssl.SSLCertVerificationError):
        return _untrusted(where, at.verify_message)
    return _refused(where, at.reason or str(at))


def grpc_handshake_failure(said: str, where: str) -> TLSError | None:
    """The same for what gRPC says of a connection."""
    if "CERTIFICATE_VERIFY_FAILED" in said:
        why = re.search(r"CERTIFICATE_VERIFY_FAILED: ([^:]+)", said)
        return _untrusted(where, why[1] if why else "verification failed")
    name = re.search(r"[Pp]eer name (\S+) is not in peer certificate", said)
    if name is not None or "Hostname Verification" in said:
        return _untrusted(where, "it is for another host name")
    if "handshake failed" in said and "SSL_ERROR_SSL" in said:
        found = re.search(r"OPENSSL_internal:([A-Z0-9_]+)", said)
        return _refused(where, found[1] if found else "handshake failed")
    return None


def _untrusted(where: str, why: str) -> TLSError:
    return TLSError(
        f"the certificate of {where} is not trusted: {why.strip()}; `ca` (--ca, R2M_CA) names the "
        "CA to trust"
    )


def _refused(where: str, reason: str) -> TLSError:
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        plain = where.replace("https://", "http://").replace("grpcs://", "grpc://")
        return TLSError(f"{where} speaks no TLS: the URL may have to be {plain}")
    if "CERTIFICATE_REQUIRED" in reason or "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        return _wants_certificate(where)
    return TLSError(f"no TLS with {where}: {reason.replace('_', ' ').lower()}")


def _wants_certificate(where: str) -> TLSError:
    return TLSError(
        f"{where} ends the TLS handshake: it may want a client's certificate of its own CA; `cert` "
        "(--cert, R2M_CERT) gives one"
    )


def explained(found: R2MError, address: Address, trust: Trust) -> R2MError:
    """A broken connection's cause where that is TLS; any other error as it is. Blocks."""
    if address.proxy is not None or not unexplained(found):
        return found
    return (_look_secure(address, trust) if address.secure else _look_plain(address)) or found


def unexplained(found: R2MError) -> bool:
    """Whether `explained` would look: the server was reached, and hung up without a word."""
    return (
        isinstance(found, ConnectError)
        and not isinstance(found, TLSError)
        and re.search(r"Socket closed|disconnected|[Rr]eset|Broken pipe|EOF", str(found))
        is not None
    )


async def explained_later(found: R2MError, address: Address, trust: Trust) -> R2MError:
    """`explained`, without blocking the loop."""
    if not unexplained(found):
        return found
    return await asyncio.to_thread(explained, found, address, trust)


def _look_plain(address: Address) -> TLSError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent; the question is who speaks TLS
    if _handshake(address, context):
        secure = address.shown.replace("http://", "https://").replace("grpc://", "grpcs://")
        return TLSError(f"{address.shown} speaks TLS alone: the URL may have to be {secure}")
    return None


def _look_secure(address: Address, trust: Trust) -> TLSError | None:
    context = trust.context()
    # In TLS 1.3 a client's certificate is judged after its handshake is over; here within it.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return _wants_certificate(address.shown) if _handshake(address, context) is False else None


def _handshake(address: Address, context: ssl.SSLContext) -> bool | None:
    """Whether a handshake succeeds; None where the server cannot be reached."""
    parts = urlsplit(address.url)
    host, port = str(parts.hostname), parts.port or (443 if address.secure else 80)
    if address.grpc:
        context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), LOOK_SECONDS) as connection:
            try:
                with context.wrap_socket(connection, server_hostname=host):
                    return True
            except (ssl.SSLError, ConnectionError):
                return False
    except OSError:
        return None
