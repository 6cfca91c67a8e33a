"""OpenRLHF's rewards from an R2M server, through restarts of it: a file for --reward.remote_url.

    export R2M_URL=http://127.0.0.1:8080 R2M_RUN=graded
    python -m openrlhf.cli.train_ppo_ray --reward.remote_url /path/to/openrlhf_reward.py  ...

R2M_URL, R2M_RUN (without it: vanilla rewards) and R2M_TIMEOUT have to reach Ray's workers, and this
package has to be installed where they run. docs/trainers.md says what it does better than the URL.
"""

from r2m_client.integrations.openrlhf import reward_func

__all__ = ["reward_func"]
