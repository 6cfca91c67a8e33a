"""OpenRLHF's train_ppo_ray with R2M: the same flags, and the reward head follows the policy.

    export R2M_URL=http://127.0.0.1:8080 R2M_FEEDBACK_RUN=tldr
    python openrlhf_r2m.py --reward.remote_url $PWD/openrlhf_reward.py  ...what you pass today

The run has to be there, with feedback policy and the policy's hidden size. Not run here: it needs
OpenRLHF's GPUs. docs/trainers.md says what was tested instead.
"""

import importlib
import runpy

from r2m_client.integrations.openrlhf import policy_actor, ppo_trainer


def main() -> None:
    """Put the subclasses where OpenRLHF looks, and start it."""
    actors = importlib.import_module("openrlhf.trainer.ray.ppo_actor")
    trainers = importlib.import_module("openrlhf.trainer.ppo_trainer")
    vars(actors)["PolicyModelActor"] = policy_actor()
    vars(trainers)["PPOTrainer"] = ppo_trainer()
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
