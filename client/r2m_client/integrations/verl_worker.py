"""verl: subclasses that score with the policy's hidden states and call align after its update.

verl computes rewards before it goes over the rollouts with the policy. The pass that brings the old
log probabilities is the first one on finished rollouts; the worker records it, asks for the run's
rewards, and returns them beside the log probabilities as `rm_scores`. So they take the place of
those that the rollouts came with (vanilla ones, from `r2m_client.integrations.verl`, or others)
before advantages are computed. The update of the policy ends in one more pass and in align, before
the weights go to the rollout.

This fits the engine workers and the V1 trainer of verl 0.9, and importing it checks that. Ran with
the real worker of verl 0.9.1 and its FSDP2 engine on CPUs, not with its GPUs or rollout servers.
docs/trainers.md has the lines that put these classes in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from r2m_client.integrations._rollouts import Record, Rollout, RunFeedback, captured, rollouts_of
from r2m_client.integrations.openrlhf import feedback_here

RELEASE = "0.9"
"""Of verl: whose names are overridden here."""

NAMES = {
    "verl.workers.engine_workers": (
        "ActorRolloutRefWorker.compute_log_prob",
        "ActorRolloutRefWorker.update_actor",
        "TrainingWorker.infer_batch",
    ),
    "verl.trainer.ppo.v1.trainer_sync": ("PPOTrainerSync._init_resource_pool_mgr",),
    "verl.single_controller.base.decorator": ("register", "MAGIC_ATTR"),
    "verl.utils.tensordict_utils": ("assign_non_tensor", "get"),
}
"""By module: what is overridden, and what is used."""

PADDING = "pad"
"""What the uid of a no-op sample begins with; verl fills batches up with such."""


def fitting() -> dict[str, Any]:
    """verl's modules of `NAMES`.

    Raises:
        ImportError: no verl, or not one that these classes fit.
    """
    fits = f"{__name__} fits verl {RELEASE}.x with its V1 trainer"
    mend = f"pip install 'verl[verl-core]>={RELEASE},<0.{int(RELEASE.partition('.')[2]) + 1}'"
    try:
        version = str(importlib.import_module("verl").__version__)
    except ImportError as error:
        raise ImportError(f"{fits}, and there is none ({error}): {mend}") from error
    modules: dict[str, Any] = {}
    missing: list[str] = []
    for module, names in NAMES.items():
        try:
            modules[module] = importlib.import_module(module)
        except ImportError as error:
            missing.append(f"{module} ({error})")
            continue
        missing += [f"{module}.{name}" for name in names if not _has(modules[module], name)]
    if missing:
        raise ImportError(f"{fits}: {', '.join(missing)} not found in verl {version}; {mend}")
    if not version.startswith(f"{RELEASE}."):
        raise ImportError(f"{fits}, and this is verl {version}; {mend}")
    return modules


def _has(module: Any, name: str) -> bool:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


_workers, _trainers, _decorators, _tensordicts = fitting().values()
_theirs: Any = _workers.ActorRolloutRefWorker
if TYPE_CHECKING:
    _Worker = Any
    _Trainer = Any
else:
    _Worker, _Trainer = _theirs, _trainers.PPOTrainerSync


def _dealt_out_as(theirs: Any) -> Callable[[Any], Any]:
    """How verl deals a method's batch out to workers is noted on the method it replaces."""
    noted: dict[str, Any] = getattr(theirs, _decorators.MAGIC_ATTR)
    return _decorators.register(**noted)


