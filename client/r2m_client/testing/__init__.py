"""A fake server for the tests of whoever uses this client.

    from r2m_client.testing import FakeServer

    fake = FakeServer(lambda sample, head: float(len(sample.response)))
    client = fake.client()

The clients are the real ones, repeats and errors included; in place of the network they have a
function call. There is no socket, no thread and no torch. docs/testing.md says what is true to the
server and what is not.
"""

from r2m_client.testing._backbone import CountTokens, Reward, Vanilla, Verdict, VerdictOf
from r2m_client.testing._server import FakeServer, RecordedCall

__all__ = [
    "CountTokens",
    "FakeServer",
    "RecordedCall",
    "Reward",
    "Vanilla",
    "Verdict",
    "VerdictOf",
]
