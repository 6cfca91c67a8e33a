"""verl's main_ppo with R2M: the same overrides, and the reward head follows the policy.

    export R2M_URL=http://127.0.0.1:8080 R2M_RUN=tldr
    python verl_r2m.py data.return_raw_chat=True  ...the overrides you pass today

The run has to be there, with feedback policy and the policy's hidden size. R2M_URL and R2M_RUN
have to reach Ray's workers (ray_kwargs.ray_init.runtime_env.env_vars). Not run here: it needs
verl's GPUs. docs/trainers.md says what was tested instead.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from r2m_client.integrations.verl_worker import FeedbackTrainer, feedback_worker

if TYPE_CHECKING:
    _Runner = Any
else:
    _Runner = object

MAIN = "verl.trainer.main_ppo"


class FeedbackRunner(_Runner):
    """In front of verl's TaskRunner: puts our classes in where it runs, in a Ray actor."""

    def add_actor_rollout_worker(self, config: Any) -> Any:
        """verl's, with our worker."""
        workers = importlib.import_module("verl.workers.fsdp_workers")
        base = workers.AsyncActorRolloutRefWorker
        vars(workers)["AsyncActorRolloutRefWorker"] = feedback_worker(base)
        return super().add_actor_rollout_worker(config)

    def run(self, config: Any) -> Any:
        """verl's, with our trainer."""
        entry = importlib.import_module(MAIN)
        bases = (FeedbackTrainer, entry.RayPPOTrainer)
        vars(entry)["RayPPOTrainer"] = type("FeedbackPPOTrainer", bases, {})
        return super().run(config)


def main() -> None:
    """verl's own entry point, with another runner."""
    ray = importlib.import_module("ray")
    entry = importlib.import_module(MAIN)
    made = type("FeedbackTaskRunner", (FeedbackRunner, entry.TaskRunner), {})
    own, runner = entry.run_ppo, ray.remote(num_cpus=1)(made)
    vars(entry)["run_ppo"] = lambda config: own(config, task_runner_class=runner)
    entry.main()


if __name__ == "__main__":
    main()
