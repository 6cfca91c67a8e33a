"""A FastAPI server that runs the model in its handler: what trainers ship today."""

# No postponed annotations here: FastAPI reads them, and must find the types.

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.model import RewardModel


class Call(BaseModel):
    texts: list[str]


def main() -> None:
    folder, port = sys.argv[1], int(sys.argv[2])
    model = RewardModel(folder)
    app = FastAPI()

    @app.post("/score")
    async def score(call: Call) -> dict[str, list[float]]:
        return {"rewards": model.rewards(call.texts)}

    @app.get("/health")
    async def health() -> str:
        return "ok"

    _ = score, health
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
