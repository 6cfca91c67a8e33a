"""A generation batch between its scoring and its align, and what TRL is told of both."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from r2m_client._results import AlignResult, ScoreResult
from r2m_client._samples import Group, Sample

VERDICTS = ("accepted", "rejected", "undecided", "skipped", "frozen")


@dataclass(slots=True, kw_only=True)
class Batch:
    """The rollouts of one generation.

    Attributes:
        samples: those of all ranks, without hidden states.
        group_size: K; a group is K samples in a row.
        ids: tokens of prompt + completion of this rank's, by sample.
        ends_at: how many passes TRL has made when the policy has learned from it for the last time.
        results: on rank 0: one for each policy version among them.
    """

    samples: Sequence[Sample]
    group_size: int
    ids: dict[str, Tensor]
    ends_at: int
    results: list[ScoreResult] = field(default_factory=list[ScoreResult])

    def usable(self, at_least: int) -> tuple[list[Group], int]:
        """Groups of the samples that have rewards, and how many groups lost too many."""
        good = {
            score.id for result in self.results for score in result.scores if score.error is None
        }
        groups: list[Group] = []
        for start in range(0, len(self.samples), self.group_size):
            members = self.samples[start : start + self.group_size]
            left = [one for one in members if one.id in good]
            if len(left) >= at_least:
                groups.append(Group(members[0].group, left))
        return groups, math.ceil(len(self.samples) / self.group_size) - len(groups)


def score_metrics(results: Sequence[ScoreResult], seconds: float) -> dict[str, float]:
    """Of one generation batch, before the policy learns from it."""
    scores = [score for result in results for score in result.scores]
    good = [score for score in scores if score.error is None]
    found: dict[str, float | None] = {
        "head": results[-1].head,
        "omega": results[-1].omega,
        "samples/skipped": len(scores) - len(good),
        "samples/to_label": sum(score.audit for score in good),
        "score_seconds": seconds,
    }
    for name in ("reward", "vanilla_reward"):
        values = [value for one in good if (value := getattr(one, name)) is not None]
        found[name] = statistics.fmean(values) if values else None
    return _told(found)


def align_metrics(
    answer: AlignResult, left_out: int, seconds: float, sent: int, received: int
) -> dict[str, float]:
    """Of one step: the update, its verdict, and what it cost."""
    drift = answer.drift
    controls: dict[str, float | None] = {}
    for arm in answer.controls.arms if answer.controls else ():
        for name in ("difference", "low", "high", "pairs"):
            controls[f"controls/{arm.control}/{name}"] = getattr(arm.total, name)
    return _told(
        {
            "step": answer.step,
            "live_head": answer.head,
            "bt": answer.loss.bt,
            "gre": answer.loss.gre,
            "kl": answer.loss.kl,
            "loss": answer.loss.total,
            "sigma": answer.sigma,
            "spread_ratio": drift and drift.spread_ratio,
            "rank_correlation": drift and drift.rank_correlation,
            **{f"verdict/{name}": float(answer.verdict == name) for name in VERDICTS},
            "groups/used": answer.groups.used,
            "groups/skipped": answer.groups.skipped + left_out,
            **controls,
            "align_seconds": seconds,
            "bytes_sent": sent,
            "bytes_received": received,
        }
    )


def failures(results: Iterable[ScoreResult]) -> str | None:
    """A sentence on the samples without a reward."""
    errors = [(score.id, score.error) for result in results for score in result.scores]
    failed = [(name, error) for name, error in errors if error is not None]
    if not failed:
        return None
    counts = Counter(error.code for _, error in failed)
    kinds = ", ".join(f"{code} {count}" for code, count in counts.most_common())
    name, first = failed[0]
    return (
        f"{len(failed)} of {len(errors)} rollouts have no reward ({kinds}); the first, {name}: "
        f"{first}"
    )


def _told(values: dict[str, float | None]) -> dict[str, float]:
    return {f"r2m/{name}": float(value) for name, value in values.items() if value is not None}
