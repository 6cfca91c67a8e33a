"""verl's main_ppo with R2M: the same overrides, and the reward head follows the policy.

    export R2M_URL=http://127.0.0.1:8080 R2M_FEEDBACK_RUN=tldr
    python verl_r2m.py  ...the overrides you pass today

The run has to be there, with feedback policy and the policy's hidden size. R2M_URL and
R2M_FEEDBACK_RUN have to reach Ray's workers (ray_kwargs.ray_init.runtime_env.env_vars). For verl
0.9; docs/trainers.md says what of it was run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from r2m_client.integrations.verl_worker import FeedbackTrainer

if TYPE_CHECKING:
    _Runner = Any
else:
    _Runner = object

MAIN = "verl.trainer.main_ppo"


class FeedbackRunner(_Runner):
    """In front of verl's TaskRunnerV1: puts our trainer in where it runs, in a Ray actor."""

    def run(self, config: Any) -> Any:
        """verl's, with our trainer, which refuses the modes that it does not know."""
        trainers = importlib.import_module("verl.trainer.ppo.v1")
        vars(trainers)["get_trainer_cls"] = lambda _: FeedbackTrainer
        return super().run(config)


def main() -> None:
    """verl's own entry point, with another runner."""
    ray = importlib.import_module("ray")
    entry = importlib.import_module(MAIN)
    plain = entry.TaskRunnerV1.__ray_metadata__.modified_class
    made = type("FeedbackTaskRunner", (FeedbackRunner, plain), {})
    own, runner = entry.run_ppo, ray.remote(made)
    vars(entry)["run_ppo"] = lambda config, task_runner_class: own(config, runner)
    entry.main()


if __name__ == "__main__":
    main()
