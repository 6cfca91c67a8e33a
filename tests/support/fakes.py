"""A fake that looks like the tests' real server."""

from r2m_client.testing import FakeServer
from support.models import MAX_LENGTH, WIDTH_R


def vanilla(sample):
    if sample.response is None:  # a conversation, or token ids
        return len(sample.messages or sample.token_ids) / 10
    return len(sample.response) / 10 - len(sample.prompt) / 100


def fake_server(*, omega=0.6, verdict="accepted"):
    def reward(sample, head):
        """Version 0 as the method has it; later ones have learned something from the states."""
        heard = 0.0 if sample.hidden_states is None else float(sample.hidden_states.mean())
        return omega * vanilla(sample) + 0.01 * head * (1 + heard)

    return FakeServer(
        reward, vanilla=vanilla, verdict=verdict, hidden_size=WIDTH_R, max_length=MAX_LENGTH
    )
