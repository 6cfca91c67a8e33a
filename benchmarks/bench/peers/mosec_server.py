"""mosec: dynamic batching as in its documents, with up to 32 calls or 10 ms a batch."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker

from bench.peers.model import RewardModel

FOLDER = "BENCH_MODEL"


class Rewards(Worker):
    """The model's worker, in a process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = RewardModel(os.environ[FOLDER])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.rewards_of_all(data)


def main() -> None:
    os.environ[FOLDER] = sys.argv[1]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", sys.argv[2], "--timeout", "600000"]
    sys.argv += ["--log-level", "warning"]
    server = Server()
    server.append_worker(Rewards, num=1, max_batch_size=32, max_wait_time=10)
    server.run()


if __name__ == "__main__":
    main()
