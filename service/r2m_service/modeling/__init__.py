"""The R2M reward model in torch: readable alone, in the order of the computation.

`text` (a prompt and a response become token ids) → `backbone` (token ids become the reward token
embedding, RTE) → `attention` (the policy's states are pooled for one query) → `head` (rewards) →
`loss` (BT, GRE, KL) → `update` (gradients in closed form, AdamW).

It knows nothing of runs, versions, requests or files' places. "eq. n" is the paper's (arXiv
2601.22664); what is not from there is derived in docs/algorithm.md.

Shapes are suffixes of names:
    N  samples            K  samples of one group        S  tokens of one sample
    P  D_p, width of the states attended to              R  D_rm, width of the backbone
    I  d, inner width of the cross attention
"""

from datetime import date

TEMPLATE_DATE = date(2024, 7, 26)
"""What a chat template writes in place of the current day: the date that the templates of Llama 3.1
and 3.2 fall back to. Here, so that settings can name it without torch."""
