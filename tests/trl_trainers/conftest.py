import re

import pytest
from support.serving import running

from r2m_client import Client


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    from trl_training import save_policy

    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def server(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state"), keep_every=1) as one:
        yield one


@pytest.fixture
def client(server):
    with Client(server.urls["grpc"], wire_dtype="float32") as one:
        yield one


@pytest.fixture
def run(request):
    """A run name of this test's own."""
    return "t" + re.sub(r"[^A-Za-z0-9.-]", "-", request.node.name)[:80]
