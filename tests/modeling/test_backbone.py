"""The backbone on real transformers architectures: RTEs, fingerprints, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForSequenceClassification,
)

from r2m_service.modeling.loading import ModelRefusedError, load_backbone
from r2m_service.modeling.text import TextEncoder, TextError, TextFault

TEXTS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Hi", "Hello."),
    ("Write a short poem about the sea, please.", "The sea is wide and blue. " * 3),
]


@pytest.fixture(scope="module", params=models.KINDS)
def kind(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / request.param
    return models.save_reward_model(folder, request.param)


def ids_of(backbone):
    return [backbone.text.pair(p, r).ids for p, r in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
def test_vanilla_rewards_equal_transformers_own(kind, side):
    backbone = load_backbone(str(kind))
    ids = ids_of(backbone)
    encoded = backbone.encode(ids)
    found = backbone.vanilla(torch.stack([one.rte_R for one in encoded]))
    model = AutoModelForSequenceClassification.from_pretrained(kind).eval()
    tokenizer = AutoTokenizer.from_pretrained(kind, padding_side=side)
    batch = tokenizer.pad({"input_ids": [list(one) for one in ids]}, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits[:, 0]
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_rte_does_not_depend_on_the_batch(kind):
    backbone = load_backbone(str(kind))
    ids = ids_of(backbone)
    together = torch.stack([one.rte_R for one in backbone.encode(ids)])
    alone = torch.stack([backbone.encode([one])[0].rte_R for one in ids])
    rewards, expected = backbone.vanilla(together), backbone.vanilla(alone)
    assert (rewards - expected).abs().max() < 1e-5 * expected.std()
    assert (together - alone).abs().max() < 1e-4


def test_states_end_in_the_rte(reward_model):
    backbone = load_backbone(str(reward_model))
    ids = ids_of(backbone)
    for one, text in zip(backbone.encode(ids, states=[True] * len(ids)), ids, strict=True):
        assert one.states_SR.shape == (len(text), models.WIDTH_R)
        assert torch.equal(one.states_SR[-1], one.rte_R)


def test_gemma2_runs_with_eager_attention(tmp_path):
    models.save_reward_model(tmp_path / "gemma2", "gemma2")
    backbone = load_backbone(str(tmp_path / "gemma2"))
    assert torch.isfinite(backbone.encode(ids_of(backbone))[0].rte_R).all()


def test_a_causal_lm_with_a_head_file_is_a_reward_model(tmp_path, reward_model):
    tensors = load_file(reward_model / "model.safetensors")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(models.config("llama"))
    lm.load_state_dict(
        {name: t for name, t in tensors.items() if name.startswith("model.")}, strict=False
    )
    lm.save_pretrained(tmp_path / "lm")
    models.tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelRefusedError, match=r"LlamaForCausalLM.*--head"):
        load_backbone(str(tmp_path / "lm"))
    save_file({"head.weight": tensors["score.weight"]}, tmp_path / "head.safetensors")
    backbone = load_backbone(str(tmp_path / "lm"), head_file=tmp_path / "head.safetensors")
    whole = load_backbone(str(reward_model))
    for ids in ids_of(whole):
        ours, theirs = (b.vanilla(b.encode([ids])[0].rte_R[None]) for b in (backbone, whole))
        assert torch.equal(ours, theirs)
    with pytest.raises(ModelRefusedError, match="own scoring head"):
        load_backbone(str(reward_model), head_file=tmp_path / "head.safetensors")
    save_file({"head.weight": torch.zeros(1, 7)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ModelRefusedError, match=r"shape \[1, 32\]"):
        load_backbone(str(tmp_path / "lm"), head_file=tmp_path / "wrong.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelRefusedError, match="no safetensors file"):
        load_backbone(str(tmp_path / "lm"), head_file=tmp_path / "junk.safetensors")
    with pytest.raises(ModelRefusedError, match="no head file"):
        load_backbone(str(tmp_path / "lm"), head_file=tmp_path / "nowhere.safetensors")


def test_another_kind_of_model_is_refused_with_its_name(tmp_path, reward_model):
    models.save_reward_model(tmp_path / "two", num_labels=2)
    with pytest.raises(ModelRefusedError, match=r"LlamaForSequenceClassification.*2 labels"):
        load_backbone(str(tmp_path / "two"))
    t5 = T5Config(
        vocab_size=320, d_model=32, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForSequenceClassification(t5).save_pretrained(tmp_path / "t5")
    models.tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelRefusedError, match=r"encoder-decoder \(T5ForSequenceClassification"):
        load_backbone(str(tmp_path / "t5"))
    with pytest.raises(ModelRefusedError, match="no folder"):
        load_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ModelRefusedError, match="dtype"):
        load_backbone(str(reward_model), dtype="int8")


def test_a_scoring_head_that_is_missing_is_not_made_up(tmp_path):
    folder = models.save_reward_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRefusedError, match=r"lacks 1 .*score\.weight"):
        load_backbone(str(folder))


def test_a_foreign_tokenizer_is_refused(tmp_path):
    folder = models.save_reward_model(tmp_path / "model", vocab_size=100)
    with pytest.raises(ModelRefusedError, match="do not belong together"):
        load_backbone(str(folder))


def test_fingerprint_covers_all_that_changes_a_reward(tmp_path, reward_model):
    first = load_backbone(str(reward_model)).fingerprint
    assert load_backbone(str(reward_model)).fingerprint == first
    prints = {
        "first": first,
        "dtype": load_backbone(str(reward_model), dtype="bfloat16").fingerprint,
        "length": load_backbone(str(reward_model), max_length=64).fingerprint,
        "weights": load_backbone(
            str(models.save_reward_model(tmp_path / "weights", seed=1))
        ).fingerprint,
        "template": load_backbone(
            str(models.save_reward_model(tmp_path / "template", template="{{ 'x' }}"))
        ).fingerprint,
    }
    folder = models.save_reward_model(tmp_path / "config")
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(config))
    prints["config"] = load_backbone(str(folder)).fingerprint
    assert len(set(prints.values())) == len(prints), prints
    # The same model in another folder is the same model.
    copy = models.save_reward_model(tmp_path / "copy")
    assert load_backbone(str(copy)).fingerprint == first


def test_text_is_encoded_as_the_template_says_without_a_second_bos(reward_model):
    text = load_backbone(str(reward_model)).text
    bos = text.tokenizer.bos_token_id
    chat = text.pair("Hi", "Hello.").ids
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert list(chat) == text.tokenizer.apply_chat_template(turns)["input_ids"]
    assert chat[0] == bos
    assert chat.count(bos) == 1
    raw = text.pair("Hi", "Hello.", raw=True).ids
    assert text.tokenizer.decode(raw) == "HiHello."


def test_a_raw_text_that_brings_its_bos_has_one():
    from tokenizers.processors import TemplateProcessing

    adds = models.tokenizer()
    bos = adds.bos_token_id
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    text = TextEncoder(adds, 128, 320)
    plain = text.pair("", "Hello.", raw=True).ids
    assert plain[0] == bos
    assert plain.count(bos) == 1
    assert text.pair("<s>He", "llo.", raw=True).ids == plain
    assert text.pair("<s><s>", "Hello.", raw=True).ids.count(bos) == 2  # only what is added again
    for written in ("Hello.", "<s>Hello.", "Hello.</s>"):
        bare = text.pair("", written, raw=True, special=False).ids
        assert bare == tuple(adds(written, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("prompt", "response", "raw", "fault"),
    [
        ("", "x", False, TextFault.EMPTY),
        ("x", "", False, TextFault.EMPTY),
        ("x", "", True, TextFault.EMPTY),
        ("x", "\ud800", False, TextFault.INVALID),
        ("x", "\ud800", True, TextFault.INVALID),
        ("x", "word " * 200, False, TextFault.TOO_LONG),
    ],
)
def test_texts_without_a_reward_say_why(reward_model, prompt, response, raw, fault):
    text = load_backbone(str(reward_model)).text
    with pytest.raises(TextError) as caught:
        text.pair(prompt, response, raw=raw)
    assert caught.value.fault == fault


def test_no_template_is_said_and_raw_still_works(tmp_path):
    text = load_backbone(str(models.save_reward_model(tmp_path / "bare", template=None))).text
    with pytest.raises(TextError, match="format raw") as caught:
        text.pair("a", "b")
    assert caught.value.fault == TextFault.NO_TEMPLATE
    assert text.pair("", "b", raw=True).ids


def test_a_template_that_raises_refuses_the_text_only(tmp_path):
    template = "{% if messages|length > 1 %}{{ raise_exception('no turns') }}{% endif %}"
    text = load_backbone(str(models.save_reward_model(tmp_path / "x", template=template))).text
    with pytest.raises(TextError, match="no turns"):
        text.pair("a", "b")


def test_a_giant_text_is_refused_without_being_tokenized(reward_model, monkeypatch):
    """Tokenizing 10 MB takes 10 s and a gigabyte, on the thread that all callers share."""
    text = load_backbone(str(reward_model)).text
    monkeypatch.setattr(text, "_ids", lambda *_, **__: pytest.fail("it was tokenized"))
    for raw in (False, True):
        with pytest.raises(TextError) as caught:
            text.pair("p", "hello world " * 100_000, raw=raw)
        assert caught.value.fault == TextFault.TOO_LONG


def test_a_model_that_looks_ahead_sees_no_padding(tmp_path):
    """Causal models need no mask, since padding is on the right; this one's tokens would see it."""
    folder = models.save_reward_model(tmp_path / "m", "gemma3", use_bidirectional_attention=True)
    backbone = load_backbone(str(folder))
    ids = ids_of(backbone)
    together = torch.stack([one.rte_R for one in backbone.encode(ids)])
    alone = torch.stack([backbone.encode([one])[0].rte_R for one in ids])
    assert (together - alone).abs().max() < 1e-4


def test_a_compiled_backbone_serves_every_batch_with_two_programs(reward_model):
    """By dynamo alone: whether it recompiles does not depend on what makes the machine code."""
    from torch._dynamo.utils import counters

    backbone = load_backbone(str(reward_model))
    batches = [[[1] * 12], [[1] * 30] * 4, [[1] * 17, [2] * 16, [3]], [[5] * 40, [6] * 7]]
    plain = [[one.rte_R for one in backbone.encode(batch)] for batch in batches]
    fingerprint = backbone.compute_fingerprint()
    before = counters["stats"]["unique_graphs"]
    backbone.compile(backend="eager")
    made = counters["stats"]["unique_graphs"]
    assert made - before == 2
    for batch, expected in zip(batches, plain, strict=True):
        for ours, theirs in zip(backbone.encode(batch), expected, strict=True):
            assert torch.allclose(ours.rte_R, theirs, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == made
    assert backbone.compute_fingerprint() == fingerprint
