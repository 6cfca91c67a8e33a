"""OpenRLHF: a reward function, and subclasses that send the policy's hidden states and align.

`--reward.remote_url` may name a Python file with a `reward_func`; `reward_func` here is one. It
asks as OpenRLHF itself asks a URL, and waits for a server that restarts, which OpenRLHF does for
5 seconds alone. What has no reward in the end stops the step, and says why.

The subclasses leave the rollouts' own rewards as they are (dynamic filtering needs them); before
advantages are computed the run's rewards, which the policy's states went into, take their place.
docs/trainers.md has the lines that put these classes in.

This follows OpenRLHF's sources (3c3be62). The subclasses were tested with stand-ins for its objects
only: they have not run on OpenRLHF with its GPUs. One sequence lies on one GPU: ring attention and
tensor parallelism are refused.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from r2m_client import Client
from r2m_client._calls import Call
from r2m_client.integrations._loops import Address
from r2m_client.integrations._ranks import ranks_here
from r2m_client.integrations._rollouts import (
    Record,
    RunFeedback,
    captured,
    real_tokens,
    rollouts_of,
)

if TYPE_CHECKING:
    _Actor = Any
else:
    _Actor = object


class NoRewardError(BaseException):
    """A rollout has no reward, so the step can have none.

    OpenRLHF takes each `Exception` of a reward function as a rollout with the reward None, and
    ends a little later in an error about None. This one passes: Ray hands it to the trainer.
    """


class RewardClient(Client):
    """A client that asks as OpenRLHF does."""

    def get_reward(self, run: str | None, body: Mapping[str, object]) -> dict[str, Any]:
        """The answer of `/get_reward`, or of the run's; repeated at will.

        Raises:
            R2MError: the server could not be asked, or one sample has no reward.
        """
        place = "" if run is None else f"/runs/{quote(run, safe='')}"
        return self._send(Call("GetReward", "POST", f"{place}/get_reward", dict, body=body))


@functools.cache
def _rewards_at(address: Address) -> RewardClient:
    if address.url.startswith("grpc"):
        raise ValueError(f"R2M_URL is {address.url}: give the server's http:// address")
    return RewardClient(address.url, timeout=address.timeout)


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **more: object
) -> dict[str, Any]:
    """OpenRLHF's reward function, for the server and run that R2M_URL and R2M_RUN name.

    It asks until R2M_TIMEOUT (300 seconds) is over; the URL is one of HTTP. Called in threads.

    Args:
        queries: prompt and response, as texts.
        prompts, labels: one a query.
        more: that OpenRLHF may pass on; not looked at.

    Returns:
        `rewards` and `scores`, one a query, and `extra_logs`, as the server answers OpenRLHF.

    Raises:
        NoRewardError: one of them has none; it says why.
    """
    try:
        address = Address.of()
        body = {"query": list(queries), "prompts": list(prompts), "labels": list(labels)}
        return _rewards_at(address).get_reward(address.run, body)
    except Exception as error:
        raise NoRewardError(f"no reward for {len(queries)} rollouts: {error}") from error


def feedback_here() -> RunFeedback:
    """This process's: R2M_URL names the server, and R2M_FEEDBACK_RUN, or R2M_RUN, the run.

    Where texts alone are scored beside it (`reward_func`, verl's reward manager), R2M_RUN is
    theirs: a run with feedback policy gives no reward to a text alone.

    Raises:
        ValueError: one of them is not set.
    """
    address = Address.of()
    run = os.environ.get("R2M_FEEDBACK_RUN") or address.run
    if run is None:
        raise ValueError("which run? Set R2M_FEEDBACK_RUN to one with feedback policy")
    client = Client(address.url, timeout=address.timeout)
    return RunFeedback(client, run, ranks_here())


class FeedbackActor(_Actor):
    """In front of OpenRLHF's PolicyModelActor: `class Mine(FeedbackActor, PolicyModelActor)`.

    Attributes:
        r2m_record: records the final norm's output of `self.actor.model`.
        r2m_open: opens this rank's feedback, once; where a process group is, all ranks have to be
            in it by then.
    """

    r2m_record: Record = staticmethod(captured)
    r2m_open = staticmethod(feedback_here)
    _r2m: RunFeedback | None = None

    def forward(
        self, sequences: Any, action_mask: Any = None, attention_mask: Any = None, **more: Any
    ) -> Any:
        """OpenRLHF's pass without gradients over finished rollouts, recorded on the way.

        Args:
            sequences, attention_mask: [B, T]; prompt and response, padded.
            action_mask: [B, A].
            more: as the method below this one takes it.
        """
        with self.r2m_record(self.actor.model) as recording:
            result = super().forward(sequences, action_mask, attention_mask, **more)
        self._feedback().keep(recording)
        return result

    def r2m_score(self, sequences: Any, attention_mask: Any, prompts: Sequence[str]) -> list[float]:
        """Rewards of a batch that went through `forward` on this rank, in order.

        Raises:
            R2MError: see `RunFeedback.score`.
        """
        return self._feedback().score(self._rollouts(sequences, attention_mask, prompts))

    def fit(self, kl_ctl: float = 0) -> dict[str, Any]:
        """The policy's update, then one more pass over what it was trained on, then align."""
        # The buffer is cleared at the end of the update: its list, not what was in it.
        items = list(self.trainer.replay_buffer.items)
        status = super().fit(kl_ctl)
        return {**status, **self.r2m_align(items)}

    def r2m_align(self, items: Sequence[Any]) -> dict[str, float]:
        """Align with every rank's rollouts, under states of the policy as it is now.

        Args:
            items: of the replay buffer, one sample each.

        Raises:
            R2MError, RuntimeError: see `RunFeedback.align`.
        """
        rollouts = [
            one
            for item in items
            for one in self._rollouts([item.sequences], [item.attention_mask], item.prompts)
        ]
        feedback, batches = self._feedback(), list(self._batches(items))
        # Where weights are sharded every pass is one of all ranks together.
        passes = feedback.most(len(batches))
        for batch in [*batches, *batches[-1:] * (passes - len(batches))]:
            self.forward(batch.sequences, batch.action_mask, batch.attention_mask)
        return feedback.align(rollouts)

    def _batches(self, items: Sequence[Any]) -> Iterator[Any]:
        size = self.trainer.micro_train_batch_size
        for start in range(0, len(items), size):
            yield self.r2m_batch(items[start : start + size])

    def r2m_batch(self, items: Sequence[Any]) -> Any:
        """Items as one padded batch, as OpenRLHF makes it."""
        experience: Any = importlib.import_module("openrlhf.trainer.ppo_utils.experience")
        return experience.make_experience_batch(list(items))

    def _rollouts(self, sequences: Any, attention_mask: Any, prompts: Sequence[str]) -> list[Any]:
        return rollouts_of(real_tokens(sequences, attention_mask), prompts, self._decoded)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def _feedback(self) -> RunFeedback:
        if self._r2m is None:
            args = self.strategy.args
            if args.train.async_enable:
                raise ValueError(
                    "with --train.async_enable rollouts come from an older policy: leave it out"
                )
            if (args.ds.ring_attn_size, args.ds.tensor_parallel_size) != (1, 1):
                raise ValueError(
                    "hidden states are recorded where one GPU has the whole sequence: set "
                    "--ds.ring_attn_size 1 and --ds.tensor_parallel_size 1"
                )
            self._r2m = self.r2m_open()
        return self._r2m


class FeedbackExperienceMaker(_Actor):
    """In front of OpenRLHF's RemoteExperienceMaker: the run's rewards replace the rollouts'."""

    def make_experience(self, samples_list: list[Any]) -> list[Any]:
        """Passes as ever, then the rewards of what was recorded in them.

        Each batch goes to the rank that it went to before: the same lists are dealt out alike.

        Raises:
            R2MError: through Ray, where one sample has no reward: a step without it is none.
        """
        samples_list = super().make_experience(samples_list)
        refs = self.actor_model_group.async_run_method_batch(
            method_name="r2m_score",
            sequences=[one.sequences for one in samples_list],
            attention_mask=[one.attention_mask for one in samples_list],
            prompts=[one.prompts for one in samples_list],
        )
        for samples, rewards in zip(samples_list, self._flatten_results(refs, 1), strict=True):
            # Of the shape and on the device of what they replace.
            old = samples.rewards
            samples.rewards = old.float().new_tensor(rewards).reshape(old.shape)
            samples.info["reward"] = samples.rewards
        return samples_list


def policy_actor(record: Record = captured) -> Any:
    """What takes the place of `openrlhf.trainer.ray.ppo_actor.PolicyModelActor`.

    Args:
        record: of hidden states; workers import it by its name.
    """
    ray: Any = importlib.import_module("ray")
    module: Any = importlib.import_module("openrlhf.trainer.ray.ppo_actor")
    base = _plain(module.PolicyModelActor)
    made = type(
        "FeedbackPolicyModelActor", (FeedbackActor, base), {"r2m_record": staticmethod(record)}
    )
    return ray.remote(num_gpus=1)(made)


def ppo_trainer() -> Any:
    """What takes the place of `openrlhf.trainer.ppo_trainer.PPOTrainer`."""
    ray: Any = importlib.import_module("ray")
    module: Any = importlib.import_module("openrlhf.trainer.ppo_trainer")
    maker = type("FeedbackMaker", (FeedbackExperienceMaker, module.RemoteExperienceMaker), {})

    class FeedbackPPOTrainer(_plain(module.PPOTrainer)):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.experience_maker = maker(
                self.actor_model_group,
                self.critic_model_group,
                self.reward_model_group,
                self.reference_model_group,
                self.kl_ctl,
                self.strategy,
                self.tokenizer,
            )

    return ray.remote(FeedbackPPOTrainer)


def _plain(decorated: Any) -> Any:
    """The class below ray.remote, which hands out no class to derive from."""
    return decorated.__ray_metadata__.modified_class
