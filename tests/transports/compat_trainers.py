"""Trainers' clients as docs/trainers.md describes them: whom they ask, when they ask again.

They wait through `sleep`, which a test gives; nobody waits in a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

Sleep = Callable[[float], Awaitable[None]]


class GaveUpError(Exception):
    """The trainer asks no more: its job ends, or goes on without this reward."""


class OpenRLHF:
    """Five tries a second apart, whatever went wrong; one query each, shared out over the URLs."""

    def __init__(self, http: httpx.AsyncClient, urls: list[str], sleep: Sleep) -> None:
        self._http, self._urls, self._sleep = http, urls, sleep

    async def ask(self, queries: list[str], prompts: list[str], labels: list[Any]) -> list[Any]:
        """An answer for each URL, also for those that got nothing to do."""
        share = -(-len(queries) // len(self._urls))
        asked = []
        for number, url in enumerate(self._urls):
            part = slice(number * share, (number + 1) * share)
            body = {"query": queries[part], "prompts": prompts[part], "labels": labels[part]}
            asked.append(self._post(url, body))
        return await asyncio.gather(*asked)

    async def _post(self, url: str, body: Any) -> Any:
        for _ in range(5):
            try:
                return (
                    (await self._http.post(url, json=body, timeout=180)).raise_for_status().json()
                )
            except httpx.HTTPError:
                await self._sleep(1)
        raise GaveUpError(url)

    async def sample(self, query: str, prompt: str, label: Any) -> tuple[float, dict[str, float]]:
        """What it makes of one sample's answers: the first one's numbers."""
        first = (await self.ask([query], [prompt], [label]))[0]
        (reward,), logs = first["rewards"], first["extra_logs"]
        assert first["scores"] == first["rewards"]
        return reward, {name: float(value) for name, (value,) in logs.items()}


class Slime:
    """Ten tries, each pause twice as long, whatever went wrong; the body is the reward."""

    def __init__(self, http: httpx.AsyncClient, url: str, sleep: Sleep) -> None:
        self._http, self._url, self._sleep = http, url, sleep

    async def ask(self, prompt: Any, response: str, label: Any = None) -> float:
        body = {"prompt": prompt, "response": response, "label": label}
        for attempt in range(10):
            try:
                answer = await self._http.post(self._url, json=body, timeout=120)
                return answer.raise_for_status().json()
            except httpx.HTTPError:
                if attempt < 9:
                    await self._sleep(min(2.0**attempt, 30))
        raise GaveUpError(self._url)


class Verl:
    """Sixteen tries of a discriminative reward model's call, and none after a 4xx."""

    def __init__(self, http: httpx.AsyncClient, address: str, engine: str, sleep: Sleep) -> None:
        self._http, self._address, self._engine, self._sleep = http, address, engine, sleep

    async def ask(self, text: str) -> float:
        if self._engine == "vllm":
            found = await self._post(
                "classify", {"model": "rm", "input": text, "use_activation": False}
            )
            return found["data"][-1]["probs"][-1]
        found = await self._post("v1/embeddings", {"model": "rm", "input": text})
        return found["data"][-1]["embedding"][-1]

    async def _post(self, endpoint: str, body: Any) -> Any:
        for attempt in range(16):
            answer = await self._http.post(f"{self._address}/{endpoint}", json=body)
            if answer.is_success:
                return answer.json()
            if answer.is_client_error:
                raise GaveUpError(answer.text)
            await self._sleep(min(2.0**attempt, 30))
        raise GaveUpError(endpoint)
