"""R2M: what a GRPOTrainer or RLOOTrainer is given, twice: as reward function and as callback."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback

from r2m_client._client import Client
from r2m_client._results import AlignResult
from r2m_client._samples import Sample
from r2m_client.integrations._texts import as_sample
from r2m_client.integrations.trl import _batches
from r2m_client.integrations.trl._batches import Batch
from r2m_client.integrations.trl._kept import KeptCheckpoints
from r2m_client.integrations.trl._policy import Policy
from r2m_client.integrations.trl._run import Feedback, Run, Standing
from r2m_client.integrations.trl._talking import Ranks, TrainingStopped, logger
from r2m_client.integrations.trl._texts import schemas
from r2m_client.split import States


class R2M(TrainerCallback):
    """Rewards by an R2M server, and a head that follows the policy.

        r2m = R2M("http://127.0.0.1:8080", run="tldr")
        trainer = GRPOTrainer(model, reward_funcs=[r2m], callbacks=[r2m], ...)
        trainer.train()

    Each generation batch is scored by the head of its step, with the policy's own hidden states;
    once the policy has learned from it for the last time, its rollouts go through the policy again
    and the head is aligned. Evaluation batches are scored, and never aligned. A rollout that cannot
    be scored has the reward None, which TRL leaves out.

    Args:
        server: `http://…` or `grpc://…`; or a Client, whose timeout and retries then hold.
        run: the run's name; it is created where there is none.
        method: settings of a new run; with an old one they must be its own.
        feedback: `split` keeps the hidden states in this process; `streamed` sends them (one
            process only).
        patience: seconds that one call may take, while the server is restarted, say. Then training
            stops.
        text: how prompts that are strings are joined with their completions: `raw`, one behind the
            other, or `chat`, by the reward model's chat template. Conversations always are chat.
        group_share: a group is aligned if at least this share of its samples, and two, have a
            reward.
        continue_run: begin a new training on a run that already has steps.
    """

    __name__ = "r2m"  # TRL names its metrics after the reward function

    def __init__(
        self,
        server: str | Client,
        run: str,
        *,
        method: Mapping[str, object] | None = None,
        feedback: Feedback = "split",
        patience: float = 600.0,
        text: Literal["raw", "chat"] = "raw",
        group_share: float = 0.5,
        continue_run: bool = False,
    ) -> None:
        if feedback not in ("split", "streamed"):
            raise ValueError(f"feedback {feedback!r} is neither split nor streamed")
        if not 0 <= group_share <= 1:
            raise ValueError(f"group_share is {group_share}, it must be between 0 and 1")
        self.client = Client(server, timeout=patience) if isinstance(server, str) else server
        self._run = Run(
            client=self.client,
            name=run,
            method=method,
            feedback=feedback,
            share=group_share,
            go_on=continue_run,
        )
        self._text: Literal["raw", "chat"] = text
        self._ranks = Ranks()
        self._policy: Policy | None = None
        self._trainer: Any = None
        self._standing: Standing | None = None
        self._pending: list[Batch] = []
        self._batches = 0
        self._traffic = (0, 0)

    def attach(self, trainer: Any) -> None:
        """Work with this trainer; the first reward call does it, from what TRL hands over.

        Raises:
            TypeError: it is neither a GRPOTrainer nor an RLOOTrainer, has not got the callback, or
                has another R2M.
        """
        needed = ("num_generations", "num_iterations", "_step", "_metrics", "_tokenize_prompts")
        if any(not hasattr(trainer, name) for name in needed):
            raise TypeError(
                f"R2M works in TRL's GRPOTrainer and RLOOTrainer, not in {type(trainer).__name__}: "
                "call attach(trainer) if it is one"
            )
        if self not in trainer.callback_handler.callbacks:
            raise TypeError("R2M is a callback, too: callbacks=[r2m], or its head never follows")
        if any(isinstance(one, R2M) and one is not self for one in trainer.reward_funcs):
            raise TypeError("one R2M a trainer: each takes the states of the policy's passes")
        self._trainer = trainer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the policy and close the connections."""
        if self._policy is not None:
            self._policy.close()
            self._policy = None
        self.client.close()

    # What TRL calls.

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """The policy is there, and not yet wrapped."""
        if self._policy is not None:
            self._policy.close()
        self._policy, self._trainer, self._standing = None, None, None
        self._pending.clear()
        if model is not None:
            self._policy = Policy(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Find the run's place: the beginning, or where the checkpoint left off."""
        saved = self._left_off(state.stateful_callbacks) if state.global_step else None
        self._pending.clear()
        self._open(model, saved, training=True)
        self._save_into(state)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of this rank's rollouts, None where there is none.

        Raises:
            TrainingStopped: the server is gone, or refuses what training needs.
        """
        trainer: Any = self._trainer or getattr(log_metric, "__self__", None)
        if self._trainer is None:
            self.attach(trainer)
        standing = self._standing or self._open(trainer.model, None, training=False)
        training: bool = trainer.model.training
        self._log(logging.INFO, "step %d: scoring", standing.step + 1)
        batch, states, versions = self._rollouts(prompts, completions, completion_ids, columns)
        started = time.monotonic()
        rewards = self._ranks.ask(
            states, lambda answers: self._run.score(standing, batch, versions, answers)
        )
        states.free()
        if batch.results:
            if log_metric is not None:
                seconds = time.monotonic() - started
                for name, value in _batches.score_metrics(batch.results, seconds).items():
                    log_metric(name, value)
            if (problem := _batches.failures(batch.results)) is not None:
                logger.warning("%s", problem)
        if training:
            self._pending.append(batch)
        first = self._ranks.rank * len(prompts)
        return rewards[first : first + len(prompts)]

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation's own passes are over rollouts that have been scored."""
        if self._policy is not None:
            self._policy.forget()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The policy has moved: align with the batches that it will not see again."""
        if self._trainer is None or self._standing is None or self._policy is None:
            return
        self._policy.forget()
        due = [batch for batch in self._pending if batch.ends_at <= self._trainer._step]
        if not due:
            return
        self._pending = [batch for batch in self._pending if batch.ends_at > self._trainer._step]
        standing, started = self._standing, time.monotonic()
        self._log(logging.INFO, "step %d: aligning", standing.step + 1)
        states = States(self._fresh(due))
        answer, left_out = self._ranks.ask(
            states, lambda answers: self._run.align(standing, due, answers)
        )
        states.free()
        self._standing = replace(standing, step=answer.step, head=answer.head)
        self._save_into(state)
        if self._ranks.rank == 0:
            self._tell(answer, left_out, time.monotonic() - started)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint can be resumed from as long as it is there: its head is kept."""
        standing = self._standing
        if standing is None:
            return
        name = f"checkpoint-{state.global_step}"
        notes = KeptCheckpoints(args.output_dir, self._run.name)

        def keep(_: object) -> None:
            notes.write(self._run.keep(standing, name, {*notes.there(), name}, notes.read()))

        self._ranks.ask(States(), keep)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A batch that training did not finish is not aligned."""
        if self._pending:
            text = "training ended within %d generation batch(es): they are not aligned"
            self._log(logging.WARNING, text, len(self._pending))
            self._pending.clear()

    # The steps of it.

    @property
    def _key(self) -> str:
        return f"r2m/{self._run.name}"

    def _log(self, level: int, text: str, *values: object) -> None:
        if self._ranks.rank == 0:
            logger.log(level, text, *values)

    def _left_off(self, entries: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What a checkpoint says of the run.

        Raises:
            TrainingStopped: it is of another run.
        """
        found = entries.get(self._key)
        others = [key.removeprefix("r2m/") for key in entries if key.startswith("r2m/")]
        if found is None and others and not self._run.go_on:
            raise TrainingStopped(
                f"the checkpoint is of run {others[0]!r}, and R2M was given {self._run.name!r}: "
                "give it that name, or say R2M(..., continue_run=True) to go on with another head"
            )
        return found

    def _save_into(self, state: Any) -> None:
        """Into what TRL saves with every checkpoint, as trainer_state.json."""
        assert self._standing is not None, "the run is open"
        state.stateful_callbacks[self._key] = self._standing.saved()

    def _open(
        self, model: nn.Module | None, saved: Mapping[str, Any] | None, *, training: bool
    ) -> Standing:
        if self._policy is None:
            if model is None:
                raise TypeError("R2M was given no policy: is it among the trainer's callbacks?")
            self._policy = Policy(model)
        if self._ranks.several and self._run.feedback == "streamed":
            raise ValueError("feedback 'streamed' is for one process: leave it at 'split'")
        width = self._policy.recorder.width
        self._standing = self._ranks.ask(
            States(), lambda _: self._run.place(width, saved, training=training)
        )
        self._traffic = (self.client.bytes_sent, self.client.bytes_received)
        return self._standing

    def _rollouts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Any],
    ) -> tuple[Batch, States, list[int]]:
        """All ranks' samples with their policy versions, and this rank's tokens and states."""
        trainer, standing, policy = self._trainer, self._standing, self._policy
        assert standing is not None
        assert policy is not None
        size: int = (
            trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        )
        number, first = self._batches, self._ranks.rank * len(prompts)
        self._batches += 1
        ids: list[Tensor] = []
        states: list[Tensor] = []

        def make() -> list[tuple[Sample, int]]:
            if standing.attends_to_policy:
                found = policy.rollouts(trainer, prompts, completion_ids, columns)
                ids.extend(found[0])
                states.extend(found[1])
            tools = schemas(getattr(trainer, "tools", None))
            versions = columns.get("policy_version") or [None] * len(prompts)
            samples: list[tuple[Sample, int]] = []
            for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
                name, group = f"{number}-{first + place}", f"{number}-{(first + place) // size}"
                one = as_sample(name, group, prompt, completion, format=self._text, tools=tools)
                if standing.attends_to_policy:
                    count = len(ids[place])
                    one = replace(one, hidden_state="post_norm", last_token=True, tokens=count)
                version = versions[place]
                samples.append((one, standing.step if version is None else int(version)))
            return samples

        gathered = [pair for part in self._ranks.gather(make) for pair in part]
        names = [f"{number}-{first + place}" for place in range(len(prompts))]
        every: int = trainer.args.steps_per_generation * trainer.num_iterations
        batch = Batch(
            samples=[one for one, _ in gathered],
            group_size=size,
            ids=dict(zip(names, ids, strict=False)),
            ends_at=(trainer._step // every + 1) * every,
        )
        # One version a group: rewards by two heads cannot be compared.
        versions = [
            min(version for _, version in gathered[place - place % size :][:size])
            for place in range(len(gathered))
        ]
        return batch, States(dict(zip(names, states, strict=False))), versions

    def _fresh(self, due: Sequence[Batch]) -> dict[str, Tensor]:
        """This rank's states of the batches by the policy as it is now."""
        assert self._policy is not None
        assert self._standing is not None
        names = [name for batch in due for name in batch.ids]
        if not self._standing.attends_to_policy:
            return {}
        ids = [own for batch in due for own in batch.ids.values()]
        return dict(zip(names, self._policy.forward(self._trainer, ids), strict=True))

    def _tell(self, answer: AlignResult, left_out: int, seconds: float) -> None:
        """What came of a step, in TRL's own metrics of that step and in the log."""
        traffic = (self.client.bytes_sent, self.client.bytes_received)
        sent, received = (now - then for now, then in zip(traffic, self._traffic, strict=True))
        self._traffic = traffic
        metrics = _batches.align_metrics(answer, left_out, seconds, sent, received)
        for name, value in metrics.items():
            self._trainer._metrics["train"][name].append(value)
        logger.info(
            "step %d: %s, head %d: %s", answer.step, answer.verdict, answer.head, answer.reason
        )
        if answer.advice == "stop" or answer.verdict == "frozen":
            logger.warning(
                "run %s: advice %s, verdict %s: %s",
                self._run.name, answer.advice, answer.verdict, answer.reason,
            )  # fmt: skip
