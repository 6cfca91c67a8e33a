import os
import pathlib

# Two spinning threads on two shared cores are slower than one, and sums differ with the count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
from hypothesis import settings

settings.register_profile("r2m", deadline=None, derandomize=True)
# What `make fuzz` runs: other examples every time, and those that fail are printed to be kept.
settings.register_profile("fuzz", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "r2m"))


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny Llama reward model and its tokenizer."""
    import torch
    from support.models import save_reward_model

    torch.set_num_threads(1)
    return save_reward_model(tmp_path_factory.mktemp("models") / "llama")
