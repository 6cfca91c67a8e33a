import pytest
from support.serving import running

from r2m_client import Client


@pytest.fixture(scope="session")
def backbone(reward_model):
    from r2m_service.modeling.loading import load_backbone

    return load_backbone(str(reward_model))


@pytest.fixture(scope="session")
def server(reward_model, backbone, tmp_path_factory):
    """One server for all scenarios; each makes runs of its own."""
    with running(reward_model, tmp_path_factory.mktemp("state"), backbone=backbone) as one:
        yield one


@pytest.fixture(params=["http", "grpc"])
def client(server, request):
    with Client(server.urls[request.param], wire_dtype="float32", retries=0) as one:
        one.kind = request.param
        yield one


@pytest.fixture
def run_name(request):
    """A run name of this test's own, letters and digits only."""
    import re

    return "t" + re.sub(r"[^A-Za-z0-9.-]", "-", request.node.name)[:90]
