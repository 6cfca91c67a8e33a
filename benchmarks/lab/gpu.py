"""RLHF with real models, for those who have a GPU: TRL's RLOO against a server of its own.

    export PYTHONPATH=benchmarks
    python -m lab.gpu --policy POLICY --reward REWARD_MODEL --judge JUDGE --arm labelled

The judge is a second, better reward model: it stands in for the gold. It is watched at every step
and never optimised; in the arms that learn from outside labels it grades the share of the groups
that the run marks. There a third one (--eval-judge) is the fairer witness: what an arm has learnt
from one judge may be that judge's own whims. Compare arms by what a judge says at equal KL, over
several seeds: `python -m lab.gpu_table out/lab/gpu`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from bench.machine import ROOT
from lab.judges import Judge, Labels
from r2m_client import Client
from r2m_client.integrations.trl import R2M

sys.path.insert(0, str(ROOT / "examples" / "demo"))
from server import ServerError, serving

PROMPTS = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Write two lines about the sea.",
    "What is a prime number?",
)
Feedback = Literal["policy", "backbone", "none"]
ARMS: Mapping[str, tuple[Feedback, Mapping[str, Any]]] = {
    "frozen": ("none", {"profile": "guarded"}),
    "paper": ("policy", {"profile": "paper"}),
    "guarded": ("policy", {"profile": "guarded"}),
    "labelled": ("policy", {"profile": "labelled"}),
    "labelled-backbone": ("backbone", {"profile": "labelled"}),
    "labelled-none": ("none", {"profile": "labelled"}),
    "labels": ("none", {"profile": "guarded"}),
}
"""Feedback and profile; `labels` gives the policy the labels themselves as its reward."""
STILL = ("frozen", "labels")
"""Arms whose run changes nothing."""
SHADOWS: Mapping[Feedback, list[str]] = {
    "policy": ["shuffled", "backbone", "none"],
    "backbone": ["shuffled", "none"],
    "none": [],
}
"""Controls of an arm that learns from labels: the run itself says whether its feedback pays."""


class UsageError(RuntimeError):
    """What was asked for cannot begin, in one line."""


class Lines(TrainerCallback):
    """What TRL logs of a step, as a line of JSON."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step's numbers."""
        if not logs or "r2m/reward" not in logs:
            return
        self.rows.append({"step": state.global_step, **logs})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one arm with one seed; 2 where it cannot begin."""
    given = parser_of_arms().parse_args(arguments)
    flags = ("policy", "reward", "head", "judge", "judge_head", "eval_judge", "eval_judge_head")
    for flag in (*flags, "dataset"):
        path: Path | None = getattr(given, flag)
        if path is not None and not path.exists():
            print(
                f"--{flag.replace('_', '-')} {path}: there is no such folder or file",
                file=sys.stderr,
            )
            return 2
    learns = given.arm.startswith("labelled")
    if given.arm.startswith("label") and given.judge is None:
        print(f"--arm {given.arm} learns from a judge's labels: give --judge", file=sys.stderr)
        return 2
    refused = _why_not(given)
    if refused:
        print("\n".join(refused), file=sys.stderr)
        return 2
    if not (torch.cuda.is_available() or given.cpu):
        print("no GPU here; --cpu tries it on the CPU, slowly", file=sys.stderr)
        return 2
    set_seed(given.seed)
    out: Path = given.out / f"{given.arm}-{given.seed}"
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _servers(given, out) as urls:
            return _train(given, out, urls, learns=learns)
    except (ServerError, UsageError) as error:
        print(error, file=sys.stderr)
        return 2


def _why_not(given: argparse.Namespace) -> list[str]:
    """Numbers that no run could be made with, in sentences."""
    found = [
        f"--{flag.replace('_', '-')} is at least {least}, got {getattr(given, flag)}"
        for flag, least in (("steps", 1), ("batch", 2), ("generations", 2), ("tokens", 1),
                            ("width", 1), ("learning_rate", 0), ("kl", 0))
        if not getattr(given, flag) >= least
    ]  # fmt: skip
    if not 0 < given.labelled <= 1:
        found.append(f"--labelled is a share of the groups, above 0 and up to 1: {given.labelled}")
    if not found and given.batch % given.generations:
        found.append(
            f"--batch {given.batch} is not a multiple of --generations {given.generations}: a step "
            "takes whole groups"
        )
    return found


def _train(given: argparse.Namespace, out: Path, urls: Mapping[str, str], *, learns: bool) -> int:
    feedback, method = ARMS[given.arm]
    settings: dict[str, Any] = {**method, "seed": given.seed, "width": given.width}
    if given.arm == "paper":
        settings["omega"] = {"kind": "cosine", "total_steps": given.steps, "floor": 0.6}
    if learns:
        settings |= {"audit_rate": given.labelled, "judge_share": 0.0}
        settings["controls"] = SHADOWS[feedback]
    policy_width = _hidden_size(given.policy) if feedback == "policy" else None
    prompts = _prompts(given.dataset, talks=_talks(given.policy))
    lines = Lines(out / "steps.jsonl")
    with contextlib.ExitStack() as held:
        ours = held.enter_context(Client(urls["reward"]))
        ours.create_run("lab", policy_hidden_size=policy_width, feedback=feedback, method=settings)
        if given.arm in STILL:
            ours.freeze("lab", reason="the control arm")
        # Streamed: a sample that is to be learnt from again must leave its states with the server.
        r2m = held.enter_context(R2M(urls["reward"], "lab", feedback="streamed"))
        rewards: dict[Any, float] = {r2m: 0.0 if given.arm == "labels" else 1.0}
        callbacks: list[Any] = [r2m, lines]
        for name in ("judge", "eval_judge"):
            if name not in urls:
                continue
            run = "lab" if learns and name == "judge" else None
            client = held.enter_context(Client(urls[name]))
            judge = Judge(client, ours, run, name)
            rewards[judge] = 0.0
            callbacks.insert(0, judge)
            if given.arm == "labels" and name == "judge":
                labels = Labels(
                    client,
                    share=given.labelled,
                    generations=given.generations,
                    seed=given.seed,
                )
                rewards[labels] = 1.0
        trainer: Any = RLOOTrainer(
            model=str(given.policy),
            reward_funcs=list(rewards),
            callbacks=callbacks,
            train_dataset=prompts,
            args=RLOOConfig(
                output_dir=str(out / "trainer"),
                max_steps=given.steps,
                per_device_train_batch_size=given.batch,
                num_generations=given.generations,
                max_completion_length=given.tokens,
                learning_rate=given.learning_rate,
                beta=given.kl,
                reward_weights=list(rewards.values()),
                logging_steps=1,
                save_strategy="no",
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                report_to=[],
                seed=given.seed,
            ),
        )
        trainer.train()
        controls = ours.run("lab").live.get("controls")
    last = lines.rows[-1] if lines.rows else {}
    kept = (
        *("r2m/reward", "r2m/vanilla_reward", "rewards/judge/mean", "rewards/eval_judge/mean"),
        *("kl", "r2m/spread_ratio"),
    )
    summary = {"arm": given.arm, "seed": given.seed, "steps": len(lines.rows)}
    summary |= {name: last[name] for name in kept if name in last}
    if controls is not None:
        summary["controls"] = {one["control"]: _said(one) for one in controls["arms"]}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))
    return 0


@contextlib.contextmanager
def _servers(given: argparse.Namespace, out: Path) -> Generator[Mapping[str, str]]:
    """The URLs of the reward model's server, and of the judges' that were given."""

    def serve(model: Path, name: str, head: Path | None) -> Any:
        where = {"state": out / f"{name}-state", "log": out / f"{name}.log"}
        return serving(model=str(model), head=head, http=None, grpc=None, **where)

    with contextlib.ExitStack() as held:
        yield {
            name: held.enter_context(serve(model, name, head)).http
            for name, model, head in (
                ("reward", given.reward, given.head),
                ("judge", given.judge, given.judge_head),
                ("eval_judge", given.eval_judge, given.eval_judge_head),
            )
            if model is not None
        }


def _hidden_size(policy: Path) -> int:
    return int(json.loads((policy / "config.json").read_text())["hidden_size"])


def _talks(policy: Path) -> bool:
    """Whether the policy has a chat template: without it one that was taught to talk is silent."""
    return bool(AutoTokenizer.from_pretrained(str(policy)).chat_template)


def _prompts(path: Path | None, *, talks: bool) -> Any:
    found: Any = Dataset.from_list([{"prompt": one} for one in PROMPTS * 16])
    if path is not None:
        found = load_dataset("json", data_files=str(path), split="train")
        if "prompt" not in found.column_names:
            raise UsageError(
                f"--dataset {path}: it needs a column `prompt`; it has "
                f"{', '.join(found.column_names)}"
            )
    if talks and isinstance(found[0]["prompt"], str):
        found = found.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    return found


def _said(arm: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("pairs", "head_accuracy", "accuracy", "difference", "low", "high")
    return {"verdict": arm["verdict"], **{key: arm["total"].get(key) for key in kept}}


def parser_of_arms() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="lab.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, required=True, help="a causal LM's folder")
    parser.add_argument("--reward", type=Path, required=True, help="the reward model's folder")
    parser.add_argument("--head", type=Path, help="its scoring head, where it is a causal LM")
    parser.add_argument("--judge", type=Path, help="a better reward model's folder: the gold")
    parser.add_argument("--judge-head", type=Path, help="its scoring head")
    parser.add_argument("--eval-judge", type=Path, help="another one, that no arm learns from")
    parser.add_argument("--eval-judge-head", type=Path, help="its scoring head")
    parser.add_argument("--dataset", type=Path, help="JSONL with a column `prompt`")
    parser.add_argument("--arm", choices=ARMS, default="labelled")
    parser.add_argument("--labelled", type=float, default=0.25, help="share of the groups")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="completions a step")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of a completion at most")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--kl", type=float, default=1e-3,
                        help="weight of the policy's KL; at 0 TRL does not log it")  # fmt: skip
    parser.add_argument("--width", type=int, default=1024, help="d of the cross attention")
    parser.add_argument("--cpu", action="store_true", help="without a GPU: to see it work")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lab" / "gpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
