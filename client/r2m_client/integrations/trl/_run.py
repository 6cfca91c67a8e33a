"""The run on the server: one's place in it, scoring, aligning. Only rank 0 calls any of it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from r2m_client._client import Client
from r2m_client._errors import NotFound
from r2m_client._results import AlignResult, RunInfo
from r2m_client._samples import Group, Sample
from r2m_client.integrations.trl._batches import Batch
from r2m_client.integrations.trl._talking import TrainingStopped, logger
from r2m_client.split import Answers, Context, States

Feedback = Literal["split", "streamed"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the run stands: its branch, the steps done on it, and what it attends to."""

    branch: str
    step: int
    head: int
    attends_to_policy: bool

    def saved(self) -> dict[str, str | int]:
        """What a checkpoint needs of it."""
        return {"branch": self.branch, "step": self.step, "head": self.head}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as R2M's settings have it.

    Attributes:
        feedback: whether the hidden states stay or go along.
        share: of a group's samples that must have rewards for it to be aligned.
        go_on: whether a new training may begin where the run stands.
    """

    client: Client
    name: str
    method: Mapping[str, object] | None
    feedback: Feedback
    share: float
    go_on: bool

    def place(
        self, width: int | None, saved: Mapping[str, Any] | None, *, training: bool
    ) -> Standing:
        """The run as it is to be trained or evaluated with; it is created where there is none.

        Args:
            width: the policy's D_p.
            saved: where the checkpoint left off, if there is one: the run goes back there.
            training: not just an evaluation.

        Raises:
            TrainingStopped: the run is not this training's.
        """
        client, name = self.client, self.name
        try:
            info = client.run(name)
        except NotFound:
            info = None
        if info is None or self.method is not None:
            info = client.create_run(name, policy_hidden_size=width, method=self.method)
        _check(info, width)
        if saved is not None:
            info = self._back_to(info, str(saved["branch"]), int(saved["step"]))
        elif training and info.step and not self.go_on:
            raise TrainingStopped(
                f"run {name!r} is at step {info.step} already, and this training begins anew: give "
                "it another name, or say R2M(..., continue_run=True)"
            )
        logger.info("run %s: branch %s, step %d, head %d", name, info.branch, info.step, info.head)
        return Standing(info.branch, info.step, info.head, info.feedback == "policy")

    def _back_to(self, info: RunInfo, branch: str, step: int) -> RunInfo:
        if (info.branch, info.step) == (branch, step):
            return info
        ends = {one.branch: one.step for one in info.branches}
        if step > ends.get(branch, -1):
            raise TrainingStopped(
                f"the checkpoint is at step {step} of branch {branch!r} of run {self.name!r}, "
                f"where the server has {ends}: it is another server's, or this one lost it"
            )
        reason = f"resumed from a checkpoint at step {step} of {branch}"
        info = self.client.rollback(self.name, to_step=step, branch=branch, reason=reason)
        logger.warning("run %s: %s, now on branch %s", self.name, reason, info.branch)
        return info

    def keep(self, at: Standing, checkpoint: str, checkpoints: Collection[str]) -> None:
        """Let the server keep what a checkpoint needs to be resumed from: an alias of its name.

        Args:
            at: where the run stands.
            checkpoint: its folder's name.
            checkpoints: those that there are. An alias cannot be deleted: those of the others go
                to version 0, which is always kept.
        """
        self.client.set_alias(self.name, checkpoint, at.head)
        for alias, head in self.client.run(self.name).aliases.items():
            if re.fullmatch(r"checkpoint-\d+", alias) and head and alias not in checkpoints:
                self.client.set_alias(self.name, alias, 0)

    def score(
        self, at: Standing, batch: Batch, versions: Sequence[int], answers: Answers
    ) -> list[float | None]:
        """Rewards of all ranks' samples; the head of each policy version answers for its own.

        Args:
            at: where the run stands.
            batch: its `results` are filled.
            versions: of the policy, by sample: how many steps it had been through.
            answers: for the hidden states.
        """
        members: dict[int, list[Sample]] = defaultdict(list)
        for one, version in zip(batch.samples, versions, strict=True):
            members[version].append(one)
        for version, samples in sorted(members.items()):
            result = self.client.score(
                self._sent(at, samples, answers),
                run=self.name,
                step=version + 1,
                branch=at.branch,
                feedback=answers if self._splits(at) else "streamed",
            )
            batch.results.append(result)
        found = {score.id: score.reward for result in batch.results for score in result.scores}
        return [found[one.id] for one in batch.samples]

    def align(
        self, at: Standing, due: Sequence[Batch], answers: Answers
    ) -> tuple[AlignResult, int]:
        """The next step, with the groups of all batches; and how many groups are left out here."""
        groups: list[Group] = []
        left_out = 0
        for batch in due:
            usable, lost = batch.usable(max(2, math.ceil(self.share * batch.group_size)))
            groups += usable
            left_out += lost
        contexts = [result.context for batch in due for result in batch.results]
        answer = self.client.align(
            self.name,
            step=at.step + 1,
            groups=[
                replace(group, samples=self._sent(at, list(group.samples), answers))
                for group in groups
            ],
            branch=at.branch,
            feedback=answers if self._splits(at) else "streamed",
            context=Context.joined(contexts) if self._splits(at) else None,
        )
        return answer, left_out

    def _splits(self, at: Standing) -> bool:
        return at.attends_to_policy and self.feedback == "split"

    def _sent(self, at: Standing, samples: Sequence[Sample], answers: Answers) -> list[Sample]:
        if not at.attends_to_policy or self.feedback == "split":
            return list(samples)
        assert isinstance(answers, States), "one process holds them all"
        return answers.onto(samples)


def _check(info: RunInfo, width: int | None) -> None:
    """That the run attends to what will be sent."""
    policy = info.policy
    if info.feedback != "policy":
        return
    if width is not None and policy.hidden_size != width:
        raise TrainingStopped(
            f"run {info.run!r} is for a policy of width {policy.hidden_size}, this one's hidden "
            f"states have {width}"
        )
    if policy.hidden_state != "post_norm" or policy.last_token is False:
        raise TrainingStopped(
            f"run {info.run!r} expects {policy.hidden_state} states, last token: "
            f"{policy.last_token}; those of TRL's policy are post_norm, with the last token's"
        )
