"""Reward models as people have them: the oracle is transformers' own forward pass in float32."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import classifiers, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Gemma3Config,
    Phi3Config,
)

from r2m_service.modeling.checkpoint_files import ModelRefusedError
from r2m_service.modeling.checkpoints import Kind, inspect_checkpoint
from r2m_service.modeling.loading import load_backbone
from r2m_service.modeling.text import TextError

TEXTS = [(5, 9, 7, 2), (11, 2, 2), (6, 8, 4, 12, 13, 14, 15, 2), (9, 10, 0), (2, 2), (17,)]
"""Some end in eos (2), one in pad (0); one is of eos alone."""


def rewards(folder, texts=TEXTS, **options):
    backbone = load_backbone(str(folder), **options)
    return backbone.vanilla(torch.stack([one.rte_R for one in backbone.encode(texts)]))


@torch.no_grad()
def own(model, texts=TEXTS):
    """By the class itself, one unpadded text after the other."""
    each = [model.eval()(input_ids=torch.tensor([text])).logits[0, 0] for text in texts]
    return torch.stack(each)


def close(ours, theirs):
    return (ours - theirs).abs().max() < 1e-5 * theirs.std()


def edit_config(folder, **changes):
    path = folder / "config.json"
    written = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    return folder


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("pad", [0, 2, None])
def test_a_text_is_read_where_its_class_reads(tmp_path, kind, pad):
    """A base without a pad token gets eos for it: trainers save such models."""
    folder = edit_config(models.save_reward_model(tmp_path / "m", kind), pad_token_id=pad)
    assert close(rewards(folder), own(AutoModelForSequenceClassification.from_pretrained(folder)))


@pytest.mark.parametrize(("kind", "pad"), [("llama", -1), ("gpt_neox", -1), ("gpt_neox", 1000)])
def test_a_padding_id_of_no_token_is_none(tmp_path, kind, pad):
    folder = edit_config(models.save_reward_model(tmp_path / "m", kind), pad_token_id=pad)
    assert close(rewards(folder), own(AutoModelForSequenceClassification.from_pretrained(folder)))


def test_only_a_model_that_pads_with_eos_has_another_fingerprint(tmp_path):
    """Its ordinary texts are read elsewhere than before; those of other models are not."""
    folder = models.save_reward_model(tmp_path / "m")
    rule = load_backbone(str(folder))._reader.rule
    assert rule(2) is None
    assert load_backbone(str(edit_config(folder, pad_token_id=2)))._reader.rule(2) is not None


@pytest.mark.parametrize("kind", sorted(classifiers.CLASSES))
def test_every_class_gives_its_own_rewards_or_is_refused(kind):
    """docs/models.md lists the outcomes; `python tests/support/classifiers.py` writes them."""
    outcome, why = classifiers.outcome(kind)
    assert outcome in {"token", "pooled", "pooled, one by one", "refused", "not built"}, why
    assert classifiers.documented()[kind] == outcome, why


def test_one_row_decides_where_the_configuration_is_silent_on_labels(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    theirs = own(AutoModelForSequenceClassification.from_pretrained(folder))
    edit_config(folder, id2label=None, label2id=None, num_labels=None)
    assert close(rewards(folder), theirs)


def test_a_score_below_a_causal_lm_is_a_reward_model(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    theirs = own(AutoModelForSequenceClassification.from_pretrained(folder))
    edit_config(folder, architectures=["LlamaForCausalLM"], id2label=None, label2id=None)
    assert close(rewards(folder), theirs)


class OpenRlhf(torch.nn.Module):
    """OpenRLHF's RewardModel, from its contract: the value at the last attended token."""

    def __init__(self, base, weight, mean=0.0, std=1.0):
        super().__init__()
        self.base, self.weight, self.mean, self.std = base.eval(), weight, mean, std

    @torch.no_grad()
    def rewards(self, texts):
        each = []
        for text in texts:
            ids = torch.tensor([text])
            mask = torch.ones_like(ids)
            states = self.base(ids, attention_mask=mask, position_ids=mask.cumsum(-1) - 1)[0]
            each.append((states @ self.weight.T)[0, -1, 0])
        return (torch.stack(each) - self.mean) / self.std


