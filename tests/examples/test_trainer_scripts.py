"""The trainers' scripts put our classes where the trainers look: stand-ins, not the trainers."""

import os
import pathlib
import runpy
import subprocess
import sys
import types

import pytest
from support import verl_stands

from r2m_client.integrations.openrlhf import FeedbackActor

SCRIPTS = pathlib.Path(__file__).parents[2] / "examples" / "trainers"


@pytest.fixture
def stand_in(monkeypatch):
    """Makes a module, and those above it."""

    def make(name, **content):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            whole = ".".join(parts[:end])
            if whole not in sys.modules:
                module = types.ModuleType(whole)
                module.__path__ = []
                monkeypatch.setitem(sys.modules, whole, module)
        vars(sys.modules[name]).update(content)
        return sys.modules[name]

    return make


def remote(*given, **_):
    """ray.remote, as decorator and with options: hides the class as Ray does."""

    def hide(cls):
        return types.SimpleNamespace(__ray_metadata__=types.SimpleNamespace(modified_class=cls))

    return hide(given[0]) if given else hide


def start(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_openrlhf_starts_with_our_classes(stand_in, monkeypatch, tmp_path):
    stand_in("ray", remote=remote)
    stand_in("openrlhf.trainer.ray.ppo_actor", PolicyModelActor=remote(type("Actor", (), {})))
    trainer = type("Trainer", (), {})
    stand_in(
        "openrlhf.trainer.ppo_trainer",
        PPOTrainer=remote(trainer),
        RemoteExperienceMaker=type("Maker", (), {}),
    )
    # As OpenRLHF does: what it imports when it starts is what it runs.
    (tmp_path / "train_ppo_ray.py").write_text(
        "from openrlhf.trainer.ray.ppo_actor import PolicyModelActor\n"
        "from openrlhf.trainer.ppo_trainer import PPOTrainer\n"
        "import sys\n"
        "sys.started = (__name__, PolicyModelActor, PPOTrainer, sys.argv[1:])\n"
    )
    stand_in("openrlhf.cli").__path__ = [str(tmp_path)]
    monkeypatch.setattr(sys, "started", None, raising=False)
    start(monkeypatch, "openrlhf_r2m.py", "--some", "flag")
    name, actor, made, arguments = sys.started
    assert name == "__main__"
    assert arguments == ["--some", "flag"]
    assert issubclass(actor.__ray_metadata__.modified_class, FeedbackActor)
    assert issubclass(made.__ray_metadata__.modified_class, trainer)
    assert made.__ray_metadata__.modified_class is not trainer


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
def test_verl_runs_with_our_trainer_whatever_its_mode(stand_in, monkeypatch, mode):
    @remote
    class TaskRunnerV1:
        def run(self, mode):
            found = sys.modules["verl.trainer.ppo.v1"].get_trainer_cls(mode)
            ran.append((mode, found))

    def run_ppo(config, task_runner_class):
        task_runner_class.__ray_metadata__.modified_class().run(config)

    ran = []
    adapter = verl_stands.adapter(monkeypatch)
    stand_in("ray", remote=remote)
    stand_in("verl.trainer.ppo.v1", get_trainer_cls=lambda mode: "theirs")
    entry = stand_in("verl.trainer.main_ppo", TaskRunnerV1=TaskRunnerV1, run_ppo=run_ppo)
    entry.main = lambda: entry.run_ppo(mode, task_runner_class="the older runner")
    start(monkeypatch, "verl_r2m.py")
    assert ran == [(mode, adapter.FeedbackTrainer)]


@pytest.mark.parametrize(
    ("run", "path"), [("", "/slime"), ("tldr", "/runs/tldr/slime")], ids=["vanilla", "run"]
)
def test_slime_is_told_the_url(tmp_path, run, path):
    (tmp_path / "train.py").write_text("import sys; print(sys.argv[1:])\n")
    told = {"R2M_URL": "http://127.0.0.1:8080/", "R2M_RUN": run, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(SCRIPTS / "slime_r2m.sh"), "--more"],
        cwd=tmp_path,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=True,
    )
    flags = ["--rm-type", "remote_rm", "--rm-url", f"http://127.0.0.1:8080{path}", "--more"]
    assert done.stdout == f"{flags}\n"
