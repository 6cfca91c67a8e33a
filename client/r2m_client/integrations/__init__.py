"""Rewards and feedback inside trainers (docs/trainers.md).

`reward_function` is for every trainer that calls a Python function for its rewards. The modules
below send feedback, too, and are imported by name: they need their trainer's packages, and the
client needs none.
"""

from r2m_client.integrations._rewards import NoReward, RewardFunction, reward_function

__all__ = ["NoReward", "RewardFunction", "reward_function"]
