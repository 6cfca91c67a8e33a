"""The stream scenarios over the fake. Those with a client of their own need a real connection."""

import inspect

import pytest
import test_streams
from support.fakes import fake_server
from support.rollouts import WIDTH_P, groups

REAL_ONLY = {
    "test_a_sample_beyond_the_bound_is_refused_alone": "nothing is too large for the fake",
    "test_two_thousand_tiny_samples": "a load, not a story",
    "test_much_more_than_the_budget": "the fake has none",
    "test_a_client_that_leaves_in_the_middle": "the fake has answered by then",
    "test_chunks_of_all_samples_in_turns_and_samples_out_of_order": "the fake takes no chunks",
    "test_what_lies_about_its_bytes": "the fake takes no chunks",
    "test_an_idle_upload_expires_alone": "the fake takes no chunks",
}

for name, case in vars(test_streams).items():
    arguments = inspect.signature(case).parameters if name.startswith("test_") else {}
    if "client" in arguments and "server" not in arguments and name not in REAL_ONLY:
        globals()[name] = case


@pytest.fixture
def client():
    with fake_server().client(wire_dtype="float32", retries=0) as one:
        yield one


@pytest.fixture
def run(client):
    """As the real server's: three heads whose rewards differ."""
    client.create_run("streams", policy_hidden_size=WIDTH_P, method=test_streams.METHOD)
    for step in (1, 2):
        assert client.align("streams", step=step, groups=groups(step)).accepted
    return "streams"