class FeedbackWorker(_Worker):
    """verl's worker of actor and rollout.

    Attributes:
        r2m_record: records the final norm's output of the engine's module.
        r2m_open: opens this rank's feedback, once.
    """

    r2m_record: Record = staticmethod(captured)
    r2m_open = staticmethod(feedback_here)
    _r2m: RunFeedback | None = None

    @_dealt_out_as(_theirs.compute_log_prob)
    def compute_log_prob(self, data: Any) -> Any:
        """verl's pass over finished rollouts, recorded on the way; its output has rewards besides.

        Args:
            data: a TensorDict of B rollouts: `prompts`, `responses`, `input_ids` (jagged token
                ids), `uid`.

        Returns:
            verl's output, and `rm_scores`: jagged [B, R], each reward at its last token.

        Raises:
            ValueError: the pass did not go over the rollouts' own tokens.
            R2MError: one rollout has no reward.
        """
        if _tensordicts.get(data, key="no_lora_adapter", default=False):  # the reference's pass
            return super().compute_log_prob(data)
        feedback = self._feedback()
        feedback.free()  # of a step without an update of the policy
        with self.r2m_record(self.actor.engine.module) as recording:
            output = super().compute_log_prob(data)
        feedback.keep(recording)
        rollouts = self._rollouts(data)
        rewards = iter(feedback.score([one for one in rollouts if one is not None]))
        each = [0.0 if one is None else next(rewards) for one in rollouts]
        output["rm_scores"] = token_rewards(each, data["responses"])
        return output

    @_dealt_out_as(_theirs.update_actor)
    def update_actor(self, data: Any) -> Any:
        """verl's update, then one more pass over the same rollouts, then align.

        Raises:
            ValueError, R2MError, RuntimeError: see `RunFeedback.align`.
        """
        rollouts = [one for one in self._rollouts(data) if one is not None]
        # The update takes its own settings out of what it is given.
        again = data.select(
            "input_ids", "position_ids", "loss_mask", "multi_modal_inputs", strict=False
        )
        output = super().update_actor(data)
        _tensordicts.assign_non_tensor(again, compute_loss=False, temperature=1.0)
        with self.r2m_record(self.actor.engine.module) as recording:
            self.actor.infer_batch(again)
        feedback = self._feedback()
        feedback.keep(recording)
        output["metrics"].update(feedback.align(rollouts))
        return output

    def _rollouts(self, data: Any) -> list[Rollout | None]:
        """The batch's, None for the samples that verl filled it up with."""
        ids, prompts = (
            [row.tolist() for row in data[name].unbind()] for name in ("input_ids", "prompts")
        )
        found = rollouts_of(ids, map(self._decoded, prompts), self._decoded)
        uids = _tensordicts.get(data, key="uid")
        each: list[str] = [uids] * len(found) if isinstance(uids, str) else uids
        return [
            None if uid.startswith(PADDING) else one for uid, one in zip(each, found, strict=True)
        ]

    def _decoded(self, tokens: Any) -> str:
        tokenizer = self.actor.model_config.tokenizer
        return str(tokenizer.decode(tokens, skip_special_tokens=False))

    def _feedback(self) -> RunFeedback:
        if self._r2m is None:
            self._r2m = self.r2m_open()
        return self._r2m


class FeedbackTrainer(_Trainer):
    """verl's synchronous V1 trainer, with our worker.

    Attributes:
        r2m_worker: a Ray actor is made of it.

    Raises:
        ValueError: settings under which a run's rewards or states cannot be had.
    """

    r2m_worker: type = FeedbackWorker

    def __init__(self, config: Any, *more: Any, **named: Any) -> None:
        refuse_what_does_not_fit(config)
        super().__init__(config, *more, **named)

    def _init_resource_pool_mgr(self) -> None:
        """verl's, and our worker where it has its own."""
        super()._init_resource_pool_mgr()
        ray: Any = importlib.import_module("ray")
        for role in self.role_worker_mapping:
            if role.name in ("ActorRollout", "ActorRolloutRef"):
                self.role_worker_mapping[role] = ray.remote(self.r2m_worker)


def refuse_what_does_not_fit(config: Any) -> None:
    """Settings of verl under which the rewards or the states would not be those of the run.

    Args:
        config: verl's, whole.

    Raises:
        ValueError: the first such setting, by its full name.
    """
    for path, fitting, why in (
        ("trainer.use_v1", (True,), "the older trainer is not covered"),
        ("trainer.v1.trainer_mode", ("sync",), "rollouts have to come from the policy of the step"),
        (
            "algorithm.rollout_correction.bypass_mode",
            (False, None),
            "the pass that brings a run's rewards would be left out",
        ),
        (
            "actor_rollout_ref.actor.strategy",
            ("fsdp", "fsdp2"),
            "hidden states are recorded in the FSDP engine",
        ),
        (
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
            (1,),
            "hidden states are recorded where one GPU has the whole sequence",
        ),
        (
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
            (1,),
            "hidden states are recorded where one GPU has the whole sequence",
        ),
    ):
        value = config
        for name in path.split("."):
            value = None if value is None else value.get(name)
        if value not in fitting:
            raise ValueError(f"{why}: set {path}={fitting[0]}, it is {value}")


def token_rewards(rewards: list[float], responses: Any) -> Any:
    """Each reward at the last token of its response, 0 at the others, as verl spreads them.

    Args:
        rewards: [B].
        responses: token ids, jagged [B, R].

    Returns:
        float32, jagged [B, R].

    Raises:
        ValueError: a rollout without a token, which has no place for a reward.
    """
    torch: Any = importlib.import_module("torch")
    rows: list[Any] = []
    for place, (reward, response) in enumerate(zip(rewards, responses.unbind(), strict=True)):
        if not len(response):
            raise ValueError(f"rollout {place} has no token that its reward could stand at")
        row = torch.zeros(len(response), dtype=torch.float32)
        row[-1] = reward
        rows.append(row)
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
