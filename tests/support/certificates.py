"""Certificates of CAs that live as long as a test."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme


class Authority:
    """A CA, and files of the certificates that it issues."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ca = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name, *identities, ended=False, days=None):
        """Files of a certificate and its key.

        Args:
            identities: whose it is; by default this machine's.
            ended: whether it is of the past.
            days: until it ends; by default decades.
        """
        first = last = None
        if ended:
            first, last = datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)
        elif days is not None:
            last = datetime.datetime.now() + datetime.timedelta(days)
        made = self._ca.issue_cert(
            *(identities or ("127.0.0.1", "localhost")), not_before=first, not_after=last
        )
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return cert, key
