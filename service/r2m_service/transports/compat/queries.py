"""How OpenRLHF's and LLaMA-Factory's texts are read: as these trainers' own servers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r2m.errors import Code, Problem
from r2m_service.application.contract import SampleIn
from r2m_service.transports.compat.messages import GetRewardRequest, LlamaFactoryRequest
from r2m_service.transports.compat.rewards import decoded, raw

Reading = Literal["one-eos", "as-is", "tokenizer"]


@dataclass(frozen=True, slots=True)
class Queries:
    """A way to read texts that were decoded from tokens.

    Attributes:
        reading: of OpenRLHF's: `get_reward_text` of the settings, which says what each value means.
        eos, pad: the tokenizer's tokens as text; empty: it has none.
        encoder: whether the reward model is one: its class reads the special tokens that the
            tokenizer adds, so a text is read as on the other routes. No trainer's server has one.
    """

    reading: Reading = "as-is"
    eos: str = ""
    pad: str = ""
    encoder: bool = False

    def evaluated(self, request: LlamaFactoryRequest) -> list[SampleIn]:
        """LLaMA-Factory's texts."""
        sample = raw if self.encoder else decoded
        return [sample("", text) for text in request.messages]

    def samples(self, request: GetRewardRequest) -> list[SampleIn]:
        """OpenRLHF's queries, split where their prompts say so.

        Raises:
            Problem: invalid_request: there are prompts, and not one a query.
        """
        prompts = request.prompts or [""] * len(request.query)
        if len(prompts) != len(request.query):
            raise Problem(
                Code.INVALID_REQUEST,
                f"prompts has {len(prompts)} entries, query {len(request.query)}: one each",
                field="prompts",
            )
        return [self._sample(*both) for both in zip(request.query, prompts, strict=True)]

    def _sample(self, query: str, prompt: str) -> SampleIn:
        reading = "tokenizer" if self.encoder else self.reading
        if reading == "one-eos":
            query, prompt = self._end(self._begin(query)), self._begin(prompt)
        sample = raw if reading == "tokenizer" else decoded
        # A query was decoded from tokens, and need not start with its prompt letter by letter.
        if prompt and query.startswith(prompt):
            return sample(prompt, query[len(prompt) :])
        return sample("", query)

    def _begin(self, text: str) -> str:
        start = 0
        while token := next((one for one in self._ends if text.startswith(one, start)), None):
            start += len(token)
        return text[start:]

    def _end(self, text: str) -> str:
        # One line break behind the tokens stays: a regular expression's `$`, by which OpenRLHF's
        # server finds them, matches before it. Here no expression: a run of tokens in the middle
        # of a text would cost it the square of its length.
        line_break = "\n" if text.endswith("\n") else ""
        end = len(text) - len(line_break)
        while token := next((one for one in self._ends if text.endswith(one, 0, end)), None):
            end -= len(token)
        return text[:end] + line_break + self.eos

    @property
    def _ends(self) -> list[str]:
        return [token for token in (self.eos, self.pad) if token]
