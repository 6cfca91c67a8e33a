"""verl: rewards from an R2M server, as a custom reward function and as a reward manager.

    custom_reward_function.path=pkg://r2m_client.integrations.verl
    custom_reward_function.name=compute_score
    +custom_reward_function.reward_kwargs.url=http://127.0.0.1:8080

Both are asynchronous, ask for one sample a call as verl does, and leave batching to the server.
What fails is repeated while its time lasts and raises in the end: never is a failure a reward.
verl's own modules are named in docs/trainers.md, with the versions that were read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from r2m_client._samples import Sample
from r2m_client.integrations._loops import Address, LoopClients

if TYPE_CHECKING:
    from r2m_client._results import ScoreResult

    _Base = object
else:
    try:  # its class puts a batch's rewards together; without verl there is no batch either
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase as _Base
    except ImportError:
        _Base = object

PROMPT_KEYS = ("prompt", "question")
"""Of `extra_info`: where a data set keeps what was asked, unless `prompt_key` says where."""

clients = LoopClients()
"""This process's; `await clients.close()` closes those of the running loop."""


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    run: str | None = None,
    timeout: float | None = None,
    prompt_key: str | None = None,
    format: Literal["chat", "raw"] = "chat",
    **others: object,
) -> dict[str, float]:
    """verl's custom reward function: the reward of a response to the prompt in `extra_info`.

    verl does not tell such a function the prompt: the data set must have put it, as a text or as
    turns, into `extra_info`. `RewardManager` needs no such help.

    Args:
        data_source, ground_truth: verl's; not looked at.
        solution_str: the response.
        extra_info: of the data set.
        url, run, timeout: see `Address.of`; from `reward_kwargs`, else from the environment.
        prompt_key: where in `extra_info` the prompt is.
        format: of a prompt that is a text: `chat`, through the reward model's template, or `raw`.
        others: more that verl passes on; not looked at.

    Returns:
        `score`, and `vanilla_reward`, `tokens`, and of a run `head` and `omega`, for verl's logs.

    Raises:
        ValueError: no URL, or no prompt.
        R2MError: the server could not be asked, or gave no reward.
    """
    address = Address.of(url, run, timeout)
    sample = _sample(_prompt(extra_info or {}, prompt_key), solution_str, format)
    reward, logs = await _reward(address, sample)
    return {"score": reward, **logs}


class RewardManager(_Base):
    """verl's reward manager: the reward of a rollout's last turn, with the prompt verl kept.

        reward.reward_manager.source=importlib
        reward.reward_manager.module.path=pkg://r2m_client.integrations.verl
        reward.reward_manager.name=RewardManager

    The server is named by R2M_URL and R2M_RUN, which have to reach Ray's workers.

    Args:
        config: verl's; not looked at.
        tokenizer: the policy's: its responses are decoded.
        others: the reward function and more that verl passes on; not looked at.
    """

    # Not its base's: its arguments differ from version to version, and nothing of it is used.
    def __init__(self, config: Any = None, tokenizer: Any = None, *_: Any, **others: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.address = Address.of()

    async def run_single(self, data: Any) -> dict[str, Any]:
        """One rollout's reward; of several sequences the last one's.

        Args:
            data: verl's DataProto: `responses` and `attention_mask` in `batch`, `raw_prompt` (the
                turns) and, from verl 0.9 on, `response_len` in `non_tensor_batch`.

        Returns:
            `reward_score` and `reward_extra_info`, with the same keys each time.

        Raises:
            ValueError: the batch has no `raw_prompt` (`data.return_raw_chat=True` keeps it).
            R2MError: the server could not be asked, or gave no reward.
        """
        item = data[len(data) - 1]
        prompt = item.non_tensor_batch.get("raw_prompt")
        if prompt is None:
            raise ValueError(
                "the batch has no raw_prompt: set data.return_raw_chat=True, so that the reward "
                "model reads the conversation through its own template"
            )
        # Of several outputs verl 0.9 pads prompts and responses together, and tells the lengths.
        length = item.non_tensor_batch.get("response_len")
        ids = response_ids(item.batch["responses"], item.batch["attention_mask"], length)
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(None, self._decoded, ids)
        reward, logs = await _reward(self.address, _sample(list(prompt), response, "chat"))
        return {"reward_score": reward, "reward_extra_info": logs}

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def response_ids(responses: Any, attention_mask: Any, length: int | None = None) -> list[int]:
    """The tokens of a response without its padding, which is on the right.

    Args:
        responses: ids, [R].
        attention_mask: of prompt and response, [P + R]: read where the length is not known.
        length: how many of them are real.
    """
    if length is None:
        length = sum(int(one) for one in attention_mask[len(attention_mask) - len(responses) :])
    return [int(one) for one in responses[: int(length)]]


async def _reward(address: Address, sample: Sample) -> tuple[float, dict[str, float]]:
    client = await clients.get(address)
    scored = (await client.score([sample], run=address.run)).raise_for_errors()
    (reward,) = scored.rewards
    assert reward is not None, "raise_for_errors has raised where there is none"
    return reward, _logs(scored)


def _logs(scored: ScoreResult) -> dict[str, float]:
    """Numbers only: verl makes an array of each key, from the keys of the first sample."""
    (score,) = scored.scores
    named = {
        "vanilla_reward": score.vanilla_reward,
        "tokens": score.tokens,
        "head": scored.head,
        "omega": scored.omega,
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _prompt(extra_info: Mapping[str, Any], key: str | None) -> Any:
    for name in PROMPT_KEYS if key is None else (key,):
        if extra_info.get(name) is not None:
            return extra_info[name]
    wanted = " or ".join(repr(one) for one in (PROMPT_KEYS if key is None else (key,)))
    raise ValueError(
        f"extra_info has no {wanted}: what was asked has to be there (name it by "
        "reward_kwargs.prompt_key), or use r2m_client.integrations.verl.RewardManager"
    )


def _sample(prompt: Any, response: str, format: Literal["chat", "raw"]) -> Sample:
    """A sample named by its text: whoever labels samples meets it again under the same name."""
    if isinstance(prompt, str):
        name, group = _hash([prompt, response, format]), _hash(prompt)
        return Sample(name, prompt, response, format=format, group=group)
    turns = [dict(one) for one in cast("Sequence[Mapping[str, Any]]", prompt)]
    messages = [*turns, {"role": "assistant", "content": response}]
    return Sample(_hash(messages), messages=messages, group=_hash(turns))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
