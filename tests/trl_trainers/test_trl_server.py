"""A server that restarts in the middle of a training, and one that is gone."""

import copy
import logging
import threading
import time
from contextlib import ExitStack

import pytest
from support.forks import nursery
from support.serving import running
from transformers import TrainerCallback
from trl_training import METHOD, Watched, logged, make_trainer

from r2m_client import Client
from r2m_client.integrations.trl import R2M, TrainingStopped

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports, on their own future


class At(TrainerCallback):
    """Does something once, at the beginning of a step."""

    def __init__(self, step, act):
        self._step, self._act = step, act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self._step:
            self._act()


@pytest.mark.timeout(300)
def test_training_waits_for_a_server_that_is_killed_and_started_again(
    reward_model, policy, run, tmp_path, caplog
):
    caplog.set_level(logging.WARNING, logger="r2m_client")
    with nursery(reward_model) as servers:
        state = tmp_path / "state"
        first = servers.start(state).wait_ready()
        places = ["--http", first.http.split("//")[1], "--grpc", first.grpc.split("//")[1]]
        again = []

        def restart():
            first.kill()
            starting = threading.Timer(1.5, lambda: again.append(servers.start(state, *places)))
            starting.start()

        with R2M(first.http, run, method=METHOD) as r2m:
            trainer = make_trainer("grpo", policy, r2m, tmp_path / "out", max_steps=3,
                                   callbacks=[At(1, restart)])  # fmt: skip
            trainer.train()
        assert logged(trainer, "r2m/step") == [1, 2, 3]
        with Client(first.http) as client:
            assert client.run(run).step == 3
        assert again[0].alive
        again[0].kill()
    assert "(retrying for " in caplog.text
    assert "an answer came after" in caplog.text


def test_a_server_that_is_gone_stops_training(reward_model, policy, run, tmp_path):
    """After the set patience, with a clear error, and without another step of the policy."""
    with ExitStack() as until:
        server = until.enter_context(running(reward_model, tmp_path / "state"))
        r2m = Watched(server.urls["http"], run, method=METHOD, patience=1.5)
        trainer = make_trainer("grpo", policy, r2m, tmp_path / "out", max_steps=4,
                               callbacks=[At(2, until.close)])  # fmt: skip
        started = time.monotonic()
        with pytest.raises(TrainingStopped, match="no rewards, so training stops: ConnectError"):
            trainer.train()
        assert time.monotonic() - started < 60
    r2m.close()
    assert trainer.state.global_step == 2
    assert len(r2m.scored) == 2
    last = r2m.aligned[-1].weights
    assert all((value == last[name]).all() for name, value in trainer.model.state_dict().items())


def test_a_server_that_never_was(policy, run, tmp_path):
    from support.processes import free_port

    with R2M(f"http://127.0.0.1:{free_port()}", run, patience=0.5) as r2m:
        trainer = make_trainer("rloo", policy, r2m, tmp_path)
        before = copy.deepcopy(trainer.model.state_dict())
        with pytest.raises(TrainingStopped, match="ConnectError"):
            trainer.train()
    assert all((value == before[name]).all() for name, value in trainer.model.state_dict().items())
