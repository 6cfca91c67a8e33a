"""Stand-ins for what r2m_client.integrations.verl_worker needs of verl 0.9, where verl is not."""

from __future__ import annotations

import enum
import functools
import importlib
import sys
from types import ModuleType

import r2m_client.integrations

MAGIC_ATTR = "attrs_3141562937"
ADAPTER = "r2m_client.integrations.verl_worker"

Role = enum.Enum("Role", ["ActorRollout", "ActorRolloutRef", "Critic"])


class Batch(dict):
    """A TensorDict, as far as it is looked at."""

    def select(self, *names, strict=True):
        return Batch({name: self[name] for name in names if strict or name in self})


def register(**noted):
    """verl's decorator: notes on a method how its batch is dealt out."""

    def decorator(method):
        @functools.wraps(method)
        def registered(*given, **named):
            return method(*given, **named)

        setattr(registered, MAGIC_ATTR, noted)
        return registered

    return decorator


class Worker:
    """ActorRolloutRefWorker, which leaves the passes to its TrainingWorker."""

    def __init__(self, actor):
        self.actor = actor

    @register(dispatch_mode="actor", execute_mode="all", blocking=True)
    def compute_log_prob(self, data):
        return self.actor.infer_batch(data)

    @register(dispatch_mode="actor", execute_mode="all", blocking=True)
    def update_actor(self, data):
        return self.actor.train_mini_batch(data)


class TrainingWorker:
    def infer_batch(self, data):
        raise NotImplementedError


class Trainer:
    """PPOTrainerSync, as far as it chooses its workers."""

    def __init__(self, config):
        self.config = config
        self._init_resource_pool_mgr()

    def _init_resource_pool_mgr(self):
        self.role_worker_mapping = {Role.ActorRolloutRef: "theirs", Role.Critic: "theirs"}


def _get(data, key, default=None):
    return data.get(key, default)


def _assign(data, **values):
    data.update(values)


MODULES = {
    "verl": {"__version__": "0.9.1"},
    "verl.workers.engine_workers": {
        "ActorRolloutRefWorker": Worker,
        "TrainingWorker": TrainingWorker,
    },
    "verl.trainer.ppo.v1.trainer_sync": {"PPOTrainerSync": Trainer},
    "verl.single_controller.base.decorator": {"register": register, "MAGIC_ATTR": MAGIC_ATTR},
    "verl.utils.tensordict_utils": {"get": _get, "assign_non_tensor": _assign},
}


def adapter(monkeypatch, **changed):
    """verl_worker, imported on the stand-ins.

    Args:
        changed: another content of a module, by its name with underlines; None: no such module.
    """
    for name, content in MODULES.items():
        content = changed.get(name.replace(".", "_"), content)
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ModuleType(".".join(parts[:depth]))
            parent.__path__ = []
            if parent.__name__ not in sys.modules:
                monkeypatch.setitem(sys.modules, parent.__name__, parent)
        module = None if content is None else ModuleType(name)
        if module is not None:
            module.__path__ = []
            vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    # Both places that would go on holding it when the stand-ins are gone.
    monkeypatch.setattr(r2m_client.integrations, "verl_worker", None, raising=False)
    monkeypatch.setitem(sys.modules, ADAPTER, None)
    del sys.modules[ADAPTER]
    return importlib.import_module(ADAPTER)
