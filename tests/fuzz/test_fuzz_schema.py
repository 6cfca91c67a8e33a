"""What the OpenAPI document says holds for whatever is sent; the long form is `make fuzz`."""

import pytest
from fuzz_schema import schemathesis
from support.serving import running


@pytest.fixture(scope="module")
def server(reward_model, tmp_path_factory):
    state = tmp_path_factory.mktemp("fuzz")
    with running(reward_model, state, max_body_bytes=1 << 20) as one:
        yield one


def test_every_operation_and_chains_of_them(server):
    done = schemathesis(server.urls["http"], seconds=9, phases="coverage,stateful", seed=1)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Stateful" in done.stdout
    assert "errored" not in done.stdout, done.stdout[-3000:]
