"""Which proxy of the environment stands before a server, so that errors can name it.

A loopback address has none: on the proxy's machine it would be another server. For HTTP the proxy
is that of `http_proxy` or `https_proxy`, else of `all_proxy`, in lower or upper case, or of the
system's settings; `no_proxy` excepts hosts. For gRPC, which reads its variables by itself, it is
that of `grpc_proxy`, `https_proxy` or `http_proxy`, in lower case alone; `no_grpc_proxy` or
`no_proxy` excepts hosts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

if TYPE_CHECKING:
    from r2m_client._transport import Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; in words it has no user and no password.

    Attributes:
        url: as the environment has it.
        source: what names it: a variable, or the system's settings.
    """

    url: str
    source: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.source})"


def proxy_of(address: Address) -> Proxy | None:
    """The proxy before a server, or None."""
    host = str(urlsplit(address.url).hostname)
    if _is_loopback(host):
        return None
    found, exceptions = _of_grpc() if address.grpc else _of_http(address.secure)
    if found is None:
        return None
    for one in exceptions.lower().split(","):
        name = one.strip().removeprefix(".")
        if name in ("*", host, address.target) or _holds(name, host):
            return None
        if name and host.endswith(f".{name}"):
            return None
    return found if "://" in found.url else replace(found, url=f"http://{found.url}")


def _of_grpc() -> tuple[Proxy | None, str]:
    """The proxy for gRPC, and which hosts are excepted."""
    given = os.environ
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    proxy = next((Proxy(given[name], name) for name in names if given.get(name)), None)
    return proxy, given.get("no_grpc_proxy") or given.get("no_proxy", "")


def _of_http(secure: bool) -> tuple[Proxy | None, str]:
    """The proxy for HTTP, and which hosts are excepted."""
    given = getproxies()
    for kind in ("https" if secure else "http", "all"):
        if kind in given:
            names = (f"{kind}_proxy", f"{kind}_proxy".upper())
            source = next((name for name in names if os.environ.get(name)), "system settings")
            return Proxy(given[kind], source), given.get("no", "")
    return None, ""


def _is_loopback(host: str) -> bool:
    return host == "localhost" or any(_holds(own, host) for own in ("127.0.0.0/8", "::1/128"))


def _holds(network: str, host: str) -> bool:
    """Whether a network such as 10.0.0.0/8 holds a host's address; False for a name."""
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False
