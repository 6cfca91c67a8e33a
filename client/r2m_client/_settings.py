"""What both clients are made of besides a transport."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from r2m_client._retry import Attempts, Retry
from r2m_client._samples import WIRE_DTYPES, WireDtype
from r2m_client._transport import Opening, Sleep, Traffic

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Settings:
    """A client's settings and counters; the arguments are documented on `Client`."""

    _clock = staticmethod(time.monotonic)

    def __init__(
        self, url: str, timeout: float, retries: int | Retry | None, wire_dtype: WireDtype
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}, it must be above 0 seconds")
        if wire_dtype not in WIRE_DTYPES:
            raise ValueError(f"wire_dtype {wire_dtype!r} is not one of {', '.join(WIRE_DTYPES)}")
        self.url = url
        self._timeout = timeout
        self._retry = retries if isinstance(retries, Retry) else Retry(retries)
        self._wire_dtype: WireDtype = wire_dtype
        self._traffic = Traffic()

    @property
    def bytes_sent(self) -> int:
        """Payload bytes of all requests so far, as serialized; every attempt counts."""
        return self._traffic.sent

    @property
    def bytes_received(self) -> int:
        """Payload bytes of all answers so far."""
        return self._traffic.received

    def _opening(self, sleep: Sleep) -> Opening[Sleep]:
        """What a stream needs to open."""
        return Opening(
            self._wire_dtype, self._timeout, lambda: self._attempts(repeatable=True), sleep
        )

    def _attempts(self, *, repeatable: bool) -> Attempts:
        return Attempts(self._retry, self._timeout, repeatable=repeatable, clock=self._clock)
