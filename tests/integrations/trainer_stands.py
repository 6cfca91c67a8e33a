"""Stand-ins for trainers' objects, with their methods' arguments; of torch just tensors."""

from __future__ import annotations

import copy
import queue
import threading
from types import SimpleNamespace

import torch

WIDTH = 4


class Policy:
    """A model of one weight: a token's state is the token times the weight."""

    def __init__(self):
        self.weight = 1.0
        self.passes = 0
        self.hooks = []

    def __call__(self, sequences, attention_mask):
        self.passes += 1
        states = sequences.float().unsqueeze(-1).repeat(1, 1, WIDTH) * self.weight
        for hook in self.hooks:
            hook(sequences, states, attention_mask)
        return states.sum(-1)


class Recorder:
    """As r2m_client.capture's: states without padding, of each sample that went through."""

    def __init__(self, model):
        self._model, self._found, self._ids = model, [], []

    def __enter__(self):
        self._model.hooks.append(self._hear)
        return self

    def __exit__(self, *raised):
        self._model.hooks.remove(self._hear)

    def _hear(self, sequences, states, attention_mask):
        for ids, row, mask in zip(sequences, states, attention_mask, strict=True):
            self._ids.append(ids[mask.bool()])
            self._found.append(row[mask.bool()])

    def token_ids(self):
        return self._ids

    def states(self):
        return self._found


class Tokenizer:
    """A letter a token; 1 is a special token."""

    def decode(self, tokens, skip_special_tokens=True):
        assert not skip_special_tokens
        return "".join("<s>" if one == 1 else chr(one) for one in tokens)


def tokens_of(text):
    return [1, *(ord(one) for one in text)]


def padded(rows, side="right"):
    """Sequences and their mask, [B, T]."""
    longest = max(map(len, rows))
    blank = [[0] * (longest - len(row)) for row in rows]
    both = list(zip(rows, blank, strict=True))
    joined = [row + pad if side == "right" else pad + row for row, pad in both]
    real = [[1] * len(row) for row in rows]
    masks = [
        one + pad if side == "right" else pad + one
        for one, (_, pad) in zip(real, both, strict=True)
    ]
    return torch.tensor(joined), torch.tensor(masks)


class Threads:
    """Ranks that are threads: every call is made by all of them."""

    def __init__(self, count):
        self._count = count
        self._barrier = threading.Barrier(count, timeout=20)
        self._values = [None] * count

    def rank(self, number):
        return _Thread(self, number)


class _Thread:
    def __init__(self, world, number):
        self._world, self._number, self.main = world, number, number == 0

    def gather(self, value):
        world = self._world
        world._values[self._number] = value
        world._barrier.wait()
        found = list(world._values) if self.main else None
        world._barrier.wait()
        return found

    def broadcast(self, value):
        world = self._world
        if self.main:
            world._values[0] = value
        world._barrier.wait()
        found = copy.copy(world._values[0])
        world._barrier.wait()
        return found


def on_all(ranks, work):
    """Run `work(number)` as each rank; what each gave, or raised."""
    found = queue.SimpleQueue()

    def run(number):
        try:
            found.put((number, work(number)))
        except BaseException as error:
            found.put((number, error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(ranks)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    told = dict(found.get_nowait() for _ in range(ranks))
    return [told[number] for number in range(ranks)]


class PolicyModelActor:
    """OpenRLHF's, below Ray: `forward` and `fit` with its arguments."""

    def __init__(self, events):
        self.events = events
        self.actor = SimpleNamespace(model=Policy())
        self.tokenizer = Tokenizer()
        self.strategy = SimpleNamespace(
            args=SimpleNamespace(
                ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
                train=SimpleNamespace(async_enable=False),
            )
        )
        self.trainer = SimpleNamespace(
            micro_train_batch_size=2,
            replay_buffer=SimpleNamespace(items=[]),
        )

    def forward(
        self, sequences, action_mask=None, attention_mask=None, packed_seq_lens=None,
        mm_train_inputs_list=None,
    ):  # fmt: skip
        self.events.append("forward")
        return self.actor.model(sequences, attention_mask)

    def append(self, experience):
        self.trainer.replay_buffer.items += [
            SimpleNamespace(
                sequences=row[: int(mask.sum())],
                attention_mask=mask[: int(mask.sum())],
                action_mask=None,
                prompts=[prompt],
            )
            for row, mask, prompt in zip(
                experience.sequences, experience.attention_mask, experience.prompts, strict=True
            )
        ]

    def fit(self, kl_ctl=0):
        self.events.append("ppo_train")
        self.actor.model.weight += 0.5
        self.trainer.replay_buffer.items.clear()
        self.events.append("clear")
        return {"policy_loss": 0.1}


class RemoteExperienceMaker:
    """OpenRLHF's, as far as rewards go: every batch goes through every model."""

    def __init__(self, actor_model_group, events):
        self.actor_model_group, self.events = actor_model_group, events

    def make_experience(self, samples_list):
        self._flatten_results(
            self.actor_model_group.async_run_method_batch(
                method_name="forward",
                sequences=[one.sequences for one in samples_list],
                action_mask=[one.action_mask for one in samples_list],
                attention_mask=[one.attention_mask for one in samples_list],
            ),
            1,
        )
        return samples_list

    def _flatten_results(self, refs, duplicate_factor):
        return [one for part in refs[::duplicate_factor] for one in part]


class Group:
    """RayActorGroup: chunks of a batch, in order, one for each actor."""

    def __init__(self, actors):
        self.actors = actors

    def async_run_method_batch(self, method_name, **kwargs):
        total = len(next(iter(kwargs.values())))
        chunk = -(-total // len(self.actors))
        return [
            [
                getattr(actor, method_name)(**{key: value[i] for key, value in kwargs.items()})
                for i in range(number * chunk, min((number + 1) * chunk, total))
            ]
            for number, actor in enumerate(self.actors)
        ]
