"""An RLOO trainer of one's own around R2M Serve, in one file.

    r2m serve --model REWARD_MODEL &
    python examples/own_loop.py --policy POLICY --steps 6

Each step: generate a group of answers a prompt; score it in the background while the next group is
generated; update the policy; align the reward head with the updated policy's hidden states, which
never leave this process (split mode); give outside labels to the samples that the server picks.
Every other step waits for each score instead, so the last line says what the overlap is worth.

`--resume N` goes on from the policy of step N: the run is rolled back to that step, on a branch of
its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2m_client import Client, Group, Label, Sample, ScoreResult
from r2m_client.capture import Recorder, Taken
from r2m_client.split import Context

PROMPTS = [
    "Why is the sky blue?",
    "How do I bake bread?",
    "Write two sentences about the sea.",
    "What is a prime number?",
]


def main() -> None:
    """Train."""
    args = arguments()
    torch.manual_seed(args.seed)
    where = args.out / f"step-{args.resume}" if args.resume else args.policy
    if args.resume and not where.is_dir():
        there = ", ".join(sorted(folder.name for folder in args.out.glob("step-*"))) or "nothing"
        sys.exit(f"no policy at {where}; {args.out} has {there}")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.policy)
    policy: Any = AutoModelForCausalLM.from_pretrained(where)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr)
    recorder = Recorder(policy)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with Client(args.url, timeout=300) as client:
        client.create_run(
            args.run,
            policy_hidden_size=policy.config.get_text_config().hidden_size,
            method={"audit_rate": 0.25},  # of the groups are marked for outside labels
        )
        if args.resume:  # other rollouts will come under the steps that follow: a branch for them
            client.rollback(args.run, to_step=args.resume, reason="policy of an older checkpoint")
        first = client.run(args.run).next_step
        if first > 1 and not args.resume:
            sys.exit(
                f"run {args.run} is at step {first - 1}, and its head follows another policy: give "
                f"another --run, or --resume {first - 1} to go on with the policy of that step"
            )
        print("step  overlap  seconds  reward  vanilla  gold   head  verdict")
        for step in range(first, first + args.steps):
            overlap, began = step % 2 == 1, time.perf_counter()
            # 1. Rollouts. A future a group: it is scored while the next one is generated.
            rollouts: list[tuple[Tensor, Tensor, int, list[Sample]]] = []
            futures: list[Future[ScoreResult]] = []
            for place, prompt in enumerate(PROMPTS):
                ids, mask, start = generate(policy, tokenizer, prompt, args)
                samples = [
                    Sample(f"{step}-{place}-{k}", prompt, text)
                    for k, text in enumerate(texts(tokenizer, ids, mask, start))
                ]
                samples, _ = record(recorder, policy, ids, mask, samples)
                futures.append(
                    client.score_async(samples, run=args.run, step=step, feedback="split")
                )
                rollouts.append((ids, mask, start, samples))
                if not overlap:
                    futures[-1].result()
            scored = [future.result() for future in futures]
            # 2. The policy: REINFORCE with the others of the group as the baseline.
            optimizer.zero_grad()
            for (ids, mask, start, _), result in zip(rollouts, scored, strict=True):
                loss = rloo_loss(policy, ids, mask, start, result.rewards)
                (loss / len(rollouts)).backward()
            optimizer.step()
            # 3. The reward head, with the hidden states of the policy as it is now.
            groups: list[Group] = []
            taken: list[Taken] = []
            for place, (ids, mask, _, samples) in enumerate(rollouts):
                fresh, states = record(recorder, policy, ids, mask, samples)
                groups.append(Group(f"{step}-{place}", fresh))
                taken.append(states)
            context = Context.joined(result.context for result in scored)
            aligned = client.align(
                args.run, step=step, groups=groups, feedback="split", context=context
            )
            for states in taken:
                states.free()
            # 4. Outside labels for the samples the server has marked: people, a judge, a test.
            by_id = {one.id: one for group in groups for one in group.samples}
            marked = [s.id for result in scored for s in result.scores if s.audit]
            if marked:
                client.add_labels(
                    args.run, [Label(id=n, grade=gold(by_id[n].response)) for n in marked]
                )
            seconds[overlap].append(time.perf_counter() - began)
            good = [s for result in scored for s in result.scores if s.error is None]
            print(
                f"{step:4d}  {'yes' if overlap else 'no':7s}  {seconds[overlap][-1]:7.2f}"
                f"  {mean(s.reward for s in good):6.3f}"
                f"  {mean(s.vanilla_reward for s in good):7.3f}"
                f"  {mean(gold(one.response) for one in by_id.values()):4.2f}"
                f"  {aligned.head:5d}  {aligned.verdict}",
                flush=True,
            )
            policy.save_pretrained(args.out / f"step-{step}")
    if all(seconds.values()):
        print(
            f"a step takes {statistics.median(seconds[True]):.2f} s with scores in the background, "
            f"{statistics.median(seconds[False]):.2f} s without"
        )


def generate(
    policy: Any, tokenizer: Any, prompt: str, args: argparse.Namespace
) -> tuple[Tensor, Tensor, int]:
    """Token ids [K, T] of prompt + answers, their mask, and where the answers start."""
    text = prompt
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    given = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    ids = policy.generate(
        **given,
        do_sample=True,
        num_return_sequences=args.group,
        max_new_tokens=args.tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    start = given["input_ids"].shape[1]
    ended = (ids[:, start:] == tokenizer.eos_token_id).cumsum(1)
    answer = (ended == 0) | ((ended == 1) & (ids[:, start:] == tokenizer.eos_token_id))
    return ids, torch.cat([torch.ones_like(ids[:, :start]), answer.long()], 1), start


def texts(tokenizer: Any, ids: Tensor, mask: Tensor, start: int) -> list[str]:
    """The answers without what ends them."""
    rows = [row[keep.bool()] for row, keep in zip(ids[:, start:], mask[:, start:], strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


@torch.no_grad()
def record(
    recorder: Recorder, policy: Any, ids: Tensor, mask: Tensor, samples: Sequence[Sample]
) -> tuple[list[Sample], Taken]:
    """The samples with the policy's hidden states, from one pass over prompt + answer."""
    with recorder.recording() as taken:
        policy(input_ids=ids, attention_mask=mask)
    return taken.onto(samples), taken


