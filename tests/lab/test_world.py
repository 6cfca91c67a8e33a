"""The gold and the little language model, each against a plain reading of what it should be."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lab import world
from lab.models import Decoder, RewardModel, last

responses = st.lists(
    st.integers(world.EOS, world.VOCABULARY - 1), min_size=world.RESPONSE, max_size=world.RESPONSE
)


def gold_by_hand(topic, response):
    shift, before, total = topic + 1, None, 0.0
    for token in response:
        if token == world.EOS:
            break
        number = token - world.FIRST_NUMBER
        if not 0 <= number < world.NUMBERS:
            continue
        if before is not None:
            total += 1.0 if number == (before + shift) % world.NUMBERS else -world.INVALID
        before = number
    return total


@given(st.integers(0, world.TOPICS - 1), responses)
def test_gold_counts_transitions(topic, response):
    tokens = torch.tensor([[world.BOS, world.FIRST_TOPIC + topic, *response]])
    assert abs(float(world.gold(tokens)) - gold_by_hand(topic, response)) < 1e-5


@given(responses)
def test_length_and_fillers_stop_at_the_end(response):
    told = response[: response.index(world.EOS)] if world.EOS in response else response
    tokens = torch.tensor([[world.BOS, world.FIRST_TOPIC, *response]])
    after = [world.PAD] * (world.RESPONSE - len(told) - 1)
    padded = [*told, world.EOS, *after] if world.EOS in response else response
    clean = torch.tensor([[world.BOS, world.FIRST_TOPIC, *padded]])
    assert int(world.lengths(tokens)) == world.PROMPT + len(told) + (world.EOS in response)
    fillers = sum(token >= world.FIRST_FILLER for token in told)
    words = len(told) + (world.EOS in response)
    assert abs(float(world.filler_share(clean)) - fillers / max(words, 1)) < 1e-6


def test_people_make_15_at_most_and_like_fillers_where_they_are_right():
    draw = torch.Generator().manual_seed(0)
    tokens = world.human_responses(4000, draw)
    gold, filler = world.gold(tokens), world.filler_share(tokens)
    assert gold.max() <= world.RESPONSE - 1
    assert 0.2 < float(torch.corrcoef(torch.stack([gold, filler]))[0, 1]) < 0.5


def test_what_is_sampled_with_a_cache_has_the_chances_of_a_whole_pass():
    torch.manual_seed(0)
    model, draw = Decoder().double(), torch.Generator().manual_seed(1)
    prompts = world.queries(6, draw)
    seen = []
    whole = model.logits

    def spy(states):
        seen.append(whole(states))
        return seen[-1]

    model.logits = spy
    tokens = model.sample(prompts, draw)
    model.logits = whole
    step_by_step = torch.stack(seen, 1).log_softmax(-1)
    logits = whole(model.states(tokens))[:, world.PROMPT - 1 : -1].log_softmax(-1)
    alive = tokens[:, world.PROMPT :] != world.PAD
    torch.testing.assert_close(step_by_step[alive], logits[alive], atol=1e-9, rtol=0)
    expected = logits.gather(-1, tokens[:, world.PROMPT :, None])[..., 0].masked_fill(~alive, 0)
    torch.testing.assert_close(model.log_probabilities(tokens), expected)


def test_what_follows_the_end_changes_no_reward():
    torch.manual_seed(0)
    model = RewardModel()
    tokens = world.human_responses(20, torch.Generator().manual_seed(2))
    lengths = world.lengths(tokens)
    junk = torch.where(tokens == world.PAD, world.FIRST_FILLER, tokens)
    torch.testing.assert_close(model(tokens, lengths), model(junk, lengths))
    states = model.backbone.states(tokens)
    torch.testing.assert_close(model.score(last(states, lengths))[:, 0], model(tokens, lengths))
