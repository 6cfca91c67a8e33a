"""Whether the server in this container lives; what Docker's HEALTHCHECK runs.

Asks the address of probes (R2M_OPS) if there is one, else HTTP's; with TLS on the latter no
certificate is compared, since it names the service and not this loopback.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request


def main() -> int:
    """0 where /livez answers, else 1."""
    ops = os.environ.get("R2M_OPS")
    address = ops or os.environ.get("R2M_HTTP") or "127.0.0.1:8080"
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    plain = ops is not None or not os.environ.get("R2M_TLS_CERT")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"http{'' if plain else 's'}://{host}:{port}/livez"
    try:
        # Raises for every status that is no success.
        urllib.request.urlopen(url, timeout=4, context=context).close()  # noqa: S310
    except OSError as error:
        print(f"{url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
