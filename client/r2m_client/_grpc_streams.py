"""Score streams over gRPC: the calls, with errors and traffic as everywhere else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from r2m_client._grpc_wire import Failed, grpc_failure
from r2m_client._tls import Trust, explained, explained_later
from r2m_client._tracing import context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2m_client._errors import R2MError
    from r2m_client._transport import Address, Traffic


@dataclass(frozen=True, slots=True)
class Peer:
    """What goes with every call.

    Attributes:
        address: of the server.
        trust: for TLS.
        metadata: of every call.
        traffic: counts the messages' bytes.
    """

    address: Address
    trust: Trust
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    traffic: Traffic

    def failure(self, error: object) -> R2MError:
        """What a failed call means; blocks where it has to be found out."""
        found = grpc_failure(cast("Failed", error), self.address.where)
        return explained(found, self.address, self.trust)

    async def failure_later(self, error: object) -> R2MError:
        """`failure`, without blocking the loop."""
        found = grpc_failure(cast("Failed", error), self.address.where)
        return await explained_later(found, self.address, self.trust)


class BlockingAnswers:
    """A blocking call's answers, while gRPC fetches its messages in a thread of its own."""

    def __init__(
        self, channel: grpc.Channel, path: str, messages: Iterator[bytes], peer: Peer
    ) -> None:
        self._peer = peer
        # No deadline: a stream lives as long as its rollouts take.
        self._call: Any = channel.stream_stream(path)(
            self._counted(messages), metadata=peer.metadata + tuple(context().items())
        )

    def __iter__(self) -> Iterator[bytes]:
        """The server's messages. Raises R2MError."""
        try:
            for payload in self._call:
                self._peer.traffic.count_received(len(payload))
                yield payload
        except grpc.RpcError as error:
            raise self._peer.failure(error) from error

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    def _counted(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            self._peer.traffic.count_sent(len(message))
            yield message


class AioDuplex:
    """An asyncio call."""

    def __init__(self, channel: grpc.aio.Channel, path: str, peer: Peer) -> None:
        self._peer = peer
        self._call: Any = channel.stream_stream(path)(
            metadata=peer.metadata + tuple(context().items())
        )

    async def write(self, payload: bytes) -> None:
        """Send a message. Raises R2MError."""
        try:
            await self._call.write(payload)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._failure(error) from error
        self._peer.traffic.count_sent(len(payload))

    async def done(self) -> None:
        """Close the sending side. Raises R2MError."""
        try:
            await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise await self._failure(error) from error

    async def read(self) -> bytes | None:
        """The server's next message; None at the end. Raises R2MError."""
        try:
            payload = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await self._peer.failure_later(error) from error
        if payload is grpc.aio.EOF:
            return None
        self._peer.traffic.count_received(len(payload))
        return payload

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    async def _failure(self, error: Exception) -> Exception:
        # A call that has ended refuses a message in its own words; how it ended is to be asked.
        if isinstance(error, grpc.aio.AioRpcError):
            return await self._peer.failure_later(error)
        found = grpc.aio.AioRpcError(
            await self._call.code(),
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            await self._call.details(),
        )
        return await self._peer.failure_later(found)
