"""One of two processes of a trainer: `rank.py RANK URL NOWHERE RUN FOLDER PORT`; prints JSON lines.

Three trainings: one that goes well, one whose server is not there, and one in which rank 1 dies.
"""

import json
import os
import sys
import warnings

warnings.simplefilter("ignore")
rank, url, nowhere, run, folder, port = sys.argv[1:]
os.environ |= {
    "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
}  # fmt: skip

from trl_training import METHOD, Watched, logged, make_trainer  # noqa: E402

from r2m_client.integrations.trl import R2M, TrainingStopped  # noqa: E402

SETTINGS = {"per_device_train_batch_size": 2, "learning_rate": 0.0, "max_steps": 2}


def say(**words):
    print(json.dumps(words), flush=True)


with Watched(url, run, method=METHOD) as r2m:
    trainer = make_trainer("grpo", f"{folder}/policy", r2m, f"{folder}/{rank}", **SETTINGS)
    trainer.train()
    for one in r2m.scored:
        say(prompts=one.prompts, completions=one.completions, completion_ids=one.completion_ids,
            rewards=one.rewards)  # fmt: skip
    say(
        bt=logged(trainer, "r2m/bt"),
        used=logged(trainer, "r2m/groups/used"),
        reward=logged(trainer, "r2m/reward"),
    )

with R2M(nowhere, run, patience=0.5) as r2m:
    trainer = make_trainer("grpo", f"{folder}/policy", r2m, f"{folder}/{rank}", **SETTINGS)
    try:
        trainer.train()
    except TrainingStopped as error:
        say(stopped=str(error))


class Dies(R2M):
    def __call__(self, *arguments, **more):
        if rank == "1" and more["trainer_state"].global_step == 1:
            os._exit(9)
        return super().__call__(*arguments, **more)


r2m = Dies(url, f"{run}-dies", method=METHOD)
make_trainer("grpo", f"{folder}/policy", r2m, f"{folder}/{rank}", **SETTINGS).train()