@pytest.mark.parametrize("architecture", ["RewardModel", "LLMForSequenceRegression"])
@pytest.mark.parametrize("prefix", ["score", "value_head", "reward"])
@pytest.mark.parametrize("scale", [None, (0.3, 2.5)])
def test_a_reward_model_that_openrlhf_saved(tmp_path, architecture, prefix, scale):
    folder = models.save_reward_model(tmp_path / "m", pad_token_id=2)
    weight = load_file(folder / "model.safetensors")["score.weight"]
    base = AutoModel.from_pretrained(folder)
    edit_weights(
        folder,
        lambda tensors: {
            name.replace("score.", f"{prefix}."): tensor for name, tensor in tensors.items()
        },
    )
    changes = {"architectures": [architecture], "id2label": None, "label2id": None}
    changes["value_head_prefix"] = prefix
    if scale:
        changes |= {"normalize_reward": True, "mean": scale[0], "std": scale[1]}
    edit_config(folder, **changes)
    assert close(rewards(folder), OpenRlhf(base, weight, *(scale or ())).rewards(TEXTS))


@pytest.mark.parametrize(
    "changes", [{"mean": "low", "std": 1.0}, {"mean": 0.0, "std": 0.0}, {"mean": [1.0], "std": 1.0}]
)
def test_a_normalization_without_numbers_is_refused(tmp_path, changes):
    folder = models.save_reward_model(tmp_path / "m")
    edit_config(folder, architectures=["RewardModel"], normalize_reward=True, **changes)
    with pytest.raises(
        ModelRefusedError, match=r"normalize_reward needs two numbers.*config\.json"
    ):
        load_backbone(str(folder))


def test_trls_value_head_lies_beside_the_decoder(tmp_path):
    """As `AutoModelForCausalLMWithValueHead` saves it: with its bias, in one file."""
    folder = models.save_reward_model(tmp_path / "m")
    base = AutoModel.from_pretrained(folder)
    head = {"v_head.summary.weight": torch.randn(1, models.WIDTH_R)}
    head["v_head.summary.bias"] = torch.tensor([0.7])
    edit_weights(
        folder, lambda tensors: {k: v for k, v in tensors.items() if k != "score.weight"} | head
    )
    edit_config(folder, architectures=["LlamaForCausalLM"], id2label=None, label2id=None)
    theirs = OpenRlhf(base, head["v_head.summary.weight"]).rewards(TEXTS) + 0.7
    assert close(rewards(folder), theirs)


def test_llama_factorys_value_head_and_any_decoder(tmp_path):
    """TRL's value head on the last layer's states at the last attended token."""
    folder = models.save_reward_model(tmp_path / "m")
    base = AutoModel.from_pretrained(folder)
    base.save_pretrained(tmp_path / "base")  # architectures: LlamaModel
    models.tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ModelRefusedError, match="--head FILE"):
        load_backbone(str(tmp_path / "base"))
    weight, bias = torch.randn(1, models.WIDTH_R), torch.tensor([0.7])
    file = tmp_path / "base" / "value_head.safetensors"
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, file)
    with pytest.raises(ModelRefusedError, match=r"--head .*value_head\.safetensors"):
        load_backbone(str(tmp_path / "base"))
    ours = rewards(tmp_path / "base", head_file=file)
    assert close(ours, OpenRlhf(base, weight).rewards(TEXTS) + 0.7)


@pytest.fixture(scope="module")
def preferences():
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Number {n}?"}],
                "chosen": [{"role": "assistant", "content": "Yes, bread."}],
                "rejected": [{"role": "assistant", "content": "The sea."}],
            }
            for n in range(4)
        ]
    )


OF_THEIR_OWN = pytest.mark.filterwarnings("ignore")  # TRL and PEFT, on their own future


