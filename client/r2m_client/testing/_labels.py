"""Outside labels: which samples are marked, what is said of them, and what they teach."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2m.errors import Code, Problem
from r2m_client.testing._answers import audit_out
from r2m_client.testing._form import MAX_ID, MAX_NAME, check_text, invalid
from r2m_client.testing._state import Kept
from r2m_client.testing._texts import query_of, text_of
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client.testing._state import Head, Run
    from r2m_client.testing._world import World

MAX_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a step learns beside its groups' rewards.

    Attributes:
        withheld: places of groups whose outside label is not learnt from: their query judges.
        replayed: labelled pairs that are learnt from again.
    """

    withheld: frozenset[int] = frozenset()
    replayed: int = 0


def lesson_of(run: Run, request: dict[str, Any]) -> Lesson:
    """What a step learns from. Raises Problem(no_anchors)."""
    if request.get("anchors") and run.anchors is None:
        raise Problem(
            Code.NO_ANCHORS,
            f"run {run.name!r} has no anchor set that these hidden states could belong to",
            field="anchors",
        )
    judging: frozenset[str] = frozenset() if run.anchors is None else run.anchors.prompts
    audited = run.method.audit_rate > 0
    withheld: set[int] = set()
    for place, group in enumerate(request["groups"]):
        if not group.get("preferred") or not group["samples"]:
            continue
        query = query_of(group["samples"][0])
        if query in judging or (audited and use_of(run, query) == "judge"):
            withheld.add(place)
    return Lesson(frozenset(withheld), _replayed(run, judging))


def _replayed(run: Run, judging: frozenset[str]) -> int:
    """One pair for each labelled group that trains, where its labels say which one is better."""
    if run.method.labels == "pseudo":
        return 0
    grades: dict[str, set[float]] = {}
    for kept in run.kept.values():
        if kept.out["use"] != "train" or kept.query in judging:
            continue
        for label in kept.labels:
            # A stated preference tells two samples apart, as two different grades do.
            found = [label["grade"]] if "grade" in label else [0.0, 1.0]
            grades.setdefault(kept.out["group"], set()).update(found)
    pairs = sum(len(found) > 1 for found in grades.values())
    return min(pairs, int(run.method.replay_groups))


def use_of(run: Run, query: str) -> str:
    """Whether labels of a query train or judge, as the server decides it."""
    prompt = hashlib.sha256(query.encode()).hexdigest()
    return "judge" if _share("use", run, prompt) < run.method.judge_share else "train"


def mark(
    run: Run, head: Head, branch: str, given: dict[str, Any], score: dict[str, Any]
) -> dict[str, Any]:
    """The score; with `audit` where its sample is marked and kept for a label."""
    unit = given.get("group") or given["id"]
    if not _share("audit", run, unit) < run.method.audit_rate:
        return score
    text, known = text_of(given), run.kept.get(given["id"])
    if known is None:
        query = query_of(given)
        out = {
            "number": len(run.kept) + 1,
            "id": given["id"],
            "group": unit,
            "use": use_of(run, query),
            "head": head.number,
            "branch": branch,
            "reward": score["reward"],
            "vanilla_reward": score["vanilla_reward"],
            "text": text,
            "at": now(),
        }
        run.kept[given["id"]] = Kept(len(run.kept) + 1, out, query)
    elif known.out["text"] != text:
        return score
    return {**score, "audit": True}


def add_labels(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Take labels; a bad one costs no other.

    Raises:
        Problem: invalid_request, unknown_run, run_archived, backbone_mismatch.
    """
    for place, label in enumerate(request["labels"]):
        for key in ("id", "chosen", "rejected"):
            check_text(f"labels[{place}].{key}", label.get(key), low=1, high=MAX_ID)
        check_text(f"labels[{place}].source", label.get("source"), high=MAX_NAME)
    run = world.open_run(request["run"])
    found: list[dict[str, Any]] = []
    for place, label in enumerate(request["labels"]):
        try:
            found.append(_taken(run, label, f"labels[{place}]"))
        except Problem as problem:
            named = [label.get(key) for key in ("id", "chosen", "rejected")]
            name = next((one for one in named if one is not None), "")
            found.append({"id": name, "error": problem.as_dict()})
    return {
        "run": run.name,
        "labels": found,
        "audit": audit_out(run),
        "advice": world.advice_on(run.name),
    }


def _taken(run: Run, label: dict[str, Any], path: str) -> dict[str, Any]:
    graded = label.get("id") is not None and label.get("grade") is not None
    paired = label.get("chosen") is not None and label.get("rejected") is not None
    names = {key: label[key] for key in ("id", "chosen", "rejected") if label.get(key) is not None}
    if graded == paired or len(names) != (1 if graded else 2):
        raise invalid("a label is `id` and `grade`, or `chosen` and `rejected`", path)
    for key, name in names.items():
        if name not in run.kept:
            raise Problem(
                Code.UNKNOWN_SAMPLE,
                f"no sample {name[:80]!r} waits for a label: it was not marked, or is not kept "
                "any more",
                field=f"{path}.{key}",
            )
    kept = run.kept[label["id"] if graded else label["chosen"]]
    answer = {"id": kept.out["id"], "use": kept.out["use"]}
    if graded:
        return answer | _graded(run, kept, label, path)
    loser = run.kept[label["rejected"]]
    if loser is kept or loser.out["group"] != kept.out["group"]:
        raise invalid("chosen and rejected are two different samples of one group", path)
    if any(one.get("rejected") == label["rejected"] for one in kept.labels):
        return {**answer, "known": True}
    kept.labels.append(label)
    loser.losses += 1
    return answer


def _graded(run: Run, kept: Kept, label: dict[str, Any], path: str) -> dict[str, Any]:
    for earlier in kept.labels:
        if earlier.get("grade") is None:
            continue
        if earlier["grade"] == label["grade"]:
            return {"known": True}
        raise Problem(
            Code.LABEL_CONFLICT,
            f"sample {label['id'][:80]!r} has the grade {earlier['grade']:g} already; a label "
            "stays as it came first",
            field=f"{path}.grade",
        )
    kept.labels.append(label)
    run.judged += kept.out["use"] == "judge" and kept.query not in run.trained
    return {}


def list_samples(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Marked samples, oldest first. Raises Problem(invalid_request, unknown_run)."""
    limit = request["limit"]
    if not 1 <= limit <= MAX_LISTED:
        raise invalid(f"limit is between 1 and {MAX_LISTED}", "limit")
    if not 0 <= request["after"] < 2**63:
        raise invalid("after is between 0 and 2**63 - 1", "after")
    run = world.run(request["run"])
    found = [
        one
        for one in run.kept.values()
        if one.number > request["after"] and (one.waits or not request["waiting"])
    ]
    page = found[:limit]
    answer: dict[str, Any] = {"samples": [{**one.out, "labels": one.labels} for one in page]}
    return answer | ({"next": page[-1].number} if len(page) == limit else {})


def _share(purpose: str, run: Run, unit: str) -> float:
    """A number in [0, 1) that only the three decide: the server's rule (domain/audit.py)."""
    text = f"{purpose}\x00{run.method.seed}\x00{unit}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2.0**56
