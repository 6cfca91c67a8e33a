"""What a Recorder takes is what `output_hidden_states=True` gives, however the policy is run."""

import copy
import threading

import pytest
import torch
from policies import LENGTHS, WIDTH, alone, padded, policy, texts
from support.models import KINDS

from r2m_client import Sample
from r2m_client.capture import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, its own


@pytest.fixture(params=KINDS)
def model(request):
    return policy(request.param)


def check(found, model, ids, *, exact=None):
    """Exactly the rows of the same pass, and each text's own states but for rounding."""
    assert [list(one.shape) for one in found] == [[len(one), WIDTH] for one in ids]
    for one, own in zip(found, ids, strict=True):
        torch.testing.assert_close(one, alone(model, own), rtol=1e-4, atol=1e-4)
    for one, same in zip(found, exact or found, strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded(model, side):
    ids = texts()
    tokens, mask = padded(ids, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        out = model(tokens, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    exact = [row[keep.bool()] for row, keep in zip(out.hidden_states[-1], mask, strict=True)]
    check(taken.states(), model, ids, exact=exact)
    assert (taken.tokens, taken.last_token) == (list(LENGTHS), True)
    assert [one.tolist() for one in taken.token_ids()] == [one.tolist() for one in ids]


def test_without_a_mask_all_tokens_count(model):
    ids = texts(lengths=(7, 7))
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        model(torch.stack(ids))
    check(taken.states(), model, ids)


def test_packed_by_positions_or_bounds(model):
    ids = texts()
    packed = torch.cat(ids)[None]
    positions = torch.cat([torch.arange(len(one)) for one in ids])[None]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    with Recorder(model) as recorder, torch.no_grad():
        with recorder.recording() as taken:
            out = model(packed, position_ids=positions, output_hidden_states=True, use_cache=False)
        with recorder.recording() as bounded:
            model(packed, position_ids=positions, use_cache=False, cu_seq_lens_q=bounds.int())
    check(taken.states(), model, ids, exact=out.hidden_states[-1][0].split(LENGTHS))
    assert all(map(torch.equal, bounded.states(), taken.states()))


def test_micro_batches_one_behind_the_other(model):
    ids = texts()
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        for part in (ids[:2], ids[2:]):
            tokens, mask = padded(part, "right")
            model(tokens, attention_mask=mask)
    check(taken.states(), model, ids)


def test_generation(model):
    """The last sampled token is never fed: each text has one state less than tokens."""
    prompts = texts()
    tokens, mask = padded(prompts, "left")
    with Recorder(model) as recorder, recorder.recording() as taken:
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False,
                              eos_token_id=None)  # fmt: skip
    full = [row[tokens.shape[1] - len(own) :] for row, own in zip(made, prompts, strict=True)]
    assert (taken.last_token, taken.tokens) == (False, [n + 6 for n in LENGTHS])
    check(taken.states(), model, [one[:-1] for one in full])


def test_a_generation_that_ends_early_ends_there(model):
    prompts = texts()
    tokens, mask = padded(prompts, "left")
    free = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False,
                          eos_token_id=None)  # fmt: skip
    end = int(free[1, tokens.shape[1] + 2])
    model.generation_config.eos_token_id = [end]
    with Recorder(model) as recorder, recorder.recording() as taken:
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
    texts_made = []
    for row, own in zip(made[:, tokens.shape[1] :].tolist(), prompts, strict=True):
        row = row[: row.index(end) + 1] if end in row else row
        texts_made.append(torch.cat([own, torch.tensor(row)]))
    counts = [len(one) for one in texts_made]
    assert counts[1] <= LENGTHS[1] + 3 < LENGTHS[1] + 6
    assert taken.tokens == counts
    check(taken.states(), model, [one[:-1] for one in texts_made])
    check(taken.expect(counts).states(), model, [one[:-1] for one in texts_made])
    with pytest.raises(ValueError, match=r"sample 3: .* had 1[78] tokens, its text has 30"):
        taken.expect([*counts[:3], 30])


def test_an_earlier_turn_may_hold_the_ending_token(model):
    model.generation_config.eos_token_id = 7
    cache = None
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        for fed in ([3, 4, 5], [6], [7], [8, 9], [10], [7], [0]):
            out = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    assert (taken.tokens, taken.last_token) == ([9], False)
    check(taken.states(), model, [torch.tensor([3, 4, 5, 6, 7, 8, 9, 10])])


def test_a_prefill_alone_has_no_state_of_the_sampled_token(model):
    ids = texts(lengths=(4, 6))
    tokens, mask = padded(ids, "left")
    with Recorder(model) as recorder, recorder.recording() as taken:
        model.generate(tokens, attention_mask=mask, max_new_tokens=1, eos_token_id=None)
    taken.expect([5, 7])
    assert (taken.last_token, taken.tokens) == (False, [5, 7])
    check(taken.states(), model, ids)


def test_generations_side_by_side_are_told_apart_by_their_caches(model):
    first, second = texts(lengths=(4, 4)), texts(seed=2, lengths=(4, 4))
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        caches = [model(torch.stack(ids), use_cache=True).past_key_values
                  for ids in (first, second)]  # fmt: skip
        for step in range(2):
            for cache in caches:
                model(torch.full((2, 1), 7 + step), past_key_values=cache, use_cache=True)
    check(taken.states(), model, [torch.cat([one, torch.tensor([7, 8])])
                                  for one in (*first, *second)])  # fmt: skip


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_gradients_and_checkpointing_record_once(model, reentrant, whole):
    ids = texts()
    tokens, mask = padded(ids, "right")
    model.train()
    if not whole:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    with Recorder(model) as recorder, recorder.recording() as taken:
        if whole:

            def run(embedded):
                return model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits

            embedded = model.get_input_embeddings()(tokens)
            logits = torch.utils.checkpoint.checkpoint(run, embedded, use_reentrant=reentrant)
        else:
            logits = model(tokens, attention_mask=mask, use_cache=False).logits
        logits.square().mean().backward()
    assert len(taken.passes) == 1
    assert not any(one.requires_grad for one in taken.states())
    model.eval()
    check(taken.states(), model, ids)


def test_lora_is_the_adapted_policy():
    from peft import LoraConfig, get_peft_model

    model = policy("llama")
    before = [alone(model, one) for one in texts()]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    ids = texts()
    tokens, mask = padded(ids, "right")
    with Recorder(adapted) as recorder, recorder.recording() as taken, torch.no_grad():
        adapted(tokens, attention_mask=mask)
    check(taken.states(), adapted, ids)
    assert not torch.allclose(taken.states()[0], before[0], atol=1e-2)


def test_compiled():
    model = policy("llama")
    torch._dynamo.reset()
    ids = texts()
    tokens, mask = padded(ids, "right")
    run = torch.compile(model, backend="eager")
    with Recorder(run) as recorder, torch.no_grad():
        run(tokens, attention_mask=mask)  # traced while nobody records
        for _ in range(2):
            with recorder.recording() as taken:
                run(tokens, attention_mask=mask)
            check(taken.states(), model, ids)
    run(tokens, attention_mask=mask)  # closed: the traced code runs on


def test_compiled_before_the_recorder_was_made():
    """Either the hooks are seen, or the reader is told."""
    model = policy("llama")
    torch._dynamo.reset()
    tokens, mask = padded(texts(), "right")
    run = torch.compile(model, backend="eager")
    with torch.no_grad():
        run(tokens, attention_mask=mask)
        with Recorder(run) as recorder, recorder.recording() as taken:
            run(tokens, attention_mask=mask)
    try:
        found = taken.states()
    except RuntimeError as error:
        assert "compiled" in str(error)
    else:
        check(found, model, texts())


def test_only_the_passes_that_are_wanted(model):
    ids = texts(lengths=(4, 4))
    with Recorder(model) as recorder:
        with recorder.recording(lambda one: not one.grad and not one.caching) as taken:
            model(torch.stack(ids), use_cache=False)
            with torch.no_grad():
                model.generate(torch.stack(ids), max_new_tokens=2)
                model(torch.stack(ids[:1]), use_cache=False)
        check(taken.states(), model, ids[:1])
        model(torch.stack(ids))
        assert len(taken.passes) == 1


def test_recordings_within_each_other_and_threads(model):
    ids = texts()
    with Recorder(model) as recorder, recorder.recording() as outer, torch.no_grad():
        with recorder.recording() as inner:
            model(ids[0][None])
        threads = [threading.Thread(target=_run, args=(model, one)) for one in ids[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check(inner.states(), model, ids[:1])
    found = {len(one): one for one in outer.states()}
    check([found[length] for length in LENGTHS], model, ids)


def _run(model, ids):
    with torch.no_grad():
        model(ids[None])


def test_a_copy_of_the_policy_is_not_the_policy(model):
    with Recorder(model) as recorder, recorder.recording() as taken:
        reference = copy.deepcopy(model)
        reference(texts()[0][None])
        with pytest.raises(RuntimeError, match="no pass of the policy was recorded"):
            taken.states()


def test_a_pass_that_fails_leaves_nothing_behind(model):
    ids = texts()
    layer = model.get_decoder().layers[1]
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        handle = layer.register_forward_pre_hook(_fail)
        with pytest.raises(MemoryError):
            model(ids[0][None])
        handle.remove()
        model(ids[1][None])
    check(taken.states(), model, ids[1:2])
    with Recorder(model) as recorder, torch.no_grad():
        layer.register_forward_pre_hook(_fail)
        with recorder.recording() as late, pytest.raises(MemoryError):
            model(ids[0][None])
        layer._forward_pre_hooks.clear()
        model(ids[0][None])
        assert late.passes == ()


def _fail(*_):
    raise MemoryError


def test_onto_samples_with_the_convention(model):
    ids = texts(lengths=(4, 6))
    tokens, mask = padded(ids, "right")
    samples = [Sample("a", "x", "y"), Sample("b", "x", "z")]
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        model(tokens, attention_mask=mask)
    first, second = taken.onto(samples)
    assert (first.id, first.response, second.id) == ("a", "y", "b")
    assert (second.hidden_state, second.last_token, second.tokens) == ("post_norm", True, 6)
    assert second.hidden_states.shape == (6, WIDTH)
    with pytest.raises(ValueError, match="2 samples, 1 were given"):
        taken.onto(samples[:1])
    taken.free()
    with pytest.raises(RuntimeError, match="no pass"):
        taken.states()


def test_states_are_views_and_freed(model):
    ids = texts()
    tokens, mask = padded(ids, "left")
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        model(tokens, attention_mask=mask)
    kept = taken.passes[0].states
    assert {one.untyped_storage().data_ptr() for one in taken.states()} == {
        kept.untyped_storage().data_ptr()
    }


def test_the_wrong_layer(model):
    inner = model.get_decoder()
    wrong = inner.layers[0].input_layernorm
    for norm in (wrong, next(n for n, m in model.named_modules() if m is wrong)):
        _refused(model, norm, "is not the policy's final norm")
    _refused(model, inner.layers[0], "is not the policy's final norm")


def _refused(model, norm, words):
    with (
        Recorder(model, norm) as recorder,
        recorder.recording(),
        pytest.raises(ValueError, match=words),
    ):
        model(texts()[0][None])


def test_a_policy_whose_width_changed(model):
    model.get_decoder().config.hidden_size = WIDTH + 16
    _refused(model, None, rf"gives \[1, 5, {WIDTH}\].*64\]: another layer, or")


def test_a_norm_that_is_not_there(model):
    with pytest.raises(ValueError, match=r"no module named 'model\.nothing'"):
        Recorder(model, "model.nothing")
    with pytest.raises(ValueError, match="not part of the policy's"):
        Recorder(model, torch.nn.LayerNorm(WIDTH))
    with pytest.raises(ValueError, match="no final norm found in Linear"):
        Recorder(torch.nn.Linear(2, 2))


def test_counts_that_are_not_the_texts(model):
    tokens, mask = padded(texts(), "left")
    with Recorder(model) as recorder, recorder.recording() as taken, torch.no_grad():
        model(tokens, attention_mask=mask)
    with pytest.raises(ValueError, match="sample 1: the policy's passes had 9 tokens, its text"):
        taken.expect([5, 11, 1, 12])
    with pytest.raises(ValueError, match="4 samples, there are 3 texts"):
        taken.expect([5, 9, 1])
    assert taken.expect([5, 9, 1, 12]).last_token
    assert not taken.expect([5, 9, 1, 13]).last_token  # the last one's last token was not fed
    assert [len(one) for one in taken.states()] == [4, 8, 0, 12]
    assert not taken.expect([6, 9, 1, 12]).last_token


def test_passes_that_do_not_say_whose_tokens_they_are(model):
    tokens, mask = padded(texts(), "left")
    with Recorder(model) as recorder, torch.no_grad():
        with recorder.recording() as taken:
            cache = model(tokens, attention_mask=mask, use_cache=True).past_key_values
        with recorder.recording() as late:
            model(tokens[:, :1], past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="went on after 12 tokens whose states were not"):
            late.states()
        taken.passes[0].mask = mask * 2
        with pytest.raises(ValueError, match="not one of zeros and ones"):
            taken.states()
        taken.passes[0].mask = mask[:, None, None, :]
        with pytest.raises(ValueError, match=r"not \[batch, tokens\]"):
            taken.states()
        with recorder.recording() as bounded:
            model(torch.cat(texts())[None], cu_seq_lens_q=torch.tensor([0, 40]), use_cache=False)
        with pytest.raises(ValueError, match="goes from 0 to 40, the pass has 1 rows of 27"):
            bounded.states()