@OF_THEIR_OWN
@pytest.mark.parametrize("adapter", [True, False])
def test_what_trls_reward_trainer_saves(tmp_path, preferences, adapter):
    """A base without a pad token: the trainer pads with eos, and trains the state before it."""
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    base = tmp_path / "base"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(models.config("llama", pad_token_id=None)).save_pretrained(
        base
    )
    tokenizer = models.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    trainer = RewardTrainer(
        str(base),
        args=RewardConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            learning_rate=0.1,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=preferences,
        peft_config=LoraConfig(r=4, modules_to_save=["score"]) if adapter else None,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    backbone = load_backbone(str(tmp_path / "saved"))
    texts = [backbone.text.pair(*pair).ids for pair in [("Hi", "Yes."), ("Number 3?", "The sea.")]]
    assert {text[-2] for text in texts} == {2}  # the template ends in eos and a line break
    texts = [text[:-1] for text in texts] + TEXTS
    theirs = own(trainer.model, texts)
    assert close(rewards(tmp_path / "saved", texts), theirs)
    if adapter:
        merged = load_backbone(str(tmp_path / "saved")).fingerprint
        tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] = tensors[name] + 1
        save_file(tensors, tmp_path / "saved" / "adapter_model.safetensors", {"format": "pt"})
        assert load_backbone(str(tmp_path / "saved")).fingerprint != merged


@OF_THEIR_OWN
def test_an_adapter_without_its_head_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = models.save_reward_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_config(models.config("llama"))
    get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelRefusedError, match=r"adapter without a scoring head.*--head FILE"):
        load_backbone(str(tmp_path / "a"))


def save_adapter(folder, base, model, **changes):
    """A random LoRA adapter of a model's q_proj; returns the adapted model."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, **changes))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}
    path.write_text(json.dumps(settings))
    return adapted


def classifier(base, labels=1):
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, pad_token_id=0, ignore_mismatched_sizes=True
    )


@OF_THEIR_OWN
@pytest.mark.parametrize("change", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {}])
def test_an_adapter_is_merged_whatever_lies_beside_it(tmp_path, change):
    base = models.save_reward_model(tmp_path / "base", num_labels=3)  # its own head is replaced
    adapted = save_adapter(tmp_path / "a", base, classifier(base), task_type="SEQ_CLS", **change)
    shutil.copy(base / "config.json", tmp_path / "a")
    theirs = own(adapted)
    assert close(rewards(tmp_path / "a"), theirs)
    adapted.merge_and_unload().save_pretrained(tmp_path / "a")
    with pytest.raises(ModelRefusedError, match=r"a whole model and a PEFT adapter.*take out"):
        load_backbone(str(tmp_path / "a"))


@OF_THEIR_OWN
def test_an_adapter_brings_an_encoders_whole_head(tmp_path):
    base = tmp_path / "base"
    torch.manual_seed(0)
    AutoModel.from_config(classifiers.tiny_config("roberta")).save_pretrained(base)
    models.tokenizer(template=None, encoder=True).save_pretrained(base)
    adapted = save_adapter(tmp_path / "a", base, classifier(base), task_type="SEQ_CLS")
    assert close(rewards(tmp_path / "a"), own(adapted))


@OF_THEIR_OWN
def test_an_adapter_whose_head_would_not_be_loaded_is_refused(tmp_path):
    """PEFT drops tensors that it has no place for: the head would be random."""
    base = models.save_reward_model(tmp_path / "base")
    causal = AutoModelForCausalLM.from_pretrained(base)
    only_q = {"target_modules": ["q_proj"]}
    save_adapter(tmp_path / "lm", base, causal, **only_q, modules_to_save=["lm_head"])
    with pytest.raises(ModelRefusedError, match="without a scoring head"):
        load_backbone(str(tmp_path / "lm"))
    save_adapter(tmp_path / "a", base, AutoModelForCausalLM.from_pretrained(base), **only_q)
    path = tmp_path / "a" / "adapter_model.safetensors"
    head = {"base_model.model.score.weight": torch.randn(1, models.WIDTH_R)}
    save_file(load_file(path) | head, path, {"format": "pt"})
    with pytest.raises(ModelRefusedError, match=r"score\.weight.*does not load"):
        load_backbone(str(tmp_path / "a"))
    save_adapter(tmp_path / "two", base, classifier(base, 2), task_type="SEQ_CLS")
    with pytest.raises(ModelRefusedError, match=r"2 rows in score\.weight"):
        load_backbone(str(tmp_path / "two"))


def test_a_bias_that_the_class_does_not_load_is_refused(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    edit_weights(folder, lambda tensors: {**tensors, "score.bias": torch.tensor([5.0])})
    with pytest.raises(ModelRefusedError, match=r"'score\.bias'.*LlamaForSequenceClassification"):
        load_backbone(str(folder))


OWN_CODE = """
from transformers import LlamaForSequenceClassification


