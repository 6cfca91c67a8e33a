"""A policy's last-layer hidden states, from whatever passes a trainer runs anyway.

    recorder = Recorder(policy)
    with recorder.recording() as taken:
        policy(input_ids, attention_mask=mask)
    samples = taken.onto(samples)  # each with its own [S, D_p] states, padding taken off
    taken.free()

The states are those that `output_hidden_states=True` gives as the last ones: after the final norm
(`hidden_state="post_norm"`). Padded passes on either side, packed ones, and generation (prefill
and decode) all become one tensor a sample, [S, D_p], on the policy's device and in its dtype.
Decoding never feeds the last sampled token, so nobody has its state; `Taken.last_token` says so.

This needs torch (`pip install 'r2m-serve[trl]'`); `import r2m_client` alone does not load it.
"""

from r2m_client.capture._passes import Pass
from r2m_client.capture._recorder import Recorder
from r2m_client.capture._taken import Taken

__all__ = ["Pass", "Recorder", "Taken"]
