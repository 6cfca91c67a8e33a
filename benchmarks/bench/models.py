"""Reward models to measure with: a random Llama of a few layers, and SmolLM2 as a classifier."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.texts import WORDS

CACHE = ROOT / ".cache" / "bench"
DEMO = ROOT / "examples" / "demo"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}"
)


def save_random_model(
    folder: Path, shape: Mapping[str, int], *, dtype: str = "float32", device: str = "cpu"
) -> Path:
    """A Llama classifier with random weights and its tokenizer.

    Args:
        folder: where to.
        shape: of `LlamaConfig`, such as num_hidden_layers.
        dtype: that the weights are saved in.
        device: that draws them: a CPU takes minutes for billions.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = small_tokenizer(shape["max_position_embeddings"])
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_labels": 1, **shape}
    config = LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype=dtype)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model: Any = LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.score.weight.mul_(10.0)  # rewards that differ by more than rounding
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_tokenizer(max_length: int) -> Any:
    """A BPE tokenizer trained on the words of `texts`, each of which becomes one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        [" ".join(WORDS)] * 4,
        trainers.BpeTrainer(
            vocab_size=4096,
            show_progress=False,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        model_max_length=max_length,
    )


def smollm2(say: Callable[[str], None]) -> Path:
    """The demo's SmolLM2-135M, built if it is not there. Raises DemoModelError."""
    if str(DEMO) not in sys.path:
        sys.path.insert(0, str(DEMO))
    from model import DEFAULT_CACHE, ensure_smollm2

    return ensure_smollm2(DEFAULT_CACHE, say=say)


def smollm2_classifier(say: Callable[[str], None]) -> Path:
    """SmolLM2 with the demo's head as a sequence classifier, which every server can load.

    Raises:
        RuntimeError: it could not be built; the message says why.
    """
    folder = CACHE / "smollm2-classifier"
    if (folder / "tokenizer.json").is_file():
        return folder
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = str(smollm2(say))
    say("SmolLM2 as a classifier")
    classifier: Any = AutoModelForSequenceClassification
    loader: Any = AutoTokenizer
    model = classifier.from_pretrained(source, num_labels=1)
    tokenizer = loader.from_pretrained(source)
    model.score.weight.data.copy_(load_file(DEMO / "head.safetensors")["head.weight"])
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # last: a folder that has it is whole
    return folder
