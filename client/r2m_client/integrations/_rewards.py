"""A plain reward function, for trainers that call one: no state, no feedback, no torch."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r2m_client._client import Client
from r2m_client._errors import R2MError
from r2m_client._transport import parse_url
from r2m_client.integrations._texts import Turns, as_sample

Unscorable = Literal["raise", "none"]


class NoReward(R2MError):  # noqa: N818 - it says what happened, as _errors.py has it
    """A call of a reward function has no rewards; `__cause__` says why.

    It is no TimeoutError, whatever the cause: AReaL takes those for its own, and answers 0.
    """


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """`f(prompts, completions, **columns)`: rewards of rollouts, in their order.

    It can be pickled. Each process opens a client of its own at its first call.

    Attributes:
        url, run, unscorable, text, timeout: see `reward_function`.
    """

    url: str
    run: str | None = None
    unscorable: Unscorable = "raise"
    text: Literal["raw", "chat"] = "raw"
    timeout: float = 60.0

    __name__ = "r2m"  # TRL names its metrics after the reward function

    def __call__(self, prompts: Any, completions: Any, *ids: object, **columns: object) -> Any:
        """Rewards of rollouts; of one, where `completions` is a string.

        Args:
            prompts: a list of texts, or of lists of turns; of one rollout the text or the turns.
            completions: a list of as many texts, or lists of turns; or one text.
            ids, columns: what else a trainer passes; ignored.

        Returns:
            A list of floats, with None where `unscorable` is "none"; of one rollout its element.

        Raises:
            NoReward: the server gave no answer, or a rollout has no reward and `unscorable` is
                "raise".
            ValueError: as many prompts as completions are needed, and texts.
        """
        if isinstance(completions, str):
            return self._rewards([prompts], [completions])[0]
        return self._rewards(prompts, completions)

    def _rewards(
        self, prompts: Sequence[str | Turns], completions: Sequence[str | Turns]
    ) -> list[float | None]:
        names: list[str] = []
        samples: dict[str, Any] = {}
        for prompt, completion in zip(prompts, completions, strict=True):
            # A sample is named by its text: a label for it finds it again under that name, and the
            # same rollout twice is scored once.
            name = _hash([prompt, completion, self.text])
            names.append(name)
            if name not in samples:
                samples[name] = as_sample(
                    name, _hash(prompt), prompt, completion, format=self.text, tools=None
                )
        if not samples:
            return []
        try:
            scored = _client(self.url, self.timeout).score(samples.values(), run=self.run)
        except R2MError as error:
            where = parse_url(self.url).shown
            raise NoReward(f"no rewards from {where}: {error}") from error
        found = {score.id: score for score in scored.scores}
        errors = [(place, found[name].error) for place, name in enumerate(names)]
        failed = [(place, error) for place, error in errors if error is not None]
        if failed and self.unscorable == "raise":
            place, error = failed[0]
            raise NoReward(
                f"{len(failed)} of {len(names)} rollouts have no reward; rollout {place}: {error}"
            ) from error
        rewards = dict(zip(found, scored.rewards, strict=True))
        return [rewards[name] for name in names]


def reward_function(
    url: str,
    run: str | None = None,
    *,
    unscorable: Unscorable = "raise",
    text: Literal["raw", "chat"] = "raw",
    timeout: float = 60.0,
) -> RewardFunction:
    """A reward function for a trainer that calls one with texts.

        from r2m_client.integrations import reward_function

        reward = reward_function("http://127.0.0.1:8080")
        reward(["2 + 2? "], ["4."])  # [0.7]

    Args:
        url: of the server; an API key and a CA come from R2M_API_KEY and R2M_CA.
        run: whose live head gives the rewards; it has feedback `backbone` or `none`, since texts
            are all that travels. None: the frozen reward model.
        unscorable: of a rollout that cannot be scored (too long, say): "raise" fails the call,
            "none" answers None, for TRL's GRPOTrainer and RLOOTrainer, which leave it out.
            Elsewhere a None becomes the reward 0.
        text: how prompts and completions that are strings are joined: `raw`, one behind the other,
            or `chat`, by the reward model's chat template. Lists of turns always are chat.
        timeout: seconds for one call; a server that does not answer is waited for until then.

    Raises:
        ValueError: another kind of URL, or another word.
    """
    parse_url(url)
    if unscorable not in ("raise", "none"):
        raise ValueError(f"unscorable {unscorable!r} is neither raise nor none")
    if text not in ("raw", "chat"):
        raise ValueError(f"text {text!r} is neither raw nor chat")
    return RewardFunction(url, run, unscorable, text, timeout)


_clients: dict[tuple[int, str, float], Client] = {}


def _client(url: str, timeout: float) -> Client:
    """This process's: after a fork the parent's connections are not used."""
    key = (os.getpid(), url, timeout)
    if key not in _clients:
        _clients[key] = Client(url, timeout=timeout)
        atexit.register(_clients[key].close)
    return _clients[key]


def _hash(value: object) -> str:
    def plain(turn: object) -> object:
        return dict(turn) if isinstance(turn, Mapping) else str(turn)

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()
