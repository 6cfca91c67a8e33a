"""LitServe: batching as in its documents, with up to 32 calls or 10 ms a batch."""

# No postponed annotations here: LitServe reads them, and must find the types.

import sys
from typing import Any

import litserve as ls

from bench.peers.model import RewardModel


class Rewards(ls.LitAPI):
    """One model in one worker process."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.01)
        self.folder = folder

    def setup(self, device: str) -> None:
        self.model = RewardModel(self.folder)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.rewards_of_all(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    folder, port = sys.argv[1], int(sys.argv[2])
    server = ls.LitServer(Rewards(folder), accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