def rloo_loss(
    policy: Any, ids: Tensor, mask: Tensor, start: int, rewards: Sequence[float | None]
) -> Tensor:
    """−Σ advantage · log π of a group; samples without a reward are left out."""
    known = {k: reward for k, reward in enumerate(rewards) if reward is not None}
    logits = policy(input_ids=ids, attention_mask=mask).logits[:, start - 1 : -1].float()
    if len(known) < 2:
        return logits.sum() * 0.0
    given = torch.tensor(list(known.values()))
    advantages = given - (given.sum() - given) / (len(known) - 1)
    chosen = ids[:, start:].unsqueeze(-1)
    log_probs = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1) * mask[:, start:]
    return -(advantages * log_probs.sum(1)[list(known)]).mean()


def gold(answer: str | None) -> float:
    """What the reward should be like; here: how few words are repeated."""
    words = (answer or "").lower().split()
    return len(set(words)) / len(words) if words else 0.0


def mean(values: Iterable[float | None]) -> float:
    """Of those that there are."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else float("nan")


def arguments() -> argparse.Namespace:
    """What it was asked to do."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default="grpc://127.0.0.1:50051", help="or http://…")
    parser.add_argument("--policy", required=True, help="a causal LM: folder or hub id")
    parser.add_argument("--run", default="own-loop", help="created where there is none")
    parser.add_argument("--steps", type=int, default=6, help="to take, from where the run stands")
    parser.add_argument("--resume", type=int, metavar="N", help="go on from the policy of step N")
    parser.add_argument("--group", type=int, default=4, help="answers a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/own-loop"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
