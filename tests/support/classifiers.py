"""One tiny model of each class that transformers has a …ForSequenceClassification for.

Sizes are found by the names of a configuration's fields; what a model needs beside them stands in
`MORE`. As a script, this file tries all of them and writes the table of docs/models.md; with
model types as arguments it tries those, and says why one is refused.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
)

WIDTH, VOCABULARY, LENGTH = 32, 330, 128
SIZES = {
    WIDTH: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim d_latents "
    "pooler_hidden_size",
    48: "intermediate_size ffn_dim d_ff hidden_dim encoder_ffn_dim decoder_ffn_dim n_inner dff "
    "d_inner ffn_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers eos_token_id "
    "num_key_value_heads num_kv_heads num_experts_per_tok",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_experts num_local_experts n_routed_experts",
    8: "head_dim d_kv q_lora_rank kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim",
    16: "qk_head_dim",
    LENGTH: "max_position_embeddings n_positions n_ctx max_seq_len",
    VOCABULARY: "vocab_size",
    0: "pad_token_id",
    1: "bos_token_id",
    28: "image_size",
    14: "patch_size",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split(" ")}
MLA = {"qk_head_dim": None, "num_key_value_heads": 4, "head_dim": None}
"""Latent attention: every head has its own keys."""
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MORE = {
    "axk1": MLA,
    "axk2": MLA,
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "longformer": {"attention_window": 16},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "minicpm3": MLA,
    "mistral4": MLA,
    "perceiver": {"num_latents": 8, "num_self_attends_per_block": 1},
    "qwen3_5": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "reformer": {
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (8, 16),
        "attention_head_size": 8,
        "is_decoder": False,
    },
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
}


def tiny_config(kind):
    """A configuration of a few thousand parameters, with one label."""
    cls = CONFIG_MAPPING[kind]
    return cls(**_changes(cls().to_dict(), MORE.get(kind, {})), num_labels=1)


def _changes(known, more):
    changes = {name: value for name, value in SMALL.items() if name in known}
    for name, value in known.items():
        if isinstance(value, dict) and {"hidden_size", "d_model"} & value.keys():
            changes[name] = _changes(value, more)
    known_more = {name: value for name, value in more.items() if name in known}
    # None: what the class makes of the other sizes.
    return {k: v for k, v in (changes | known_more).items() if v is not None}


def save_tiny(kind, folder):
    """A random model of a kind with its tokenizer; weights wide enough that texts differ."""
    from support import models

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    models.tokenizer(encoder=True).save_pretrained(folder)
    return folder


def rewards_of(folder):
    """(ours in one call, the class's own one by one) of three lengths; the error where refused."""
    from r2m_service.modeling.loading import load_backbone

    backbone = load_backbone(str(folder))
    texts = [tuple(range(4, 4 + length)) for length in (5, 11, 3)]
    encoded = backbone.encode(texts)
    ours = backbone.vanilla(torch.stack([one.rte_R for one in encoded]))
    own = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = torch.cat([own(input_ids=torch.tensor([ids])).logits[0] for ids in texts])
    return backbone, ours, theirs


def outcome(kind):
    """A row of docs/models.md: (class, how it is read, or why it is refused)."""
    from r2m_service.modeling.checkpoint_files import ModelRefusedError
    from r2m_service.modeling.readers import TokenReader

    with tempfile.TemporaryDirectory() as folder:
        try:
            save_tiny(kind, folder)
        except Exception as error:
            return "not built", f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            backbone, ours, theirs = rewards_of(folder)
        except ModelRefusedError as error:
            return "refused", str(error).replace(repr(folder), "it")
    scale = theirs.abs().max() + theirs.std()
    if not (ours - theirs).abs().max() < 1e-5 * scale:
        return "differs", f"{ours.tolist()} for {theirs.tolist()}"
    how = "token" if isinstance(backbone._reader, TokenReader) else "pooled"
    return how + (", one by one" if backbone.alone else ""), ""


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- classes: tests/support/classifiers.py -->\n", "<!-- end of classes -->"


def documented():
    """Outcome by model type, as docs/models.md has it."""
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split("|")] for row in rows]
    return {row[1]: row[3] for row in cells}


def write():
    """Try all classes, and put their table into docs/models.md."""
    rows = []
    for kind in CLASSES:
        how, why = outcome(kind)
        print(kind, how, why, sep=": ", flush=True)
        rows.append(f"| `{kind}` | {CLASSES[kind]} | {how} |\n")
    table = "| model type | class | read |\n| --- | --- | --- |\n" + "".join(rows)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            print(name, *outcome(name), sep=": ")
    else:
        write()
