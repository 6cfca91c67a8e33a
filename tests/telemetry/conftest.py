import re

import pytest
from support.serving import running

from r2m_client import Client


@pytest.fixture(scope="session")
def backbone(reward_model):
    from r2m_service.modeling.loading import load_backbone

    return load_backbone(str(reward_model))


@pytest.fixture(scope="module")
def server(reward_model, backbone, tmp_path_factory):
    with running(
        reward_model, tmp_path_factory.mktemp("state"), backbone=backbone, metrics_runs=100
    ) as one:
        yield one


@pytest.fixture(params=["http", "grpc"])
def client(server, request):
    with Client(server.urls[request.param], wire_dtype="float32", retries=0) as one:
        one.kind = request.param
        yield one


@pytest.fixture
def run_name(request):
    return "t" + re.sub(r"[^A-Za-z0-9.-]", "-", request.node.name)[:90]
