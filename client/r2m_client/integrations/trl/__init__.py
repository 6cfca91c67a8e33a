"""R2M for TRL's GRPOTrainer and RLOOTrainer: the reward function and the callback in one object.

    from r2m_client.integrations.trl import R2M

    r2m = R2M("http://127.0.0.1:8080", run="tldr")
    trainer = GRPOTrainer(model, reward_funcs=[r2m], callbacks=[r2m], ...)
    trainer.train()

docs/trainers.md has the whole of it. This needs TRL (`pip install 'r2m-serve[trl]'`).
"""

from r2m_client.integrations.trl._adapter import R2M
from r2m_client.integrations.trl._talking import TrainingStopped

__all__ = ["R2M", "TrainingStopped"]
