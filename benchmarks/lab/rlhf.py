"""One RLHF run: RLOO on a policy that drifts, rewarded by one arm, watched by the gold.

A step: sample K responses to each of G queries → reward them → one policy update → the head learns,
from the states of the updated policy. No KL penalty, unless the arm has one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab import world
from lab.arms import Arm
from lab.learner import Aligned, Group, Learner, States, method_of
from lab.models import WIDTH, last
from lab.training import Start, preference_loss
from r2m_service.domain.method import MethodSettings

GROUPS, K = 8, 8
POLICY_RATE = 2e-4
REPLAYED = 64
FIRST_STEPS, RESCORED_EVERY = 2, 4
"""Steps whose responses are scored again later, and how often: what the head makes of them by now
is how far its scale has moved."""

Numbers = dict[str, np.ndarray]
"""By name, one row a step: `reward`, `gold`, `vanilla`, `length`, `filler` of each response
(steps, 64); one number a step of the rest (steps,). `labels`: groups that got one."""
Preferred = list[tuple[int, int] | None]
"""Of each group the places of (winner, loser), where somebody outside said so."""


def settings_of(arm: Arm, seed: int) -> MethodSettings | None:
    """What a run of the arm would be created with; None where no head learns."""
    if arm.reward != "learner":
        return None
    attends = arm.attended != "none"
    given = {**arm.method, "seed": seed}
    if not attends:
        given.pop("omega", None)  # there is nothing to mix
    return method_of(given, state_width=WIDTH, attends=attends)


@dataclass(slots=True)
class Batch:
    """The rollouts of a step.

    Attributes:
        tokens_NS: queries with responses, group by group.
        rte_NR: the frozen reward model's, which never change.
        own: its token states.
    """

    tokens_NS: Tensor
    lengths_N: Tensor
    rte_NR: Tensor
    own: States


class Rlhf:
    """One run.

    Args:
        start: what all arms of the seed begin with; it is left as it is.
        seed: of queries, samples, labels and heads: arms of one seed share them.
    """

    def __init__(self, arm: Arm, start: Start, seed: int) -> None:
        self.arm = arm
        self._start = start
        self._policy = copy.deepcopy(start.policy)
        self._optimizer = torch.optim.Adam(self._policy.parameters(), lr=POLICY_RATE)
        self._draw = torch.Generator().manual_seed(1_000_003 + seed + 1_009 * arm.draws)
        self._labels = torch.Generator().manual_seed(2_000_003 + seed)
        self._seed, self._at = seed, 0
        self._mistakes = torch.Generator().manual_seed(4_000_037 + seed)
        self._underway: deque[list[Group]] = deque()
        self._unpaid: deque[tuple[Tensor, Tensor]] = deque()
        self._first: list[tuple[Batch, States | None, Tensor]] = []
        self._rescored = (0.0, 1.0)
        self._learner: Learner | None = None
        self._retrained = copy.deepcopy(start.proxy)
        self._retraining = torch.optim.AdamW(self._retrained.parameters(), lr=arm.retrain_rate)
        self._replay: list[tuple[Tensor, Tensor]] = []
        method = settings_of(arm, seed)
        if method is not None:
            self._learner = Learner(
                method,
                weight_R=start.proxy.score.weight[0],
                bias=start.proxy.score.bias,
                width_P=WIDTH,
                attends=arm.attended != "none",
            )

    def run(self, steps: int, told: Callable[[int], None] = lambda step: None) -> Numbers:
        """All steps.

        Args:
            told: hears of each that is done.
        """
        rows: list[dict[str, np.ndarray | float]] = []
        for step in range(steps):
            rows.append(self._step(step))
            told(step + 1)
        return {key: np.array([row[key] for row in rows], np.float32) for key in rows[0]}

    def _step(self, step: int) -> dict[str, np.ndarray | float]:
        self._at = step
        batch = self._sample()
        gold_N = world.gold(batch.tokens_NS)
        behind_NSW = self._policy.states(batch.tokens_NS)
        log_N = self._policy.log_probabilities(batch.tokens_NS, behind_NSW).sum(1)
        with torch.no_grad():
            kl_N = log_N - self._start.policy.log_probabilities(batch.tokens_NS).sum(1)
            vanilla_N = self._start.proxy.score(batch.rte_NR)[:, 0]
        states = self._attended(batch, lambda: behind_NSW.detach())
        preferred = self._prefer(gold_N)
        reward_N = self._reward(batch, states, preferred)
        rescored = self._rescore(step, batch, states, reward_N)
        if self.arm.late and self.arm.reward == "labels":
            self._pay_late(batch.tokens_NS, reward_N)
        else:
            paid_N = _paid(reward_N, preferred) if self.arm.paid else reward_N
            self._improve(log_N, paid_N - self.arm.policy_kl * kl_N)
        aligned = self._align(batch, preferred)
        unknown = float("nan")
        ratio, rho = aligned.spread_ratio, aligned.rank_correlation
        gain = aligned.feedback_gain
        return {
            "reward": reward_N.numpy(),
            "gold": gold_N.numpy(),
            "vanilla": vanilla_N.numpy(),
            "length": batch.lengths_N.numpy(),
            "filler": world.filler_share(batch.tokens_NS).numpy(),
            "kl": float(kl_N.mean()),
            "first_mean": rescored[0],
            "first_spread": rescored[1],
            "spread_ratio": unknown if ratio is None else ratio,
            "rank_correlation": unknown if rho is None else rho,
            "gre": unknown if aligned.gre is None else aligned.gre,
            "feedback_gain": unknown if gain is None else gain,
            "labels": float(sum(pair is not None for pair in preferred)),
            "accepted": float(aligned.verdict == "accepted"),
            "rejected": float(aligned.verdict == "rejected"),
        }

    @torch.no_grad()
    def _sample(self) -> Batch:
        queries_GS = world.queries(GROUPS, self._draw)
        tokens_NS = self._policy.sample(queries_GS.repeat_interleave(K, 0), self._draw)
        lengths_N = world.lengths(tokens_NS)
        own_NSW = self._start.proxy.backbone.states(tokens_NS)
        return Batch(tokens_NS, lengths_N, last(own_NSW, lengths_N), _ragged(own_NSW, lengths_N))

    def _prefer(self, gold_N: Tensor) -> Preferred:
        """Best and worst of the groups that are labelled; where all are equal, neither is."""
        labelled = torch.rand(GROUPS, generator=self._labels) < self.arm.labelled
        mistaken = torch.rand(GROUPS, generator=self._mistakes) < self.arm.wrong
        found: Preferred = []
        for known, wrong, gold_K in zip(labelled, mistaken, gold_N.view(GROUPS, K), strict=True):
            best, worst = int(gold_K.argmax()), int(gold_K.argmin())
            pair = (worst, best) if wrong else (best, worst)
            found.append(pair if known and gold_K.max() > gold_K.min() else None)
        return found

    @torch.no_grad()
    def _reward(self, batch: Batch, states: States | None, preferred: Preferred) -> Tensor:
        """In units of the first reward model's spread on the first policy's responses."""
        start = self._start
        if self.arm.reward == "labels":
            return _paid(torch.zeros(GROUPS * K), preferred)
        if self._learner is not None:
            r_N = self._learner.score(batch.rte_NR, states)
            omega = self._learner.method.omega.at(1)
            return (r_N - omega * (start.mean - start.bias) - start.bias) / (omega * start.spread)
        if self.arm.reward == "proxy":
            r_N = start.proxy.score(batch.rte_NR)[:, 0]
        else:
            r_N = self._retrained(batch.tokens_NS, batch.lengths_N)
        return (r_N - start.mean) / start.spread

    def _rescore(
        self, step: int, batch: Batch, states: States | None, reward_N: Tensor
    ) -> tuple[float, float]:
        """Mean and spread of the first steps' rewards, as whoever rewards has them by now."""
        if step < FIRST_STEPS:
            self._first.append((batch, states, reward_N))
            rewards = [given_N for _, _, given_N in self._first]
        elif self.arm.reward in ("proxy", "labels") or step % RESCORED_EVERY:
            return self._rescored
        else:
            rewards = [self._reward(one, theirs, []) for one, theirs, _ in self._first]
        reward_M = torch.cat(rewards)
        self._rescored = (float(reward_M.mean()), float(reward_M.std(correction=0)))
        return self._rescored

    def _pay_late(self, tokens_NS: Tensor, reward_N: Tensor) -> None:
        """The policy gets the labels that have arrived, for the responses of their time."""
        self._unpaid.append((tokens_NS, reward_N))
        if len(self._unpaid) > self.arm.late:
            tokens_NS, reward_N = self._unpaid.popleft()
            self._improve(self._policy.log_probabilities(tokens_NS).sum(1), reward_N)

    def _improve(self, log_N: Tensor, reward_N: Tensor) -> None:
        """One RLOO step: each response against the mean of its group's others.

        Args:
            log_N: log π of each response by the policy as it stands, with its graph.
        """
        reward_GK = reward_N.view(GROUPS, K)
        others_GK = (reward_GK.sum(1, keepdim=True) - reward_GK) / (K - 1)
        advantage_GK = reward_GK - others_GK
        if self.arm.scaled:
            advantage_GK = advantage_GK / (reward_GK.std(1, keepdim=True) + 1e-6)
        advantage_N = advantage_GK.flatten()
        loss = -(advantage_N * log_N).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), 1.0)
        self._optimizer.step()

    def _align(self, batch: Batch, preferred: Preferred) -> Aligned:
        if self.arm.reward == "retrained":
            self._retrain(batch.tokens_NS, preferred)
        if self._learner is None:
            return Aligned("skipped")
        with torch.no_grad():
            states = self._attended(batch, lambda: self._policy.states(batch.tokens_NS))
        groups = [
            Group(
                batch.rte_NR[place * K : (place + 1) * K],
                None if states is None else states[place * K : (place + 1) * K],
                preferred[place],
            )
            for place in range(GROUPS)
        ]
        self._underway.append(groups)
        if len(self._underway) <= self.arm.late:
            return Aligned("skipped")
        return self._learner.align(self._underway.popleft())

    def _retrain(self, tokens_NS: Tensor, preferred: Preferred) -> None:
        """The same labels, and the same replay of them, for all weights of the reward model."""
        new = [
            (tokens_NS[place * K + pair[0]], tokens_NS[place * K + pair[1]])
            for place, pair in enumerate(preferred)
            if pair is not None
        ]
        pairs = new + self._replay
        self._replay = (self._replay + new)[-REPLAYED:]
        if not pairs:
            return
        winner_NS, loser_NS = (torch.stack(side) for side in zip(*pairs, strict=True))
        loss = preference_loss(self._retrained, winner_NS, loser_NS)
        self._retraining.zero_grad()
        loss.backward()
        self._retraining.step()

    def _attended(self, batch: Batch, policy: Callable[[], Tensor]) -> States | None:
        """What the arm's head attends to; `policy` gives its states, h_NSW."""
        kind = self.arm.attended
        if kind == "none":
            return None
        if kind == "backbone":
            return batch.own
        if kind == "backbone-shuffled":
            return _next_group(batch.own)
        if kind == "start":
            with torch.no_grad():
                return _ragged(self._start.policy.states(batch.tokens_NS), batch.lengths_N)
        states = _ragged(policy(), batch.lengths_N)
        if kind == "shuffled":
            return _next_group(states)
        if kind == "noise":  # the same for whoever scores a step and who learns from it
            draw = torch.Generator().manual_seed(3_000_017 + self._seed + 1_009 * self._at)
            return [torch.randn(h_SP.shape, generator=draw) * h_SP.std() for h_SP in states]
        return states


def _next_group(states: States) -> States:
    return [*states[K:], *states[:K]]


def _paid(reward_N: Tensor, preferred: Preferred) -> Tensor:
    """The labels in place of the rewards of the groups that have one."""
    reward_GK = reward_N.view(GROUPS, K).clone()
    for reward_K, pair in zip(reward_GK, preferred, strict=True):
        if pair is not None:
            reward_K.zero_()
            reward_K[pair[0]], reward_K[pair[1]] = 1.0, -1.0
    return reward_GK.flatten()


def _ragged(states_NSW: Tensor, lengths_N: Tensor) -> States:
    return [h_SW[:length] for h_SW, length in zip(states_NSW, lengths_N.tolist(), strict=True)]
