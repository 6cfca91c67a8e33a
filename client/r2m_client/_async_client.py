"""The client for asyncio: `Client`, awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, TypeVar

from r2m_client import _calls, _split_talk
from r2m_client._async_label_methods import AsyncLabelMethods
from r2m_client._errors import R2MError, ServerError
from r2m_client._settings import NO_HEADERS, Settings
from r2m_client._transport import open_async_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike
    from types import TracebackType

    from r2m_client._async_score_stream import AsyncScoreStream
    from r2m_client._results import (
        AliasInfo,
        AlignProgress,
        AlignResult,
        Change,
        Evaluation,
        HeadInfo,
        RunInfo,
        ScoreResult,
        ServerInfo,
    )
    from r2m_client._retry import Retry
    from r2m_client._samples import AnchorStates, Convention, Group, Pair, Sample, WireDtype
    from r2m_client._split_talk import Feedback, Talk
    from r2m_client._tls import CertFiles
    from r2m_client.split import Context

T = TypeVar("T")


class AsyncClient(AsyncLabelMethods, Settings):
    """Talks to an R2M server, over HTTP or gRPC, from one event loop.

    Methods, arguments, errors, retries and proxies are those of `Client`; see there. Hidden states
    are converted in the loop's thread, before the first await.

    Args:
        url: `http://`, `https://` (which may have a path), `grpc://` or `grpcs://` (TLS).
        timeout: seconds for a whole call, with its retries and pauses.
        retries: how many times a call is retried at most, or a `Retry`, which also sets the pauses;
            0 turns retries off; None: as often as `timeout` allows, with pauses of 2 seconds at
            most.
        wire_dtype: what float32 and wider hidden states are sent as; 16-bit ones go as they are
            unless it is int8, whose scales are then taken from each sample (`ChannelScales`).
        headers: sent with every call (gRPC: as metadata).
        api_key: goes with every call, in the header `Authorization`; default: R2M_API_KEY.
        ca: file of the CA that the server's certificate must be of; default: R2M_CA, else those
            that are trusted on this machine.
        cert: this client's certificate, for servers that ask for one: a file with its private key,
            or (certificate, key); default: R2M_CERT and R2M_CERT_KEY.

    Raises:
        ValueError: another kind of URL, dtype or timeout, or files that cannot be used.
    """

    _sleep = staticmethod(asyncio.sleep)

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        retries: int | Retry | None = None,
        wire_dtype: WireDtype = "bfloat16",
        headers: Mapping[str, str] = NO_HEADERS,
        api_key: str | None = None,
        ca: str | PathLike[str] | None = None,
        cert: CertFiles | None = None,
    ) -> None:
        super().__init__(url, timeout, retries, wire_dtype)
        self._transport = open_async_transport(
            url, headers, self._traffic, api_key=api_key, ca=ca, cert=cert
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def server(self) -> ServerInfo:
        """See `Client.server`."""
        return await self._send(_calls.server())

    async def create_run(
        self,
        run: str,
        *,
        policy_hidden_size: int | None = None,
        hidden_state: Convention = "post_norm",
        last_token: bool = True,
        feedback: Literal["policy", "backbone", "none"] = "policy",
        method: Mapping[str, object] | None = None,
        truncation: Literal["none", "left", "right"] = "none",
        empty_response: Literal["score", "error"] | None = None,
    ) -> RunInfo:
        """See `Client.create_run`."""
        return await self._send(
            _calls.create_run(
                run,
                policy_hidden_size=policy_hidden_size,
                hidden_state=hidden_state,
                last_token=last_token,
                feedback=feedback,
                method=method,
                truncation=truncation,
                empty_response=empty_response,
            )
        )

    async def runs(self) -> list[RunInfo]:
        """See `Client.runs`."""
        return await self._send(_calls.runs())

    async def run(self, name: str) -> RunInfo:
        """See `Client.run`."""
        return await self._send(_calls.run(name))

    async def update_run(
        self, name: str, method: Mapping[str, object], *, reason: str | None = None
    ) -> RunInfo:
        """See `Client.update_run`."""
        return await self._send(_calls.update_run(name, method, reason=reason))

    async def changes(self, name: str) -> list[Change]:
        """See `Client.changes`."""
        return await self._send(_calls.changes(name))

    async def evaluate(
        self,
        run: str,
        pairs: Iterable[Pair],
        *,
        heads: Iterable[int | str] = ("live",),
        margins: bool = False,
    ) -> Evaluation:
        """See `Client.evaluate`."""
        return await self._send(
            _calls.evaluate(run, pairs, heads=heads, margins=margins, wire_dtype=self._wire_dtype)
        )

    async def archive_run(self, name: str) -> RunInfo:
        """See `Client.archive_run`."""
        return await self._send(_calls.archive_run(name))

    async def score(
        self,
        samples: Iterable[Sample],
        *,
        run: str | None = None,
        head: int | str = "live",
        step: int | None = None,
        branch: str | None = None,
        feedback: Feedback = "streamed",
    ) -> ScoreResult:
        """See `Client.score`."""
        if feedback != "streamed":
            return await self._talk(
                _split_talk.score(
                    samples,
                    feedback,
                    run=run,
                    head=head,
                    step=step,
                    branch=branch,
                    wire_dtype=self._wire_dtype,
                )
            )
        return await self._send(
            _calls.score(
                samples, run=run, head=head, step=step, branch=branch, wire_dtype=self._wire_dtype
            )
        )

    def score_stream(
        self,
        *,
        run: str | None = None,
        head: int | str = "live",
        step: int | None = None,
        branch: str | None = None,
    ) -> AsyncScoreStream:
        """See `Client.score_stream`; not awaited: `async with client.score_stream(...)`."""
        call = _calls.score(
            (), run=run, head=head, step=step, branch=branch, wire_dtype=self._wire_dtype
        )
        return self._transport.score_stream(call, self._opening(self._sleep))

    async def align(
        self,
        run: str,
        *,
        step: int,
        groups: Iterable[Group],
        branch: str | None = None,
        anchors: Iterable[AnchorStates] = (),
        progress: Callable[[AlignProgress], object] | None = None,
        feedback: Feedback = "streamed",
        context: Context | None = None,
    ) -> AlignResult:
        """See `Client.align`; `progress` is a plain function, called in the event loop."""
        if feedback != "streamed":
            return await self._talk(
                _split_talk.align(
                    run,
                    feedback,
                    context,
                    step=step,
                    groups=groups,
                    branch=branch,
                    anchors=anchors,
                    progress=progress,
                    wire_dtype=self._wire_dtype,
                )
            )
        return await self._send(
            _calls.align(
                run,
                step=step,
                groups=groups,
                branch=branch,
                anchors=anchors,
                progress=progress,
                wire_dtype=self._wire_dtype,
            )
        )

    async def heads(self, run: str) -> list[HeadInfo]:
        """See `Client.heads`."""
        return await self._send(_calls.heads(run))

    async def head(self, run: str, head: int | str) -> HeadInfo:
        """See `Client.head`."""
        return await self._send(_calls.head(run, head))

    async def head_weights(self, run: str, head: int | str = "live") -> bytes:
        """See `Client.head_weights`."""
        return await self._send(_calls.head_weights(run, head))

    async def set_alias(
        self, run: str, alias: str, head: int, expect: int | None = None
    ) -> AliasInfo:
        """See `Client.set_alias`."""
        return await self._send(_calls.set_alias(run, alias, head, expect=expect))

    async def rollback(
        self,
        run: str,
        *,
        to: int | None = None,
        to_step: int | None = None,
        branch: str | None = None,
        reason: str | None = None,
    ) -> RunInfo:
        """See `Client.rollback`."""
        return await self._send(
            _calls.rollback(run, to=to, to_step=to_step, branch=branch, reason=reason)
        )

    async def _send(self, call: _calls.Call[T]) -> T:
        attempt = self._transport.prepare(call)
        attempts = self._attempts(repeatable=call.repeatable)
        while True:
            try:
                result = call.read(await attempt(attempts.remaining()))
            except R2MError as error:
                pause = attempts.pause_after(error)
            else:
                attempts.answered()
                return result
            await self._sleep(pause)

    async def _talk(self, talk: Talk[T]) -> T:
        """Calls that follow from each other's answers."""
        try:
            call = next(talk)
            while True:
                try:
                    result = await self._send(call)
                except ServerError as error:
                    call = talk.throw(error)
                else:
                    call = talk.send(result)
        except StopIteration as done:
            return done.value