class GatedReward(LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits{change}
        return out
"""


@pytest.mark.parametrize("change", [" * out.logits + 1", ""])
def test_own_code_is_run_and_compared_or_refused(tmp_path, change):
    folder = models.save_reward_model(tmp_path / f"m{len(change)}")
    theirs = own(AutoModelForSequenceClassification.from_pretrained(folder))
    (folder / "gated.py").write_text(OWN_CODE.format(change=change))
    edit_config(folder, auto_map={"AutoModelForSequenceClassification": "gated.GatedReward"})
    with pytest.raises(ModelRefusedError, match=r"gated\.GatedReward.*--trust-remote-code"):
        load_backbone(str(folder))
    if change:
        expected = r"a short text its own forward pass gives 1\.\d+, its head on .* -?\d\.\d+"
        with pytest.raises(ModelRefusedError, match=expected):
            load_backbone(str(folder), trust_remote_code=True)
    else:
        assert close(rewards(folder, trust_remote_code=True), theirs)


FIRST_PAD = """
import torch
from transformers import LlamaForSequenceClassification


class FirstPad(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        is_pad = torch.eq(input_ids, self.config.pad_token_id).int()
        read = (is_pad.argmax(-1) - 1) % input_ids.shape[-1]
        logits = self.score(states[torch.arange(len(read)), read])
        return type("Out", (), {"logits": logits})()
"""


@pytest.mark.parametrize("pad", [0, 2])
def test_own_code_that_reads_before_the_first_padding_is_read_there(tmp_path, pad):
    """As transformers' classes did before 4.40: a text may hold the padding token inside."""
    folder = models.save_reward_model(tmp_path / f"first{pad}")
    (folder / "first.py").write_text(FIRST_PAD)
    automap = {"AutoModelForSequenceClassification": "first.FirstPad"}
    edit_config(folder, auto_map=automap, pad_token_id=pad)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    texts = [*TEXTS, (5, 2, 7, 0, 9, 2), (5, 9, 7, 3, 2, 8)]
    assert close(rewards(folder, texts, trust_remote_code=True), own(model, texts))


def test_rope_switches_never_share_a_pass(tmp_path):
    """LongRoPE embeds a whole batch by its longest text: short ones would change beside long."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    config = Phi3Config(
        **sizes,
        **heads,
        num_labels=1,
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [8.0, 6.0, 4.0, 2.0],
            "original_max_position_embeddings": 16,
        },
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    texts = [tuple(range(3, 3 + length)) for length in (12, 40, 16, 17, 5)]
    assert close(rewards(tmp_path, texts), own(model, texts))
    assert load_backbone(str(tmp_path)).switches == (16,)


def test_a_composite_configuration_is_read_in_its_text_part(tmp_path):
    text = models.config("gemma3").to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, num_labels=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    models.tokenizer(max_length=1 << 30).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.text.max_length == models.MAX_LENGTH
    assert backbone.width_R == models.WIDTH_R
    assert close(rewards(tmp_path), own(model))


def save_encoder(folder, *, segments):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = BertForSequenceClassification(
        BertConfig(
            **sizes, vocab_size=330, num_attention_heads=2, num_labels=1, type_vocab_size=segments
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    model.save_pretrained(folder)
    encoder = models.tokenizer(template=None, encoder=True, segments=segments > 1)
    encoder.save_pretrained(folder)
    return model


@pytest.mark.parametrize("segments", [1, 2])
def test_an_encoder_is_pooled_by_its_class(tmp_path, segments):
    model = save_encoder(tmp_path, segments=segments)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pairs = [tokenizer(*pair) for pair in [("Hi", "Hello."), ("What is the sea?", "It is wide.")]]
    with torch.no_grad():
        inputs = [{k: torch.tensor([v]) for k, v in pair.items()} for pair in pairs]
        theirs = torch.cat([model.eval()(**one).logits[0] for one in inputs])
    assert close(rewards(tmp_path, [tuple(pair["input_ids"]) for pair in pairs]), theirs)
    backbone = load_backbone(str(tmp_path))
    (encoded,) = backbone.encode([(1, 5, 6, 2)], states=[True])
    assert encoded.states_SR.shape == (4, backbone.width_R)


def test_an_encoder_without_a_template_reads_the_tokenizers_pair(tmp_path):
    save_encoder(tmp_path, segments=2)
    text = load_backbone(str(tmp_path), max_length=18).text
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    pair = text.tokenizer("Hi", "Hello.")["input_ids"]
    assert list(text.pair("Hi", "Hello.").ids) == pair
    assert list(text.conversation(turns).ids) == pair
    with pytest.raises(TextError, match="format raw"):
        text.conversation([{"role": "system", "content": "Be kind."}, *turns])
    whole = text.tokenizer("What is the sea?", "It is wide and blue.")["input_ids"]
    over = len(whole) - 18
    assert over > 0
    right = text.pair("What is the sea?", "It is wide and blue.", cut="right")
    assert (list(right.ids), right.cut) == ([*whole[: -over - 1], whole[-1]], over)
    left = text.pair("What is the sea?", "It is wide and blue.", cut="left")
    assert list(left.ids) == [whole[0], *whole[over + 1 :]]
    with pytest.raises(TextError, match="takes at most 18"):
        text.pair("What is the sea?", "It is wide and blue.")
    for raw in (False, True):  # behind a separator the model would take the rest for a response
        with pytest.raises(TextError, match="separator"):
            text.pair("Hi</s>", "Hello.", raw=raw)


def test_a_head_file_is_not_for_an_encoder(tmp_path):
    model = save_encoder(tmp_path, segments=1)
    model.bert.save_pretrained(tmp_path)
    head = tmp_path / "head.safetensors"
    save_file({"head.weight": torch.randn(1, models.WIDTH_R)}, head)
    with pytest.raises(ModelRefusedError, match="is an encoder, and --head is for decoders"):
        load_backbone(str(tmp_path), head_file=head)


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_that_is_cut_short_is_named(tmp_path, name, content):
    folder = models.save_reward_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    with pytest.raises(ModelRefusedError, match=name):
        load_backbone(str(folder))


def test_weights_of_another_shape_are_named(tmp_path):
    folder = edit_config(models.save_reward_model(tmp_path / "m"), vocab_size=330)
    with pytest.raises(ModelRefusedError, match=r"embed_tokens.*\[320, 32\].*\[330, 32\]"):
        load_backbone(str(folder))


def test_labels_that_nothing_states_are_asked_for(tmp_path):
    """Heads outside of safetensors files are not looked at."""
    folder = models.save_reward_model(tmp_path / "m")
    theirs = own(AutoModelForSequenceClassification.from_pretrained(folder))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    edit_config(folder, id2label=None, label2id=None)
    with pytest.raises(ModelRefusedError, match=r'"num_labels": 1 into its config\.json'):
        load_backbone(str(folder))
    assert close(rewards(edit_config(folder, num_labels=1)), theirs)


def test_a_quantised_checkpoint_without_its_library_is_refused_by_name(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelRefusedError, match=r"cannot load .*(optimum|gptq|GPTQ)"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    folder = models.save_reward_model(tmp_path / "m")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / name).write_text(pointer)
    with pytest.raises(ModelRefusedError, match=rf"{name} is a git-lfs pointer.*git lfs pull"):
        load_backbone(str(folder))


def test_an_explicit_length_wins_over_the_tokenizers_limit(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    models.tokenizer(max_length=32).save_pretrained(folder)
    plain = load_backbone(str(folder))
    assert (plain.text.max_length, len(plain.notes)) == (32, 1)
    assert "--max-length" in plain.notes[0]
    longer = load_backbone(str(folder), max_length=100)
    assert longer.text.max_length == 100
    assert "tokenizer's limit of 32" in longer.notes[0]
    with pytest.raises(ModelRefusedError, match="128"):
        load_backbone(str(folder), max_length=129)


def test_weights_are_not_needed_to_judge_a_kind(tmp_path):
    folder = models.save_reward_model(tmp_path / "m")
    assert inspect_checkpoint(str(folder), download=False).kind is Kind.CLASSIFIER
    shutil.copytree(folder, tmp_path / "silent")
    (tmp_path / "silent" / "model.safetensors").unlink()
    assert inspect_checkpoint(str(tmp_path / "silent")).kind is Kind.CLASSIFIER
    assert AutoConfig.from_pretrained(folder).num_labels == 1
