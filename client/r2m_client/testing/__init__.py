"""A fake server for the tests of whoever uses this client.

    from r2m_client.testing import FakeServer

    fake = FakeServer(lambda sample, head: float(len(sample.response)))
    client = fake.client()

The clients are the real ones, repeats and errors included; in place of the network they have a
function call. There is no socket and no torch, and no thread but a score stream's. docs/testing.md
says what is true to the server and what is not.
"""

from r2m_client.testing._backbone import (
    Advice,
    AdviceOn,
    CountTokens,
    Reward,
    Vanilla,
    Verdict,
    VerdictOf,
)
from r2m_client.testing._server import FakeServer, RecordedCall

__all__ = [
    "Advice",
    "AdviceOn",
    "CountTokens",
    "FakeServer",
    "RecordedCall",
    "Reward",
    "Vanilla",
    "Verdict",
    "VerdictOf",
]
