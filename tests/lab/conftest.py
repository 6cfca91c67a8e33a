import pytest
import torch

from lab import training


@pytest.fixture(scope="session")
def start():
    """A policy and a reward model of seconds' training: neither is any good."""
    torch.set_num_threads(1)
    recipe = training.Recipe(pretraining=15, pairs=200)
    return training.begin(training.make_policy(3, steps=15), training.make_proxy(3, recipe), 3)
