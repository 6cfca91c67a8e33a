"""The blocking client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypeVar

from r2m_client import _calls, _split_talk
from r2m_client._errors import R2MError
from r2m_client._label_methods import LabelMethods
from r2m_client._score_futures import ScoreFutures
from r2m_client._settings import NO_HEADERS, Settings
from r2m_client._transport import open_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike
    from types import TracebackType

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
    from r2m_client._score_stream import ScoreStream
    from r2m_client._split_talk import Feedback, Talk
    from r2m_client._tls import CertFiles
    from r2m_client.split import Context

T = TypeVar("T")


class Client(LabelMethods, ScoreFutures, Settings):
    """Talks to an R2M server, over HTTP or gRPC. Threads may share one.

        with Client("grpc://127.0.0.1:50051") as client:
            scored = client.score(samples, run="tldr")
            client.align("tldr", step=1, groups=groups)

    Every method raises an `R2MError`: what the server refused (`ServerError` and its subclasses),
    or that it could not be asked. A call that fails with a transient error is retried until its
    timeout expires: a server that is stopped, starting, restarting or overloaded, a connection that
    broke, a gateway's 429, 502, 503 or 504. So a trainer survives a restart that is shorter than
    `timeout`; the logger `r2m_client` has a warning once a call waits, and the error in the end
    says how long and how often it was tried. A broken connection leaves open whether the call was
    carried out; it is retried all the same where doing it twice does no harm, and each method below
    says so.

    An address of this machine (127.0.0.1, localhost) is reached directly. For others the proxy
    variables hold (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`; for gRPC `grpc_proxy`,
    `https_proxy`, `http_proxy`, `no_proxy`, in lower case), and errors name the proxy.

    Args:
        url: `http://`, `https://` (which may have a path), `grpc://` or `grpcs://` (TLS).
        timeout: seconds for a whole call, with its retries and pauses. gRPC sends it to the
            server.
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

    _sleep = staticmethod(time.sleep)

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
        self._transport = open_transport(
            url, headers, self._traffic, api_key=api_key, ca=ca, cert=cert
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for scores in the background, and close the connections."""
        self._end_background()
        self._transport.close()

    def server(self) -> ServerInfo:
        """What the server holds: its backbone, fingerprint and limits."""
        return self._send(_calls.server())

    def create_run(
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
        """Create a run, or get it as it is if it exists with the same settings.

        Repeated after a broken connection: the second answer is the first one's run.

        Args:
            run: its name.
            policy_hidden_size: D_p, the width of the policy's hidden states; needed for feedback
                `policy`.
            hidden_state: whether they are taken after the policy's final norm or before it.
            last_token: whether the last token's state is among them.
            feedback: what the run attends to: the policy's states, the reward backbone's own, or
                nothing.
            truncation: what happens to a text that is too long: none (an error), or the side
                that is cut.
            empty_response: what an empty response to a prompt gets: a reward (score), or
                text_empty (error); None: what the server says for new runs, and what a run that
                exists was made with.
            method: the method's settings, such as `{"profile": "paper", "omega": {…}}`; the
                server has defaults for all (profile `guarded`), and refuses unknown keys.

        Raises:
            RunExists: with other settings.
            InvalidRequest: a setting is not one.
        """
        return self._send(
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

    def runs(self) -> list[RunInfo]:
        """All runs, oldest first."""
        return self._send(_calls.runs())

    def run(self, name: str) -> RunInfo:
        """A run as it stands. Raises NotFound."""
        return self._send(_calls.run(name))

    def update_run(
        self, name: str, method: Mapping[str, object], *, reason: str | None = None
    ) -> RunInfo:
        """Change settings that may change in a run's life; what is not given stays.

        Args:
            name: the run.
            method: the keys to change, such as `{"learning_rate": 1e-5}`.
            reason: kept in the audit trail.

        Raises:
            InvalidRequest: a key that may not change, or a value that is none.
        """
        return self._send(_calls.update_run(name, method, reason=reason))

    def changes(self, name: str) -> list[Change]:
        """A run's audit trail, oldest first. Raises NotFound."""
        return self._send(_calls.changes(name))

    def evaluate(
        self,
        run: str,
        pairs: Iterable[Pair],
        *,
        heads: Iterable[int | str] = ("live",),
        margins: bool = False,
    ) -> Evaluation:
        """Accuracy of one or more heads on preference pairs, all on the same pairs.

        Args:
            run: its name.
            pairs: iterated once; with hidden states where the run attends to the policy's.
            heads: numbers or aliases; the others are compared with the first.
            margins: answer each pair's margin of rewards, too.

        Raises:
            NotFound: no such run or head.
        """
        return self._send(
            _calls.evaluate(run, pairs, heads=heads, margins=margins, wire_dtype=self._wire_dtype)
        )

    def archive_run(self, name: str) -> RunInfo:
        """Make a run read-only, for good; doing it again is fine, so it is repeated.

        Raises:
            NotFound: no run has this name.
        """
        return self._send(_calls.archive_run(name))

    def score(
        self,
        samples: Iterable[Sample],
        *,
        run: str | None = None,
        head: int | str = "live",
        step: int | None = None,
        branch: str | None = None,
        feedback: Feedback = "streamed",
    ) -> ScoreResult:
        """Rewards of samples, in their order, all by one head; repeated at will, as it is pure.

        A sample that cannot be scored has an error in the result instead of a reward; it does not
        raise. See `ScoreResult.raise_for_errors`.

        Args:
            samples: iterated once.
            run: whose head; None: the frozen reward model's own rewards.
            head: a number, `live`, or another alias of the run.
            step: instead of a head: the one that scores this step of the branch.
            branch: of the step; None: the run's current one.
            feedback: `split` keeps the hidden states here (r2m_client.split); or whoever answers
                for states that are spread over processes.

        Raises:
            NotFound: no such run or head.
            ValueError: hidden states that are no matrix of numbers; nothing is sent then.
        """
        if feedback != "streamed":
            return self._talk(
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
        return self._send(
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
    ) -> ScoreStream:
        """A stream for rollouts as they finish: see `ScoreStream`. Over gRPC only.

        Its head is resolved once, when it opens; an align meanwhile changes nothing in it.

        Args:
            run: whose head; None: the frozen reward model's own rewards.
            head: a number, `live`, or another alias of the run.
            step: instead of a head: the one that scores this step of the branch.
            branch: of the step; None: the run's current one.

        Raises:
            ValueError: the client speaks HTTP: use a grpc:// URL, or `score` sample by sample.
            NotFound: when it opens: no such run or head.
        """
        call = _calls.score(
            (), run=run, head=head, step=step, branch=branch, wire_dtype=self._wire_dtype
        )
        return self._transport.score_stream(call, self._opening(self._sleep))

    def align(
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
        """One update of the run's head, after an update of the policy.

        The server answers (run, branch, step) once and repeats that answer to the same content,
        so the call is repeated after a broken connection; a trainer that died may send it again.

        Args:
            run: its name.
            step: the trainer's clock on this branch: 1, 2, 3, ...
            groups: iterated once; hidden states are those of the updated policy.
            branch: None: the run's current one.
            anchors: hidden states of the anchor pairs, where they are due (`anchors_step`).
            progress: called with an `AlignProgress` while the server works: groups done, and those
                left out with their errors. Over gRPC only; what it raises cancels the call.
            feedback: as for `score`; the server may ask about its candidate, and is answered.
            context: of the score of these samples; without one the server asks for c and j.

        Raises:
            StepConflict: the step was answered for other content.
            StepOutOfOrder: not the branch's next step.
            ValueError: hidden states that are no matrix of numbers; nothing is sent then.
        """
        if feedback != "streamed":
            return self._talk(
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
        return self._send(
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

    def heads(self, run: str) -> list[HeadInfo]:
        """All versions of a run, by number, rejected ones too. Raises NotFound."""
        return self._send(_calls.heads(run))

    def head(self, run: str, head: int | str) -> HeadInfo:
        """One version, by number or alias. Raises NotFound."""
        return self._send(_calls.head(run, head))

    def head_weights(self, run: str, head: int | str = "live") -> bytes:
        """A version's weights and settings: a safetensors file. Raises NotFound."""
        return self._send(_calls.head_weights(run, head))

    def set_alias(self, run: str, alias: str, head: int, expect: int | None = None) -> AliasInfo:
        """Point an alias of yours, or `reference`, at a head.

        Without `expect` it is repeated after a broken connection. With it, it is not: the repeat
        could find the alias moved by its own first attempt, and AliasMoved would be a lie. After a
        `ConnectError` or `DeadlineError`, look where the alias points.

        Args:
            run: its name.
            alias: it may be new.
            head: the number of a version.
            expect: where the alias must point now; otherwise nothing is moved.

        Raises:
            AliasMoved: it points elsewhere.
            NotFound: no such run or head.
        """
        return self._send(_calls.set_alias(run, alias, head, expect=expect))

    def rollback(
        self,
        run: str,
        *,
        to: int | None = None,
        to_step: int | None = None,
        branch: str | None = None,
        reason: str | None = None,
    ) -> RunInfo:
        """Go back to a head, or to where a step left off, on a new branch.

        Each call opens a branch, so it is not repeated after a broken connection: after a
        `ConnectError` or `DeadlineError`, see in `run(...).branches` whether it is there.

        Args:
            run: its name.
            to: the number of a head; either this or `to_step`.
            to_step: a step of `branch`.
            branch: None: the run's current one.
            reason: kept with the new branch.

        Raises:
            InvalidRequest: neither or both, or a head that never was live.
            NotFound: no such run, head or branch.
        """
        return self._send(
            _calls.rollback(run, to=to, to_step=to_step, branch=branch, reason=reason)
        )

    def _send(self, call: _calls.Call[T]) -> T:
        attempt = self._transport.prepare(call)
        attempts = self._attempts(repeatable=call.repeatable)
        while True:
            try:
                result = call.read(attempt(attempts.remaining()))
            except R2MError as error:
                pause = attempts.pause_after(error)
            else:
                attempts.answered()
                return result
            self._sleep(pause)

    def _talk(self, talk: Talk[T]) -> T:
        """Calls that follow from each other's answers."""
        return _split_talk.drive(talk, self._send)
