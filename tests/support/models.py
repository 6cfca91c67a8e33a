"""Small random reward models with real tokenizers, made on the spot."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a short poem about the sea, please. The sea is wide and blue.",
    "How do I bake bread? Mix flour, water, salt and yeast, then wait.",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
)
SEGMENTED = ["input_ids", "token_type_ids", "attention_mask"]
KINDS = ("llama", "qwen3", "gpt_neox", "mistral")
WIDTH_R = 32
MAX_LENGTH = 128


def tokenizer(*, template=TEMPLATE, max_length=MAX_LENGTH, encoder=False, segments=False):
    """With `encoder`, a text has a classification token before it and a separator behind it.

    With `segments`, the second of two texts is numbered 1.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if encoder:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **({"cls_token": "<s>", "sep_token": "</s>"} if encoder else {}),
        **({"model_input_names": SEGMENTED} if segments else {}),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        model_max_length=max_length,
    )


def config(kind, **changes):
    sizes = {
        "vocab_size": 320,
        "hidden_size": WIDTH_R,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_labels": 1,
    }
    grouped = {"num_key_value_heads": 2}
    made = {
        "llama": (LlamaConfig, grouped),
        "mistral": (MistralConfig, grouped),
        "qwen3": (Qwen3Config, {**grouped, "head_dim": 8}),
        "gpt_neox": (GPTNeoXConfig, {}),
        "gemma2": (Gemma2Config, {**grouped, "head_dim": 8}),
        "gemma3": (Gemma3TextConfig, {**grouped, "head_dim": 8}),
    }
    cls, extra = made[kind]
    return cls(**{**sizes, **extra, **changes})


def save_reward_model(folder, kind="llama", *, seed=0, template=TEMPLATE, **changes):
    """A sequence classifier with one label and its tokenizer, saved to a folder."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config(kind, **changes))
    # Fresh weights are so small that all texts look alike; a wider spread makes tests sharp.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer(template=template).save_pretrained(folder)
    return folder
